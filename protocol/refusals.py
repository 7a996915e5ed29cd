"""Why a document, a proof or a peer is not believed; `protocol.trust` raises these.

Each is a TrustError with a class of its own, since the caller acts differently on each: it
fetches what `RootUnknown` and `GrantsNotAccepted` ask for, raises an alarm on forks, and tells
the peer the rest.
"""

from __future__ import annotations

from protocol.errors import TrustError
from protocol.ids import DocumentId


class SignatureMissing(TrustError):
    """Too few distinct keys of the role signed."""


class FingerprintMismatch(TrustError):
    """The first Root is not the one that the token names."""


class WrongFleet(TrustError):
    """The document is another fleet's."""


class WrongEpoch(TrustError):
    """The document is of another epoch than the Root."""


class HeadRolledBack(TrustError):
    """An older head than the one that is held, or than the floor."""


class HeadForked(TrustError):
    """Two heads with the same numbers: somebody has the head key, or two centrals sign."""


class RootRolledBack(TrustError):
    """A Root that is older than the one that is held, or lowers the epoch."""


class RootForked(RootRolledBack):
    """Another Root with the number of one that is held."""


class RootUnknown(TrustError):
    """A newer Root has to be fetched first; `version` is the newest one that is spoken of."""

    def __init__(self, version: int) -> None:
        super().__init__(f"root version {version} is not known here yet")
        self.version = version


class GrantsNotAccepted(TrustError):
    """The Grants root is not accepted, or (`named`) it is and has to be fetched first."""

    def __init__(self, grants_root: DocumentId, *, named: bool) -> None:
        why = "is accepted but not held yet" if named else "is not accepted by the newest head"
        super().__init__(f"Grants root {grants_root.short} {why}")
        self.grants_root = grants_root
        self.named = named


class FactsMismatch(TrustError):
    """The peer's key is not the one in the facts that it shows."""


class NodeDenied(TrustError):
    """The node's facts were revoked."""


class NotEntitled(TrustError):
    """The node may not read this manifest."""
