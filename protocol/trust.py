"""The trust rules: which Root, Head and Grants to believe, and what a proof entitles to.

All of it is in one object without I/O, as in python-tuf: documents go in as envelopes, and what
comes out is believed or an exception says why not. The caller keeps what was accepted (on disk,
with the floor in its journal), fetches what `RootUnknown` and `GrantsNotAccepted` ask for, and
raises the alarms. Dates are never a reason to refuse here, except a Ticket's.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Self

from protocol.documents import GrantsRoot, Ticket
from protocol.envelope import Envelope, PublicKey
from protocol.errors import TrustError
from protocol.facts import Entry, NodeFacts
from protocol.grants import Leaf, LeafDocument, Proof
from protocol.head import DENIED_MANIFEST, DENIED_NODE, DENIED_RELEASE, Head
from protocol.ids import DocumentId, FleetId, ManifestId, NodeId, ReleaseId
from protocol.refusals import (
    FactsMismatch,
    FingerprintMismatch,
    GrantsNotAccepted,
    HeadForked,
    HeadRolledBack,
    NodeDenied,
    NotEntitled,
    RootForked,
    RootRolledBack,
    RootUnknown,
    SignatureMissing,
    WrongEpoch,
    WrongFleet,
)
from protocol.root import Root, signed_by_role

# Callers find the refusals beside the object that raises them.
__all__ = [
    "FactsMismatch",
    "FingerprintMismatch",
    "GrantsNotAccepted",
    "HeadForked",
    "HeadRolledBack",
    "NodeDenied",
    "NotEntitled",
    "Outcome",
    "RootForked",
    "RootRolledBack",
    "RootUnknown",
    "SignatureMissing",
    "TrustedDocuments",
    "WrongEpoch",
    "WrongFleet",
    "signed_by_role",
]


class Outcome(enum.Enum):
    """What accepting a document changed."""

    NEWER = "newer"
    SAME = "same"


class TrustedDocuments:
    """What one node believes of its fleet. `floor` is the least head order ever to accept."""

    def __init__(self, *, fleet: FleetId | None = None, floor: tuple[int, int] = (0, 0)) -> None:
        self.fleet = fleet
        self.floor = floor
        self.root: Root | None = None
        self.head: Head | None = None
        self.head_envelope: Envelope | None = None
        self.head_accepted_at: float | None = None
        """When the newest head came in, by the local clock."""
        self.newest_issued_s = 0
        """The newest date in anything verified in this epoch."""
        self._roots: dict[int, Envelope] = {}
        self._root_history: list[Root] = []
        self._grants: dict[DocumentId, GrantsRoot] = {}
        self._grants_envelopes: dict[DocumentId, Envelope] = {}

    @classmethod
    def restore(
        cls,
        roots: Iterable[Envelope],
        head: Envelope | None,
        grants: Iterable[Envelope] = (),
        *,
        fingerprint: DocumentId,
        floor: tuple[int, int] = (0, 0),
        now: float,
    ) -> Self:
        """Believe again what was kept: Roots from the first held one on, the head, its Grants.

        Everything is verified as when it came. The head is verified at the Root that it names,
        since a later one may have replaced its keys, or begun an epoch that has no head yet.
        Raises as the `accept_` methods do.
        """
        trusted = cls(floor=floor)
        waiting = head
        problem: TrustError | None = None
        for position, envelope in enumerate(roots):
            if position == 0:
                trusted.accept_first_root(envelope, fingerprint)
            else:
                trusted.accept_root(envelope)
            if waiting is not None:
                try:
                    trusted.accept_head(waiting, now=now)
                    waiting = None
                except (RootUnknown, SignatureMissing, WrongEpoch) as error:
                    problem = error
        if waiting is not None:
            raise problem or TrustError("no Root is held")
        for envelope in grants:
            trusted.accept_grants(envelope)
        return trusted

    # Roots

    @property
    def roots(self) -> Mapping[int, Envelope]:
        """Every Root that is held, by version."""
        return MappingProxyType(self._roots)

    @property
    def root_history(self) -> tuple[Root, ...]:
        """The same, decoded, the newest first."""
        return tuple(reversed(self._root_history))

    def accept_first_root(self, envelope: Envelope, fingerprint: DocumentId) -> Root:
        """Believe the Root that a token or the local state names.

        Raises FingerprintMismatch, SignatureMissing, WrongFleet, FormatError, LimitExceeded.
        """
        if self.root is not None:
            raise TrustError("a first Root is held already")
        if DocumentId.of(envelope.payload) != fingerprint:
            raise FingerprintMismatch("the Root is not the one with the expected fingerprint")
        root = Root.decode(envelope.payload)
        self._check_fleet(root.fleet)
        signed_by_role(envelope, Root.TYPE, root, "root")
        self.fleet = root.fleet
        self._hold_root(root, envelope)
        return root

    def accept_root(self, envelope: Envelope) -> Outcome:
        """Believe the next Root; several steps are walked one by one.

        Raises RootUnknown when it is not the next one, RootRolledBack, RootForked, WrongFleet,
        SignatureMissing unless the root roles of the old and of the new Root signed it.
        """
        current = self._known_root()
        if any(held.payload == envelope.payload for held in self._roots.values()):
            return Outcome.SAME
        problem = None
        try:
            signed_by_role(envelope, Root.TYPE, current, "root")
        except SignatureMissing as error:
            # Parsed only to say what is missing: the next Root may explain these signatures.
            problem = error
        root = Root.decode(envelope.payload)
        self._check_fleet(root.fleet)
        if root.version > current.version + 1:
            raise RootUnknown(root.version)
        if root.version <= current.version:
            if problem is None and root.version in self._roots:
                raise RootForked(f"there are two Roots with version {root.version}")
            raise RootRolledBack(
                f"root version {root.version} is not newer than {current.version}"
            ) from problem
        if problem is not None:
            raise problem
        if root.epoch < current.epoch:
            raise RootRolledBack(f"root version {root.version} goes back to epoch {root.epoch}")
        signed_by_role(envelope, Root.TYPE, root, "root")
        self._hold_root(root, envelope)
        return Outcome.NEWER

    # Heads

    def accept_head(self, envelope: Envelope, *, now: float) -> Outcome:
        """Believe a head that is newer than the one held; an expired one too.

        Raises RootUnknown when a newer Root has to be fetched first, SignatureMissing,
        WrongFleet, WrongEpoch, HeadRolledBack, HeadForked (the first one stays).
        """
        root = self._known_root()
        held = self.head_envelope
        if held is not None and envelope.payload == held.payload:
            return Outcome.SAME
        try:
            payload = signed_by_role(envelope, Head.TYPE, root, "head")
        except SignatureMissing:
            # Parsed only to learn whether a newer Root may explain these signatures.
            claimed = Head.decode(envelope.payload)
            if claimed.root_version > root.version:
                raise RootUnknown(claimed.root_version) from None
            raise
        head = Head.decode(payload)
        self._check_fleet(head.fleet)
        if head.root_version > root.version:
            raise RootUnknown(head.root_version)
        if head.epoch != root.epoch:
            raise WrongEpoch(f"a head of epoch {head.epoch} in epoch {root.epoch}")
        if head.order < self.floor:
            raise HeadRolledBack(f"head {head.order} is below the floor {self.floor}")
        if self.head is not None:
            if head.order == self.head.order:
                raise HeadForked(f"two heads are both {head.order}")
            if head.order < self.head.order:
                raise HeadRolledBack(f"head {head.order} is older than {self.head.order}")
        self.head = head
        self.head_envelope = envelope
        self.head_accepted_at = now
        self.newest_issued_s = max(self.newest_issued_s, head.issued_s)
        named = set(head.grants_roots)
        for grants_root in self._grants.keys() - named:
            del self._grants[grants_root], self._grants_envelopes[grants_root]
        return Outcome.NEWER

    def head_expired(self, now: float) -> bool:
        """Whether there should be a newer head: an alarm, never a reason to stop."""
        return self.head is None or now >= self.head.expires_s

    def clock_offset_s(self, now: float) -> float | None:
        """By how much the local clock is behind what was signed, at least; None if it is not."""
        behind = self.newest_issued_s - now
        return behind if behind > 0 else None

    # Grants

    def accept_grants(self, envelope: Envelope) -> GrantsRoot:
        """Believe a Grants root that the head names.

        Its keys may be those of any Root of this epoch that is held, since refreshed heads go
        on naming Grants from before a key was replaced. Raises GrantsNotAccepted,
        SignatureMissing, WrongFleet, WrongEpoch, FormatError.
        """
        grants_root_id = DocumentId.of(envelope.payload)
        head = self.head
        if head is None or grants_root_id not in head.grants_roots:
            raise GrantsNotAccepted(grants_root_id, named=False)
        if (held := self._grants.get(grants_root_id)) is not None:
            return held
        self._check_grants_signed(envelope, head.epoch)
        grants = GrantsRoot.decode(envelope.payload)
        self._check_fleet(grants.fleet)
        if grants.epoch != head.epoch:
            raise WrongEpoch(f"Grants of epoch {grants.epoch} under a head of {head.epoch}")
        self._grants[grants_root_id] = grants
        self._grants_envelopes[grants_root_id] = envelope
        self.newest_issued_s = max(self.newest_issued_s, grants.issued_s)
        return grants

    def grants(self, grants_root: DocumentId) -> GrantsRoot | None:
        """An accepted Grants root, if it is held."""
        return self._grants.get(grants_root)

    def grants_envelope(self, grants_root: DocumentId) -> Envelope | None:
        """The same as it came, to pass it on."""
        return self._grants_envelopes.get(grants_root)

    @property
    def accepted_grants(self) -> Mapping[DocumentId, GrantsRoot]:
        """The Grants roots that the head names and that are held."""
        return MappingProxyType(self._grants)

    def missing_grants(self) -> tuple[DocumentId, ...]:
        """Those that the head names and that are not held, newest first."""
        if self.head is None:
            return ()
        return tuple(one for one in self.head.grants_roots if one not in self._grants)

    # Proofs

    def check_facts(self, proof: Proof, *, peer_key: PublicKey) -> NodeFacts:
        """Who a peer is, by its proof and the key that it used for TLS.

        Raises GrantsNotAccepted, ProofInvalid, FactsMismatch, NodeDenied, FormatError.
        """
        facts, _ = self._verify(proof, peer_key)
        return facts

    def check_entitlement(
        self,
        proof: Proof,
        *,
        peer_key: PublicKey,
        manifest: ManifestId,
        server: NodeFacts | None = None,
    ) -> NodeFacts:
        """That a peer may read `manifest`; ask again whenever the head has changed.

        `server` are the facts of the node that serves: with them the fleet's policy about
        sites is kept too. Raises NotEntitled and what `check_facts` raises.
        """
        facts, entry = self._verify(proof, peer_key)
        self._check_site(facts, server)
        if facts.reads_everything:
            return facts
        if entry is None or entry.manifest != manifest:
            raise NotEntitled(f"{facts.name} shows no entry for manifest {manifest.short}")
        head = self._known_head()
        if head.denies(DENIED_MANIFEST, manifest, proof.grants_root):
            raise NotEntitled(f"manifest {manifest.short} was denied")
        if head.denies(DENIED_RELEASE, entry.release, proof.grants_root):
            raise NotEntitled(f"release {entry.release} was denied")
        return facts

    def check_ticket(
        self, envelope: Envelope, *, facts: NodeFacts, manifest: ManifestId, now: float
    ) -> Ticket:
        """That a Ticket lets a peer with these checked facts read `manifest` now.

        Raises NotEntitled, SignatureMissing, WrongFleet, FormatError, LimitExceeded.
        """
        payload = signed_by_role(envelope, Ticket.TYPE, self._known_root(), "tickets")
        ticket = Ticket.decode(payload)
        self._check_fleet(ticket.fleet)
        if ticket.node != facts.node or ticket.manifest != manifest:
            raise NotEntitled("a ticket is for another node or another manifest")
        if now >= ticket.expires_s:
            raise NotEntitled("a ticket has expired")
        if self.is_denied(facts.node) or self.is_denied(manifest):
            raise NotEntitled("what a ticket is for was denied")
        return ticket

    def check_leaf(self, document: LeafDocument) -> Leaf:
        """A whole leaf, of this node or of another one.

        Raises GrantsNotAccepted, ProofInvalid, FormatError.
        """
        return document.verify(self._accepted(document.grants_root))

    def is_denied(self, identity: NodeId | ManifestId | ReleaseId) -> bool:
        """Whether the head denies it under any accepted Grants root."""
        if self.head is None:
            return False
        kinds = {NodeId: DENIED_NODE, ManifestId: DENIED_MANIFEST, ReleaseId: DENIED_RELEASE}
        return self.head.denies(kinds[type(identity)], identity)

    def _verify(self, proof: Proof, peer_key: PublicKey) -> tuple[NodeFacts, Entry | None]:
        facts, entry = proof.verify(self._accepted(proof.grants_root))
        if facts.key != peer_key:
            raise FactsMismatch(f"the facts of {facts.name} name another key than the peer's")
        if self._known_head().denies(DENIED_NODE, facts.node, proof.grants_root):
            raise NodeDenied(f"{facts.name} was revoked")
        return facts, entry

    def _accepted(self, grants_root: DocumentId) -> GrantsRoot:
        grants = self._grants.get(grants_root)
        if grants is None:
            named = self.head is not None and grants_root in self.head.grants_roots
            raise GrantsNotAccepted(grants_root, named=named)
        return grants

    def _check_site(self, reader: NodeFacts, server: NodeFacts | None) -> None:
        if server is None or not self._known_root().same_site_only:
            return
        if server.reads_everything or reader.reads_everything or server.site == reader.site:
            return
        raise NotEntitled("by the fleet's policy nodes serve their own site only")

    def _check_grants_signed(self, envelope: Envelope, epoch: int) -> None:
        problem: TrustError | None = None
        for root in reversed(self._root_history):
            if root.epoch != epoch:
                continue
            try:
                signed_by_role(envelope, GrantsRoot.TYPE, root, "grants")
            except SignatureMissing as error:
                problem = problem or error
            else:
                return
        raise problem or WrongEpoch(f"no Root of epoch {epoch} is held")

    def _hold_root(self, root: Root, envelope: Envelope) -> None:
        new_epoch = self.root is None or root.epoch > self.root.epoch
        self.root = root
        self._roots[root.version] = envelope
        self._root_history.append(root)
        self.newest_issued_s = (
            root.issued_s if new_epoch else max(self.newest_issued_s, root.issued_s)
        )

    def _check_fleet(self, fleet: FleetId) -> None:
        if self.fleet is not None and fleet != self.fleet:
            raise WrongFleet(f"the document is of fleet {fleet.short}")

    def _known_root(self) -> Root:
        if self.root is None:
            raise TrustError("no Root is held")
        return self.root

    def _known_head(self) -> Head:
        if self.head is None:
            raise TrustError("no head is held")
        return self.head
