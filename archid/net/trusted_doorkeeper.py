"""The doorkeeper of a node that has joined: proves and judges by `protocol.trust`.

It turns "a newer Root has to be fetched first" into asking for it, and hands what is newly
believed to `keep`, so that it is stored before anything is done in its name. Rules about whom to
believe are not here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import Final

from archid.log import get_logger
from archid.net.doorkeeper import Ask
from archid.net.errors import PeerRefused, Refusal
from protocol.envelope import Envelope, PublicKey
from protocol.errors import FormatError, TrustError
from protocol.facts import NodeFacts
from protocol.grants import LeafDocument, Proof, read_items
from protocol.head import DENIED_NODE
from protocol.ids import DocumentId, NodeId
from protocol.limits import MAX_GRANTS_ROOT_BYTES, MAX_HEAD_BYTES, MAX_ROOT_BYTES
from protocol.messages import (
    NONCE_BYTES,
    Answer,
    ErrorCode,
    GetGrants,
    GetLeaf,
    GetRoot,
    GrantsAnswer,
    Hello,
    LeafAnswer,
    Prove,
    Request,
    RootDocument,
)
from protocol.trust import (
    GrantsNotAccepted,
    HeadForked,
    HeadRolledBack,
    Outcome,
    RootUnknown,
    TrustedDocuments,
)

PROTOCOL_VERSION: Final = 1
MAX_LEAVES_ASKED: Final = 16
"""Under how many Grants roots a node that was away asks for its leaf, before it is admitted."""

log = get_logger(__name__)

LeafOf = Callable[[NodeId, DocumentId], Awaitable[LeafDocument | None]]
"""The stored leaf of a node under a Grants root, None when it is not held."""


class TrustedDoorkeeper:
    """Proves one node to its peers and judges them.

    `leaf_of` looks up stored leaves, `keep_leaf` stores this node's own when a peer had a newer
    one, and `keep` stores Roots, head and Grants of `trusted` when any of them is new; it is also
    where the rest of the daemon learns of a new head. `on_fork` raises the alarm about a head
    with the numbers of ours.
    """

    def __init__(
        self,
        *,
        node: NodeId,
        trusted: TrustedDocuments,
        leaf_of: LeafOf,
        keep_leaf: Callable[[LeafDocument], Awaitable[None]],
        keep: Callable[[], Awaitable[None]],
        on_fork: Callable[[DocumentId, HeadForked], None],
        software: str,
        features: tuple[str, ...] = (),
        now: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._node = node
        self._trusted = trusted
        self._leaf_of = leaf_of
        self._keep_leaf = keep_leaf
        self._keep = keep
        self._on_fork = on_fork
        self._software = software
        self._features = features
        self._now = now
        self._random_bytes = random_bytes

    def hello(self) -> Hello:
        trusted = self._trusted
        return Hello(
            min_version=PROTOCOL_VERSION,
            max_version=PROTOCOL_VERSION,
            features=self._features,
            fleet=trusted.fleet,
            node=self._node,
            root_version=trusted.root.version if trusted.root else 0,
            head_order=trusted.head.order if trusted.head else (0, 0),
            nonce=self._random_bytes(NONCE_BYTES),
            software=self._software,
            now_s=max(0, int(self._now())),
        )

    async def prove(self, peer: Hello, ask: Ask) -> Prove:
        leaf = await self._newest_leaf(ask)
        grants = self._trusted.grants_envelope(leaf.grants_root)
        head = self._trusted.head_envelope
        if grants is None or head is None or self._trusted.head is None:
            raise Refusal(ErrorCode.NOT_READY, "this node holds no head or Grants yet")
        same_head = peer.head_order == self._trusted.head.order
        return Prove(b"" if same_head else head.encode(), grants.encode(), leaf.proof().encode())

    async def judge(self, prove: Prove, *, peer: Hello, peer_key: PublicKey, ask: Ask) -> NodeFacts:
        trusted = self._trusted
        before = self._believed()
        try:
            await self._follow_roots(peer.root_version, ask)
            if prove.head and (trusted.head is None or peer.head_order >= trusted.head.order):
                envelope = Envelope.decode(prove.head, max_bytes=MAX_HEAD_BYTES)
                await self.accept_head(envelope, ask)
            proof = Proof.decode(prove.proof)
            await self._hold_grants(proof.grants_root, prove.grants, ask)
        finally:
            # A head is believed whatever else is wrong with the peer that brought it.
            if self._believed() != before:
                await self._keep()
        return trusted.check_facts(proof, peer_key=peer_key)

    def _believed(self) -> tuple[int, tuple[int, int], frozenset[DocumentId]]:
        trusted = self._trusted
        return (
            trusted.root.version if trusted.root else 0,
            trusted.head.order if trusted.head else (0, 0),
            frozenset(trusted.accepted_grants),
        )

    async def accept_head(self, envelope: Envelope, ask: Ask) -> bool:
        """Believe a head, fetching Roots that it needs; returns whether anything is new.

        A head that is older than ours, or another one with the same numbers, is passed over: the
        second raises an alarm. Raises what `TrustedDocuments.accept_head` raises otherwise. The
        caller stores what is new.
        """
        newer = False
        while True:
            try:
                return (
                    self._trusted.accept_head(envelope, now=self._now()) is Outcome.NEWER or newer
                )
            except RootUnknown as error:
                if not await self._follow_roots(error.version, ask):
                    raise
                newer = True
            except HeadForked as error:
                self._on_fork(DocumentId.of(envelope.payload), error)
                return newer
            except HeadRolledBack:
                return newer

    async def answer(
        self, request: Request, node: NodeId | None, key: PublicKey | None = None
    ) -> Answer:
        trusted = self._trusted
        if isinstance(request, GetRoot):
            root = trusted.roots.get(request.version)
            if root is not None:
                return RootDocument(request.request, root.encode())
        elif isinstance(request, GetGrants) and node is not None:
            grants = trusted.grants_envelope(request.grants_root)
            if grants is not None:
                return GrantsAnswer(request.request, grants.encode())
        elif isinstance(request, GetLeaf):
            if request.node != node:
                raise Refusal(ErrorCode.NOT_ENTITLED, "only one's own leaf before admission")
            leaf = await self._leaf_of(request.node, request.grants_root)
            if leaf is not None:
                # Who the peer is, it has only said so far: its key is what TLS has shown.
                facts = read_items(leaf.node, leaf.items).facts
                if facts.key != key or not self._stands(facts.node, leaf.grants_root):
                    raise Refusal(ErrorCode.NOT_ENTITLED, "only one's own leaf before admission")
                return LeafAnswer(request.request, leaf.encode())
        raise Refusal(ErrorCode.UNKNOWN_DOCUMENT, "it is not held here")

    def _stands(self, node: NodeId, grants_root: DocumentId) -> bool:
        """Whether the head accepts what that Grants root says about the node."""
        head = self._trusted.head
        return (
            head is not None
            and grants_root in head.grants_roots
            and not head.denies(DENIED_NODE, node, grants_root)
        )

    async def _newest_leaf(self, ask: Ask) -> LeafDocument:
        """This node's leaf under the newest accepted Grants that it can be had for."""
        head = self._trusted.head
        accepted = head.grants_roots if head else ()
        for grants_root in accepted:
            leaf = await self._leaf_of(self._node, grants_root)
            if leaf is not None and self._trusted.grants(grants_root) is not None:
                return leaf
        # None of the leaves at hand is accepted any more: this node was away for long. A
        # neighbour may not have the very newest, since it came by it through others.
        for grants_root in accepted[:MAX_LEAVES_ASKED]:
            try:
                if await self._hold_grants(grants_root, b"", ask):
                    await self._keep()
                answer = await ask(GetLeaf(1, self._node, grants_root))
            except PeerRefused as error:
                log.info("leaf_not_given", why=str(error))
                continue
            if isinstance(answer, LeafAnswer):
                document = LeafDocument.decode(answer.leaf)
                self._trusted.check_leaf(document)
                if document.node != self._node:
                    raise TrustError("the leaf is another node's")
                await self._keep_leaf(document)
                return document
        raise Refusal(ErrorCode.NOT_READY, "this node has no leaf under accepted Grants")

    async def _follow_roots(self, version: int, ask: Ask) -> bool:
        """Fetch and believe Roots one by one up to `version`; whether any is new."""
        newer = False
        while self._trusted.root is not None and self._trusted.root.version < version:
            answer = await ask(GetRoot(1, self._trusted.root.version + 1))
            if not isinstance(answer, RootDocument):
                raise FormatError("not a Root")
            envelope = Envelope.decode(answer.envelope, max_bytes=MAX_ROOT_BYTES)
            if self._trusted.accept_root(envelope) is not Outcome.NEWER:
                raise TrustError("a Root was sent again instead of the next one")
            newer = True
        return newer

    async def _hold_grants(self, grants_root: DocumentId, encoded: bytes, ask: Ask) -> bool:
        """Make sure that an accepted Grants root is held; whether it is new."""
        trusted = self._trusted
        if trusted.grants(grants_root) is not None:
            return False
        if trusted.head is None or grants_root not in trusted.head.grants_roots:
            raise GrantsNotAccepted(grants_root, named=False)
        envelope = Envelope.decode(encoded, max_bytes=MAX_GRANTS_ROOT_BYTES) if encoded else None
        if envelope is None or DocumentId.of(envelope.payload) != grants_root:
            answer = await ask(GetGrants(1, grants_root))
            if not isinstance(answer, GrantsAnswer):
                raise FormatError("not a Grants root")
            envelope = Envelope.decode(answer.envelope, max_bytes=MAX_GRANTS_ROOT_BYTES)
        trusted.accept_grants(envelope)
        return True
