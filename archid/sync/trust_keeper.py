"""What this node believes, kept on disk and announced to whoever waits.

The rules are `protocol.trust`'s; here they meet the disk. A document counts once it is saved: the
trust file is replaced before a head is acted on, and the journal keeps the floor, so that neither
a crash nor a damaged file makes an older head acceptable again. Rebuilding a damaged trust file
from the documents is done here too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
from protocol.trust import HeadForked, Outcome, TrustedDocuments

log = get_logger(__name__)

MAX_ROOT_STEPS: Final = 1000
"""How many Roots are walked to catch up with a peer before giving up."""


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

    async def accept_root(self, data: bytes) -> Outcome:
        """Believe the next Root; raises what `TrustedDocuments.accept_root` raises."""
        async with self._turn:
            outcome = self.trust.accept_root(decode_envelope(data))
            if outcome is Outcome.NEWER:
                version = self.root.version
                await trio.to_thread.run_sync(self.documents.put_root, version, data)
                await self._save()
                log.info("root_accepted", version=version, epoch=self.root.epoch)
                self._events.publish("root.accepted", version=version)
                self.changed.fire()
            return outcome

    async def accept_head(self, head: bytes, grants: bytes = b"") -> Outcome:
        """Believe a head, and the Grants root that comes along when the head names it.

        Raises what `TrustedDocuments.accept_head` raises; a fork is an alarm too.
        """
        async with self._turn:
            envelope = decode_envelope(head)
            try:
                outcome = self.trust.accept_head(envelope, now=self._clock())
            except HeadForked as error:
                self._alarm_fork(DocumentId.of(envelope.payload), error)
                raise
            try:
                new_grants = self._take_grants(grants) if grants else False
            except ProtocolError as error:
                # The head stands by itself; its Grants root is then asked for by name.
                log.warning("grants_refused", why=str(error))
                new_grants = False
            if outcome is Outcome.NEWER or new_grants:
                await self._save()
            if outcome is Outcome.NEWER:
                epoch, serial = self.head.order
                log.info("head_accepted", epoch=epoch, serial=serial)
                self._events.publish("head.accepted", epoch=epoch, serial=serial)
            if outcome is Outcome.NEWER or new_grants:
                self.changed.fire()
            return outcome

    async def accept_grants(self, data: bytes) -> GrantsRoot:
        """Believe a Grants root that the head names; raises as `TrustedDocuments` does."""
        async with self._turn:
            envelope = decode_envelope(data)
            held = self.trust.grants(DocumentId.of(envelope.payload)) is not None
            accepted = self.trust.accept_grants(envelope)
            if not held:
                await self._save()
                self.changed.fire()
            return accepted

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

    def _take_grants(self, data: bytes) -> bool:
        envelope = decode_envelope(data)
        grants_root = DocumentId.of(envelope.payload)
        if grants_root not in self.head.grants_roots:
            return False  # an older peer's; nothing is lost by not keeping it
        held = self.trust.grants(grants_root) is not None
        self.trust.accept_grants(envelope)
        return not held

    async def _save(self) -> None:
        state = trust_state(self.trust)
        await trio.to_thread.run_sync(self._save_blocking, state)

    def _save_blocking(self, state: TrustState) -> None:
        self._trust_file.save(state)
        if self.trust.head is not None:
            self._journal.raise_floor(self.trust.head.order)

    def _alarm_fork(self, other: DocumentId, error: HeadForked) -> None:
        if other in self._forked or len(self._forked) >= 64:
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
        trust = TrustedDocuments.restore(
            roots, head, grants if head is not None else (), fingerprint=membership.anchor,
            floor=floor if head is None else (0, 0), now=now,
        )  # fmt: skip
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
    trust.floor = floor
    if state is not None:
        trust.newest_issued_s = max(trust.newest_issued_s, state.newest_issued_s)
    return trust
