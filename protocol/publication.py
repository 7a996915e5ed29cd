"""When a signed manifest root may be believed.

A publication is an envelope of type "manifest" around a root. Its signatures are not part of the
manifest's id, so that new keys can sign old content. Only scripts are judged here: they are the
`publish` role's. What a single node signs for itself (previews, journals) is judged where that
node is known.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.envelope import Envelope, count_valid
from protocol.errors import TrustError
from protocol.ids import ManifestId
from protocol.limits import MAX_MANIFEST_BYTES, MAX_SIGNATURES_BYTES
from protocol.manifest import SCRIPT_KINDS, ManifestRoot
from protocol.root import Root

MAX_PUBLICATION_BYTES = MAX_MANIFEST_BYTES + MAX_SIGNATURES_BYTES
"""The largest envelope of a manifest root."""


def manifest_of(envelope: Envelope) -> ManifestId:
    """The identity of the version in an envelope, whoever signed it."""
    return ManifestId.of(envelope.payload)


def accept_known_publication(envelope: Envelope, roots: Iterable[Root]) -> ManifestRoot:
    """The same under any of these Roots, the newest first: keys are replaced, versions stay.

    Raises what `accept_publication` raises for the first of them that did not accept it.
    """
    problem: TrustError | None = None
    for root in roots:
        try:
            return accept_publication(envelope, root)
        except TrustError as error:
            problem = problem or error
    raise problem or TrustError("no Root is held")


def accept_publication(envelope: Envelope, root: Root) -> ManifestRoot:
    """Check the signatures of a script's manifest against the Root, then decode it.

    Raises TrustError when fewer keys of the role `publish` signed it than Root asks for, when it
    is another fleet's or not a script; FormatError and LimitExceeded as decoding does.
    """
    threshold, keys = root.keys_of("publish")
    signed = len(count_valid(envelope, ManifestRoot.TYPE, keys))
    if signed < threshold:
        raise TrustError(
            f"manifest {manifest_of(envelope).short} has {signed} valid signatures of the role"
            f" publish where root version {root.version} asks for {threshold}"
        )
    manifest = ManifestRoot.decode(envelope.payload)
    if manifest.fleet != root.fleet:
        raise TrustError(f"manifest {manifest.id.short} belongs to another fleet")
    if manifest.kind not in SCRIPT_KINDS:
        raise TrustError(
            f"manifest {manifest.id.short} is a {manifest.kind}, which the role publish cannot sign"
        )
    return manifest
