"""What this node believes, kept on disk and announced to whoever waits.

The rules are `protocol.trust`'s; here they meet the disk. Whatever is newly believed is saved
before the rest of the node is told: documents, the trust file, then the floor in the journal, so
that neither a crash nor a damaged file makes an older head acceptable again. How all of it is
believed again at the next start is `archid.sync.trust_restoring`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Final

import trio

from archid.errors import StorageError, TrustFailure
from archid.events import EventHub
from archid.journal import Journal
from archid.log import get_logger
from archid.store.documents import DocumentStore
from archid.store.errors import DocumentMissing
from archid.store.trust_file import TrustFile, TrustState
from archid.sync.signal import Signal
from archid.sync.trust_restoring import decode_envelope, trust_state
from protocol.documents import GrantsRoot
from protocol.errors import FormatError, ProtocolError
from protocol.grants import Leaf, LeafDocument
from protocol.head import Head
from protocol.ids import DocumentId, NodeId
from protocol.root import Root
from protocol.trust import GrantsNotAccepted, HeadForked, Outcome, TrustedDocuments

log = get_logger(__name__)

MAX_FORKS_TOLD: Final = 64
SAVE_AGAIN_S: Final = 5.0

Accepted = Sequence[tuple[DocumentId, GrantsRoot]]
"""Accepted Grants roots that are held, the newest first."""


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
        self.signed_here: Callable[[], Collection[DocumentId]] = frozenset
        """On central: Grants roots whose leaves are kept before a head that names them is believed.

        Asked from any thread.
        """
        self._trust_file = trust_file
        self._journal = journal
        self._events = events
        self._clock = clock
        self._turn = trio.Lock()
        self._not_saved = Signal()
        self._unsaved: str | None = None
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
    def order(self) -> tuple[int, int]:
        """The numbers of the newest head, (0, 0) while none is held."""
        return self.trust.head.order if self.trust.head is not None else (0, 0)

    @property
    def grants_root(self) -> DocumentId | None:
        """The newest Grants root that the head names, held or not; None without a head."""
        return self.trust.head.grants_roots[0] if self.trust.head is not None else None

    @property
    def accepted(self) -> Accepted:
        """The Grants roots that count now and are held."""
        named = self.trust.head.grants_roots if self.trust.head is not None else ()
        return [(one, held) for one in named if (held := self.trust.grants(one)) is not None]

    @property
    def unsaved(self) -> str | None:
        """Why what is believed could not be saved, None when it was."""
        return self._unsaved

    def head_bytes(self) -> tuple[bytes, bytes]:
        """The newest head and its newest Grants root that is held, as they came."""
        head = self.trust.head_envelope
        if head is None:
            return b"", b""
        for grants_root, _ in self.accepted:
            envelope = self.trust.grants_envelope(grants_root)
            if envelope is not None:
                return head.encode(), envelope.encode()
        return head.encode(), b""

    async def run(self) -> None:
        """Save again what the disk did not take, until cancelled."""
        seen = 0
        while True:
            seen = await self._not_saved.wait(seen)
            await trio.sleep(SAVE_AGAIN_S)
            await self.keep()

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
        """Save whatever is newly believed, then tell everybody; nothing new, nothing done.

        A disk that does not take it raises an alarm and no error, since whoever brought the
        news cannot help it: `run` tries again, and until then nobody is told.
        """
        async with self._turn:
            roots = [version for version in self.trust.roots if version > self._kept_root]
            order, grants = self.order, frozenset(self.trust.accepted_grants)
            if not roots and order == self._kept_order and grants == self._kept_grants:
                return
            save = partial(
                self._save,
                trust_state(self.trust),
                roots=[(version, self.trust.roots[version].encode()) for version in roots],
                added=[
                    envelope.encode()
                    for one in grants - self._kept_grants
                    if (envelope := self.trust.grants_envelope(one)) is not None
                ],
                dropped=self._kept_grants - grants,
                order=order,
            )
            try:
                await trio.to_thread.run_sync(save)
            except StorageError as error:
                self._alarm_unsaved(error)
                return
            newer = order > self._kept_order
            self._unsaved = None
            self._kept_order, self._kept_grants = order, grants
            for version in roots:
                self._kept_root = max(self._kept_root, version)
                log.info("root_accepted", version=version)
                self._events.publish("root.accepted", version=version)
            if newer:
                log.info("head_accepted", epoch=order[0], serial=order[1])
                self._events.publish("head.accepted", epoch=order[0], serial=order[1])
            self.changed.fire()

    async def keep_leaf(self, data: bytes, node: NodeId, grants_root: DocumentId) -> Leaf:
        """Check and keep the leaf of a node under one Grants root, as a peer sent it.

        Raises ProtocolError when it is another one or does not hold, StorageError.
        """
        return await trio.to_thread.run_sync(
            self._keep_leaf, data, node, grants_root, self.trust.grants(grants_root)
        )

    async def newest_leaf(self, node: NodeId) -> tuple[LeafDocument, Leaf] | None:
        """The leaf of `node` under the newest accepted Grants root that it is held for.

        Raises StorageError.
        """
        return await trio.to_thread.run_sync(self._newest_leaf, node, self.accepted)

    async def forget_old_leaves(self, node: NodeId) -> None:
        """Remove the leaves of a node that no accepted Grants root is above any more."""

        def forget() -> None:
            # Listed before it is asked what counts: what comes in between is not an old one.
            held = [grants_root for owner, grants_root in self.documents.leaves() if owner == node]
            head = self.trust.head
            if head is None:
                return
            keep = {*head.grants_roots, *self.signed_here()}
            for grants_root in held:
                if grants_root not in keep:
                    self.documents.remove_leaf(node, grants_root)

        await trio.to_thread.run_sync(forget)

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
        try:
            envelope = decode_envelope(data)
            if self.trust.head is None or (
                DocumentId.of(envelope.payload) not in self.trust.head.grants_roots
            ):
                return  # an older peer's; nothing is lost by not keeping it
            self.trust.accept_grants(envelope)
        except ProtocolError as error:
            # The head stands by itself; its Grants root is then asked for by name.
            log.warning("grants_refused", why=str(error))

    def _keep_leaf(
        self, data: bytes, node: NodeId, grants_root: DocumentId, accepted: GrantsRoot | None
    ) -> Leaf:
        document = LeafDocument.decode(data)
        if document.node != node or document.grants_root != grants_root:
            raise FormatError("the leaf is another one than was asked for")
        if accepted is None:
            raise GrantsNotAccepted(grants_root, named=False)
        leaf = document.verify(accepted)
        self.documents.put_leaf(node, grants_root, data)
        return leaf

    def _newest_leaf(self, node: NodeId, accepted: Accepted) -> tuple[LeafDocument, Leaf] | None:
        for grants_root, content in accepted:
            try:
                document = LeafDocument.decode(self.documents.get_leaf(node, grants_root))
                return document, document.verify(content)
            except DocumentMissing:
                continue
            except ProtocolError as error:
                # What was verified once and does not verify now was changed on disk.
                log.error("leaf_damaged", node=node.short, why=str(error))
                self.documents.remove_leaf(node, grants_root)
        return None

    def _save(
        self,
        state: TrustState,
        *,
        roots: Sequence[tuple[int, bytes]],
        added: Iterable[bytes],
        dropped: Iterable[DocumentId],
        order: tuple[int, int],
    ) -> None:
        documents = self.documents
        for version, envelope in roots:
            documents.put_root(version, envelope)
        for envelope in added:
            documents.put_grants(envelope)
        newest = documents.put_head(state.head) if state.head is not None else None
        if roots:
            # The trust file must not outlive, in a power cut, the Roots that lead to it.
            documents.sync()
        self._trust_file.save(state)
        self._journal.raise_floor(order)
        for one in dropped:
            documents.remove_grants(one)
        for head in documents.heads():
            if head != newest:
                documents.remove_head(head)

    def _alarm_unsaved(self, error: StorageError) -> None:
        if self._unsaved is None:
            log.error("trust_not_saved", why=error.sentence)
            self._events.publish("alarm", code="trust_not_saved", sentence=error.sentence)
        self._unsaved = error.sentence
        self._not_saved.fire()

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
