"""Proves who this node is, judges who a peer is, and brings both sides to the newer head.

This is the only place where a connection that has proven nothing touches what the node believes:
Roots prove themselves, heads and Grants are verified before they count, and a peer is admitted
by its facts alone. A peer that was away for so long that its proof is under Grants that are no
longer accepted may ask for its own leaf first, or is known from a leaf that this node keeps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

from archid import __version__
from archid.identity import Identity
from archid.log import get_logger
from archid.net.doorkeeper import Ask
from archid.net.errors import PeerRefused, Refusal
from archid.store.errors import DocumentMissing
from archid.sync.trust_keeper import TrustKeeper, decode_envelope
from protocol.envelope import PublicKey
from protocol.errors import ProtocolError
from protocol.facts import NodeFacts
from protocol.grants import LeafDocument, Proof
from protocol.head import Head
from protocol.ids import DocumentId, NodeId
from protocol.messages import (
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
from protocol.messages.session import NONCE_BYTES
from protocol.refusals import (
    FactsMismatch,
    GrantsNotAccepted,
    HeadForked,
    HeadRolledBack,
    NodeDenied,
    RootUnknown,
    WrongEpoch,
)

log = get_logger(__name__)

MAX_ROOT_STEPS: Final = 64
"""How many Roots one connection may bring before it is refused."""
PROTOCOL_VERSION: Final = 1

A = TypeVar("A", bound=Answer)


class FleetDoorkeeper:
    """Implements `archid.net.doorkeeper.Doorkeeper` over what the node believes."""

    def __init__(
        self,
        identity: Identity,
        keeper: TrustKeeper,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity = identity
        self._keeper = keeper
        self._clock = clock

    def hello(self) -> Hello:
        trust = self._keeper.trust
        return Hello(
            min_version=PROTOCOL_VERSION,
            max_version=PROTOCOL_VERSION,
            features=(),
            fleet=trust.fleet,
            node=self._identity.node_id,
            root_version=self._keeper.root.version,
            head_order=trust.head.order if trust.head is not None else (0, 0),
            nonce=os.urandom(NONCE_BYTES),
            software=f"archid {__version__}",
            now_s=max(0, int(self._clock())),
        )

    async def prove(self, peer: Hello, ask: Ask) -> Prove:
        """This node's facts under the newest Grants that it has a leaf for.

        When the peer has shown a newer head, this node's leaf under it is asked for first; where
        the peer cannot give it, the older one usually still is accepted.
        """
        node = self._identity.node_id
        newest = self._keeper.grants_root
        if peer.head_order >= self._keeper.head.order:
            await self._fetch_own_leaf(newest, ask)
        found = self._keeper.newest_leaf(node)
        if found is None:
            raise Refusal(
                ErrorCode.NOT_READY, "this node holds no leaf that its head still accepts"
            )
        document, _ = found
        head, _ = self._keeper.head_bytes()
        grants = self._keeper.trust.grants_envelope(document.grants_root)
        behind = peer.head_order < self._keeper.head.order
        return Prove(
            head=head if behind else b"",
            grants=grants.encode() if grants is not None else b"",
            proof=document.proof().encode(),
        )

    async def _fetch_own_leaf(self, grants_root: DocumentId, ask: Ask) -> None:
        node = self._identity.node_id
        if self._keeper.documents.has_leaf(node, grants_root):
            return
        try:
            if self._keeper.trust.grants(grants_root) is None:
                answer = await _ask(ask, GetGrants(0, grants_root), GrantsAnswer)
                await self._keeper.accept_grants(answer.envelope)
            leaf = await _ask(ask, GetLeaf(0, node, grants_root), LeafAnswer)
            await self._keeper.keep_leaf(leaf.leaf, node)
        except (PeerRefused, ProtocolError) as error:
            log.debug("own_leaf_not_given", why=str(error))

    async def judge(self, prove: Prove, *, peer: Hello, peer_key: PublicKey, ask: Ask) -> NodeFacts:
        """The peer's facts; raises ProtocolError, or Refusal where the code matters."""
        if prove.head:
            await self._take_head(prove, ask)
        elif prove.grants:
            await self._take_grants(prove.grants)
        proof = Proof.decode(prove.proof)
        if peer.node != proof.node:
            raise Refusal(ErrorCode.BAD_PROOF, "the proof is another node's than the Hello")
        try:
            return await self._check(proof, peer_key, ask)
        except NodeDenied as error:
            raise Refusal(ErrorCode.DENIED, str(error)) from error
        except FactsMismatch as error:
            raise Refusal(ErrorCode.BAD_PROOF, str(error)) from error

    async def _check(self, proof: Proof, peer_key: PublicKey, ask: Ask) -> NodeFacts:
        trust = self._keeper.trust
        try:
            return trust.check_facts(proof, peer_key=peer_key)
        except GrantsNotAccepted as error:
            if error.named:
                answer = await _ask(ask, GetGrants(0, proof.grants_root), GrantsAnswer)
                await self._keeper.accept_grants(answer.envelope)
                return trust.check_facts(proof, peer_key=peer_key)
            # Away for too long: what this node keeps about it may be newer than what it shows.
            found = self._keeper.newest_leaf(proof.node)
            if found is None:
                raise
            return trust.check_facts(found[0].proof(), peer_key=peer_key)

    async def _take_head(self, prove: Prove, ask: Ask) -> None:
        for _ in range(MAX_ROOT_STEPS):
            try:
                await self._keeper.accept_head(prove.head, prove.grants)
            except RootUnknown as error:
                await self._fetch_next_root(error.version, ask)
            except WrongEpoch as error:
                if not await self._catch_up(prove, ask):
                    raise Refusal(ErrorCode.BAD_PROOF, str(error)) from error
            except (HeadRolledBack, HeadForked) as error:
                # The peer is behind, or shows a fork: its proof is judged by our own head.
                log.debug("head_not_taken", why=str(error))
                if prove.grants:
                    await self._take_grants(prove.grants)
                return
            else:
                return
        raise Refusal(ErrorCode.BAD_PROOF, "too many Roots to catch up with")

    async def _catch_up(self, prove: Prove, ask: Ask) -> bool:
        """Fetch the next Root when the peer's head is of a later epoch; False when it is not."""
        head = Head.decode(decode_envelope(prove.head).payload)
        if head.root_version <= self._keeper.root.version:
            return False
        await self._fetch_next_root(head.root_version, ask)
        return True

    async def _fetch_next_root(self, newest: int, ask: Ask) -> None:
        version = self._keeper.root.version + 1
        if version > newest:
            raise Refusal(ErrorCode.BAD_PROOF, "the head names a Root that does not exist")
        answer = await _ask(ask, GetRoot(0, version), RootDocument)
        await self._keeper.accept_root(answer.envelope)

    async def _take_grants(self, grants: bytes) -> None:
        try:
            await self._keeper.accept_grants(grants)
        except GrantsNotAccepted:
            return  # the proof decides

    async def answer(self, request: Request, node: NodeId | None) -> Answer:
        """What a peer may ask before it is admitted: Roots, Grants, and its own leaf."""
        documents = self._keeper.documents
        try:
            if isinstance(request, GetRoot):
                return RootDocument(request.request, documents.get_root(request.version))
            if isinstance(request, GetGrants):
                envelope = self._keeper.trust.grants_envelope(request.grants_root)
                if envelope is not None:
                    return GrantsAnswer(request.request, envelope.encode())
            elif isinstance(request, GetLeaf):
                if request.node != node:
                    raise Refusal(ErrorCode.NOT_ENTITLED, "that is another node's leaf")
                leaf = documents.get_leaf(request.node, request.grants_root)
                LeafDocument.decode(leaf)
                return LeafAnswer(request.request, leaf)
        except DocumentMissing as error:
            raise Refusal(ErrorCode.UNKNOWN_DOCUMENT, str(error)) from error
        raise Refusal(ErrorCode.UNKNOWN_DOCUMENT, "that is not held here")


async def _ask(ask: Ask, request: Request, answer_type: type[A]) -> A:
    answer = await ask(request)
    if not isinstance(answer, answer_type):
        raise Refusal(ErrorCode.PROTOCOL_ERROR, "the answer is of another type")
    return answer
