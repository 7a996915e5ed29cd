"""Believing again, at the start, what a node believed when it ended.

The trust file says it; when that file is damaged, lost or older than what the journal remembers,
the documents are asked, which hold every Root, the newest head and its Grants roots as well. All
of it is verified again. What cannot be had costs the head at most: the Roots that follow one
another from the first are enough to start with, and a peer brings the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from archid.errors import StorageError, TrustFailure
from archid.log import get_logger
from archid.membership import Membership
from archid.store.documents import DocumentStore
from archid.store.errors import DocumentMissing, TrustFileDamaged
from archid.store.trust_file import TrustFile, TrustState
from protocol import limits
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.head import Head
from protocol.ids import DocumentId
from protocol.root import Root
from protocol.trust import HeadRolledBack, TrustedDocuments

log = get_logger(__name__)


def decode_envelope(data: bytes) -> Envelope:
    """An envelope of a trust document as it came from outside; raises ProtocolError."""
    return Envelope.decode(data, max_bytes=limits.MAX_DOCUMENT_BYTES)


def trust_state(trust: TrustedDocuments) -> TrustState:
    """What the trust file has to hold."""
    root = trust.root
    grants = (trust.grants_envelope(one) for one in (trust.head.grants_roots if trust.head else ()))
    return TrustState(
        root=trust.roots[root.version].encode() if root is not None else None,
        head=trust.head_envelope.encode() if trust.head_envelope is not None else None,
        grants=tuple(envelope.encode() for envelope in grants if envelope is not None),
        newest_issued_s=trust.newest_issued_s,
    )


def restore_trust(
    membership: Membership,
    *,
    documents: DocumentStore,
    trust_file: TrustFile,
    floor: tuple[int, int],
    now: float,
) -> TrustedDocuments:
    """What this node believes; blocks.

    `floor` keeps out heads that are older than one that was believed before. Raises TrustFailure
    when not even the first Root is there, StorageError.
    """
    state = _load(trust_file)
    roots = _roots(membership, documents, state)
    heads = [] if state is None or not state.head else [state.head]
    trust = _restored(membership, roots, heads, floor, now)
    if trust is None:
        trust = _restored(membership, roots, _kept_heads(documents), floor, now)
    if trust is None:
        trust = _without_head(membership, roots, floor, now)
    for data in _grants(trust, documents, state):
        try:
            trust.accept_grants(decode_envelope(data))
        except ProtocolError as error:
            log.error("grants_not_restored", why=str(error))
    if state is not None:
        trust.newest_issued_s = max(trust.newest_issued_s, state.newest_issued_s)
    else:
        _save_again(trust, trust_file)
    return trust


def _save_again(trust: TrustedDocuments, trust_file: TrustFile) -> None:
    try:
        trust_file.save(trust_state(trust))
    except StorageError as error:
        log.error("trust_not_saved", why=error.sentence)


def _load(trust_file: TrustFile) -> TrustState | None:
    try:
        state = trust_file.load()
        if state is not None:
            for data in (*state.grants, *(root for _, root in state.roots)):
                decode_envelope(data)
            if state.root:
                Root.decode(decode_envelope(state.root).payload)
    except (TrustFileDamaged, ProtocolError) as error:
        aside = trust_file.set_aside()
        log.error("trust_file_damaged", why=str(error), moved_to=str(aside))
        return None
    if state is None:
        log.warning("trust_file_missing", path=str(trust_file.path))
    return state


def _roots(
    membership: Membership, documents: DocumentStore, state: TrustState | None
) -> list[Envelope]:
    """The Roots from the first one on, without a gap."""
    found: dict[int, Envelope] = {}
    for version in documents.root_versions():
        try:
            found[version] = decode_envelope(documents.get_root(version))
        except (DocumentMissing, ProtocolError) as error:
            log.error("root_damaged", version=version, why=str(error))
    if state is not None:
        for version, data in state.roots:
            found.setdefault(version, decode_envelope(data))
        if state.root:
            newest = decode_envelope(state.root)
            found.setdefault(Root.decode(newest.payload).version, newest)
    roots = []
    version = membership.anchor_version
    while version in found:
        roots.append(found[version])
        version += 1
    if not roots:
        raise TrustFailure(
            "The first Root of the fleet that this node believed is missing or damaged",
            remedy="Restore the state folder from a backup, or run `archid leave` and join again",
            code="trust_unusable",
        )
    if max(found) >= version:
        log.error("root_missing", version=version, newest=max(found))
    return roots


def _kept_heads(documents: DocumentStore) -> list[bytes]:
    """The heads among the documents, the newest by its own words first."""
    heads: list[tuple[tuple[int, int], bytes]] = []
    for one in documents.heads():
        try:
            data = documents.get_head(one)
            heads.append((Head.decode(decode_envelope(data).payload).order, data))
        except (DocumentMissing, ProtocolError) as error:
            log.error("head_damaged", head=one.short, why=str(error))
    return [data for _, data in sorted(heads, reverse=True)]


def _restored(
    membership: Membership,
    roots: list[Envelope],
    heads: Iterable[bytes],
    floor: tuple[int, int],
    now: float,
) -> TrustedDocuments | None:
    """With the first of these heads that holds; None when none does."""
    for data in heads:
        try:
            return TrustedDocuments.restore(
                roots, decode_envelope(data), fingerprint=membership.anchor, floor=floor, now=now
            )
        except HeadRolledBack as error:
            # Somebody put an older file back; the journal remembers better.
            log.error("trust_rolled_back", why=str(error))
        except ProtocolError as error:
            log.error("head_not_restored", why=str(error))
    return None


def _without_head(
    membership: Membership, roots: list[Envelope], floor: tuple[int, int], now: float
) -> TrustedDocuments:
    try:
        return TrustedDocuments.restore(
            roots, None, fingerprint=membership.anchor, floor=floor, now=now
        )
    except ProtocolError as error:
        raise TrustFailure(
            f"The documents of this node cannot be trusted: {error}",
            remedy="Restore the state folder from a backup, or run `archid leave` and join again",
            code="trust_unusable",
        ) from error


def _grants(
    trust: TrustedDocuments, documents: DocumentStore, state: TrustState | None
) -> list[bytes]:
    """The Grants roots that the head names and that are at hand."""
    named = trust.head.grants_roots if trust.head is not None else ()
    found = {}
    for data in state.grants if state is not None else ():
        found[DocumentId.of(decode_envelope(data).payload)] = data
    for grants_root in named:
        if grants_root not in found:
            with suppress(DocumentMissing):
                found[grants_root] = documents.get_grants(grants_root)
    return [found[one] for one in named if one in found]
