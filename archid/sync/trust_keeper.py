"""What this node believes, kept on disk and announced to whoever waits.

The rules are `protocol.trust`'s; here they meet the disk. Whatever is newly believed is saved
before anybody is told: the trust file first, then the floor in the journal, so that neither a
crash nor a damaged file makes an older head acceptable again. Rebuilding a damaged trust file
from the documents is done here too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import trio

from archid.errors import TrustFailure
from archid.events import EventHub
from archid.journal import Journal
from archid.log import get_logger
from archid.membership import Membership
from archid.store.documents import DocumentStore
from archid.store.errors import DocumentMissing, TrustFileDamaged
from archid.store.trust_file import TrustFile, TrustState
from archid.sync.signal import Signal
from protocol import limits
from protocol.documents import GrantsRoot
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.grants import Leaf, LeafDocument
from protocol.head import Head
from protocol.ids import DocumentId, NodeId
from protocol.root import Root
from protocol.trust import HeadForked, HeadRolledBack, Outcome, TrustedDocuments

log = get_logger(__name__)

MAX_FORKS_TOLD: Final = 64


def decode_envelope(data: bytes) -> Envelope:
    """An envelope of a trust document as it came from outside; raises ProtocolError."""
    return Envelope.decode(data, max_bytes=limits.MAX_DOCUMENT_BYTES)


class TrustKeeper:
    """Owns a `TrustedDocuments` and everything that must happen when it changes."""

    def __init__(
        self,
        trust: TrustedDocuments,
        *,
        documents: DocumentStore,
        trust_file: TrustFile,
        journal: Journal,
        events: EventHub,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.trust = trust
        self.documents = documents
        self.changed = Signal()
        self._trust_file = trust_file
        self._journal = journal
        self._events = events
        self._clock = clock
        self._turn = trio.Lock()
        self._forked: set[DocumentId] = set()
        self._kept_root = max(trust.roots, default=0)
        self._kept_order = trust.head.order if trust.head is not None else (0, 0)
        self._kept_grants = frozenset(trust.accepted_grants)

    @property
    def root(self) -> Root:
        """The newest Root; a member always has one."""
        if self.trust.root is None:
            raise TrustFailure("This node holds no Root", remedy="Run `archid join` again")
        return self.trust.root

    @property
    def head(self) -> Head:
        """The newest head; a member always has one."""
        if self.trust.head is None:
            raise TrustFailure("This node holds no head", remedy="Connect it to central or a REPO")
        return self.trust.head

    @property
    def grants_root(self) -> DocumentId:
        """The newest Grants root that the head names, held or not."""
        return self.head.grants_roots[0]

    def head_bytes(self) -> tuple[bytes, bytes]:
        """The newest head and its newest Grants root that is held, as they came."""
        head = self.trust.head_envelope
        if head is None:
            return b"", b""
        for grants_root in self.head.grants_roots:
            envelope = self.trust.grants_envelope(grants_root)
            if envelope is not None:
                return head.encode(), envelope.encode()
        return head.encode(), b""

    async def accept_head(self, head: bytes, grants: bytes = b"") -> Outcome:
        """Believe a head whose Root is held, and the Grants root that comes along.

        Raises what `TrustedDocuments.accept_head` raises; a fork is an alarm too. Peers bring
        heads through the doorkeeper, which fetches missing Roots first.
        """
        envelope = decode_envelope(head)
        try:
            outcome = self.trust.accept_head(envelope, now=self._clock())
        except HeadForked as error:
            self.alarm_fork(DocumentId.of(envelope.payload), error)
            raise
        if grants:
            self._take_grants(grants)
        await self.keep()
        return outcome

    async def accept_root(self, data: bytes) -> Outcome:
        """Believe the next Root; raises what `TrustedDocuments.accept_root` raises."""
        outcome = self.trust.accept_root(decode_envelope(data))
        await self.keep()
        return outcome

    async def accept_grants(self, data: bytes) -> GrantsRoot:
        """Believe a Grants root that the head names; raises as `TrustedDocuments` does."""
        accepted = self.trust.accept_grants(decode_envelope(data))
        await self.keep()
        return accepted

    async def take_grants(self, data: bytes) -> None:
        """Believe a Grants root that came along with a head, if the head names it; then save."""
        if data:
            self._take_grants(data)
        await self.keep()

    async def keep(self) -> None:
        """Save whatever is newly believed, then tell everybody; nothing new, nothing done."""
        async with self._turn:
            roots = [version for version in self.trust.roots if version > self._kept_root]
            head = self.trust.head
            order = head.order if head is not None else (0, 0)
            grants = frozenset(self.trust.accepted_grants)
            if not roots and order == self._kept_order and grants == self._kept_grants:
                return
            state = trust_state(self.trust)
            new_roots = [(version, self.trust.roots[version].encode()) for version in roots]
            new_grants = [
                envelope.encode()
                for one in grants - self._kept_grants
                if (envelope := self.trust.grants_envelope(one)) is not None
            ]
            await trio.to_thread.run_sync(self._save, state, new_roots, new_grants, order)
            newer = order > self._kept_order
            self._kept_order, self._kept_grants = order, grants
            for version in roots:
                self._kept_root = max(self._kept_root, version)
                log.info("root_accepted", version=version)
                self._events.publish("root.accepted", version=version)
            if newer:
                log.info("head_accepted", epoch=order[0], serial=order[1])
                self._events.publish("head.accepted", epoch=order[0], serial=order[1])
            self.changed.fire()

    async def keep_leaf(self, data: bytes, node: NodeId) -> Leaf:
        """Check and keep a leaf; raises ProtocolError when it is not `node`'s or does not hold."""
        document = LeafDocument.decode(data)
        leaf = self.trust.check_leaf(document)
        if leaf.facts.node != node:
            raise ProtocolError("the leaf is another node's")
        await trio.to_thread.run_sync(self.documents.put_leaf, node, document.grants_root, data)
        return leaf

    def newest_leaf(self, node: NodeId) -> tuple[LeafDocument, Leaf] | None:
        """The leaf of `node` under the newest accepted Grants root that it is held for."""
        for grants_root in self.head.grants_roots:
            if self.trust.grants(grants_root) is None:
                continue
            try:
                document = LeafDocument.decode(self.documents.get_leaf(node, grants_root))
                return document, self.trust.check_leaf(document)
            except DocumentMissing:
                continue
            except ProtocolError as error:
                # What was verified once and does not verify now was changed on disk.
                log.error("leaf_damaged", node=node.short, why=str(error))
                self.documents.remove_leaf(node, grants_root)
        return None

    async def leaf_of(self, node: NodeId, grants_root: DocumentId) -> LeafDocument | None:
        """The stored leaf of a node under one Grants root, None when it is not held."""
        try:
            data = await trio.to_thread.run_sync(self.documents.get_leaf, node, grants_root)
            return LeafDocument.decode(data)
        except (DocumentMissing, ProtocolError):
            return None

    async def keep_leaf_document(self, document: LeafDocument) -> None:
        """Keep a leaf that was checked already."""
        await trio.to_thread.run_sync(
            self.documents.put_leaf, document.node, document.grants_root, document.encode()
        )

    def _take_grants(self, data: bytes) -> None:
        envelope = decode_envelope(data)
        if DocumentId.of(envelope.payload) not in self.head.grants_roots:
            return  # an older peer's; nothing is lost by not keeping it
        try:
            self.trust.accept_grants(envelope)
        except ProtocolError as error:
            # The head stands by itself; its Grants root is then asked for by name.
            log.warning("grants_refused", why=str(error))

    def _save(
        self,
        state: TrustState,
        roots: Sequence[tuple[int, bytes]],
        grants: Sequence[bytes],
        order: tuple[int, int],
    ) -> None:
        for version, envelope in roots:
            self.documents.put_root(version, envelope)
        for envelope in grants:
            self.documents.put_grants(envelope)
        self._trust_file.save(state)
        self._journal.raise_floor(order)

    def alarm_fork(self, other: DocumentId, error: HeadForked) -> None:
        """Somebody shows another head with the numbers of ours: say so once for each."""
        if other in self._forked or len(self._forked) >= MAX_FORKS_TOLD:
            return
        self._forked.add(other)
        log.error("head_forked", other=other.short, why=str(error))
        self._events.publish("alarm", code="head_forked", sentence=f"{error}: the first one stays")

    @property
    def forked(self) -> bool:
        """Whether another head with the numbers of one of ours was seen."""
        return bool(self._forked)


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
    """Believe again what the trust file says, or, when it is damaged, what the documents prove.

    A damaged trust file costs the head at most: the Roots are in the documents, the floor in the
    journal keeps older heads out, and a peer brings the newest head. Raises TrustFailure when not
    even the Roots are there.
    """
    roots = [
        decode_envelope(documents.get_root(version))
        for version in documents.root_versions()
        if version >= membership.anchor_version
    ]
    try:
        state = trust_file.load()
    except TrustFileDamaged as error:
        aside = trust_file.set_aside()
        log.error("trust_file_damaged", why=str(error), moved_to=str(aside))
        state = None
    head = decode_envelope(state.head) if state is not None and state.head else None
    grants = [decode_envelope(data) for data in state.grants] if state is not None else []
    try:
        try:
            trust = TrustedDocuments.restore(
                roots, head, grants, fingerprint=membership.anchor, floor=floor, now=now
            )
        except HeadRolledBack as error:
            # Somebody put an older trust file back; the journal remembers better.
            log.error("trust_file_rolled_back", why=str(error))
            trust = TrustedDocuments.restore(
                roots, None, fingerprint=membership.anchor, floor=floor, now=now
            )
    except ProtocolError as error:
        raise TrustFailure(
            f"The documents of this node cannot be trusted: {error}",
            remedy="Restore the state folder from a backup, or run `archid leave` and join again",
            code="trust_unusable",
        ) from error
    if trust.root is None:
        raise TrustFailure(
            "No Root of the fleet is held, or the first one is missing",
            remedy="Restore the state folder from a backup, or run `archid leave` and join again",
            code="trust_unusable",
        )
    if state is not None:
        trust.newest_issued_s = max(trust.newest_issued_s, state.newest_issued_s)
    return trust
