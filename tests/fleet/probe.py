"""Asks a peer for what a node may not have, with that node's real key, and writes down the answer.

The key, the certificate, the leaf and the trusted documents are those in the node's state folder,
so the connection is one that the peer admits like any other of this node. The node's daemon must
be stopped meanwhile: two connections of one node push one another out. Nothing is written into
the folder.

`ask_about_script` and `ask_about_others` are the usual questions; a `Reply` says for each the
typed refusal, or none, and how many payload bytes came. A connection that is refused everything
because it never worked would prove nothing: `ask_for_own` asks for what the node may read.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from archid.addresses import Address, parse_address
from archid.errors import ArchidError
from archid.identity import Identity
from archid.membership import Membership
from archid.net.admission import open_peer
from archid.net.doorkeeper import Ask, Doorkeeper
from archid.net.errors import PeerRefused
from archid.net.peer import Peer
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream
from archid.net.tls_contexts import client_context
from archid.net.trusted_doorkeeper import TrustedDoorkeeper
from archid.store.documents import DocumentStore
from archid.store.errors import DocumentMissing
from archid.store.layout import StatePaths
from archid.store.trust_file import TrustFile
from archid.sync.trust_restoring import restore_trust
from protocol.connection_events import Event, MessageReceived
from protocol.connection_states import Side
from protocol.facts import Entry, decode_item
from protocol.features import FEATURES
from protocol.grants import LeafDocument
from protocol.ids import DocumentId, ManifestId, NodeId
from protocol.limits import MAX_SPAN_CHUNKS
from protocol.messages import (
    Answer,
    Entitle,
    ErrorCode,
    GetAny,
    GetHave,
    GetHead,
    GetHolders,
    GetLeaf,
    GetList,
    GetManifest,
    GetPage,
    GetPieceDeltas,
    GetPieces,
    GetSpan,
    Hello,
    Prove,
    Request,
)
from protocol.trust import HeadForked
from tests.fleet.insider import InsiderKnowledge, ScriptIds

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Reply:
    """What came of one question."""

    request: str
    """The message asked with, and what was special about it."""
    code: ErrorCode | None
    """The typed refusal; None when there was none."""
    text: str
    payload_bytes: int
    """In every message that answered, a part of an answer included."""

    @property
    def refused(self) -> bool:
        """Refused with a type, and nothing given away."""
        return self.code is not None and self.payload_bytes == 0


class Probe:
    """A node's identity in other hands."""

    def __init__(self, state: Path) -> None:
        paths = StatePaths(state, state.parent / "scripts")
        self.identity = Identity.load(state)
        self.documents = DocumentStore(paths.documents)
        self.trust = restore_trust(
            Membership.load(paths.identity),
            documents=self.documents,
            trust_file=TrustFile(paths.trust),
            floor=(0, 0),
            now=time.time(),
        )
        if self.trust.root is None:
            raise LookupError(f"{state} holds no Root")
        self._context = client_context(self.identity, self.trust.root.ca_certificates)

    @property
    def node(self) -> NodeId:
        """Who this is."""
        return self.identity.node_id

    def own_proof(self, manifest: ManifestId | None = None) -> bytes:
        """The most that this node's own leaf proves: an entry for the manifest, else its facts.

        Raises LookupError when it holds no leaf.
        """
        for grants_root in self.trust.head.grants_roots if self.trust.head else ():
            try:
                leaf = LeafDocument.decode(self.documents.get_leaf(self.node, grants_root))
            except DocumentMissing:
                continue
            for index, item in enumerate(leaf.items):
                entry = decode_item(item)
                if isinstance(entry, Entry) and entry.manifest == manifest:
                    return leaf.proof(index).encode()
            return leaf.proof().encode()
        raise LookupError("this node holds no leaf of its own")

    @asynccontextmanager
    async def connect(self, address: Address) -> AsyncIterator[ProbedPeer]:
        """An admitted connection. Raises PeerRefused, PeerNotAdmitted, PeerLost, TlsRefused."""
        try:
            async with (
                self._dialled(address, _ReadingDoorkeeper(self)) as peer,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(_refuse_everything, peer)
                nursery.start_soon(_pass_over_notices, peer)
                yield ProbedPeer(peer)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:  # the body's own error, as it was
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from None

    async def ask_early(
        self, address: Address, requests: Sequence[Request], *, claim: NodeId | None = None
    ) -> list[Reply]:
        """The replies to what is asked before this side has proven anything.

        With `claim`, Hello names that node instead of this one, whose certificate TLS shows all
        the same. Nothing is proven afterwards: the connection ends with the last reply.
        """
        doorkeeper = _EarlyAsker(self, requests, claim or self.node)
        with suppress(_Asked):
            async with self._dialled(address, doorkeeper):
                pass
        return doorkeeper.replies

    @asynccontextmanager
    async def _dialled(self, address: Address, doorkeeper: Doorkeeper) -> AsyncIterator[Peer]:
        tcp = await trio.open_tcp_stream(address.host, address.port)
        stream = TLSStream(tcp, self._context, server_side=False)
        await stream.do_handshake()
        settings = PeerSettings(admission_timeout_s=TIMEOUT_S, request_timeout_s=TIMEOUT_S)
        async with open_peer(stream, doorkeeper, settings, side=Side.CLIENT, now=time.time) as peer:
            yield peer


class ProbedPeer:
    """The other end of an admitted connection, asked one question at a time."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._payload_bytes = 0
        # Counted where messages come in: of an answer in parts, parts may come before a refusal.
        self._handle = peer.handle
        peer.handle = self._count  # type: ignore[method-assign]

    @property
    def wire_bytes(self) -> int:
        """What has come over this connection in all, TLS and handshake included."""
        return self.peer.stream.wire_bytes_received

    async def ask(self, request: Request, note: str = "") -> Reply:
        """Ask, and say what came. Raises PeerLost when the connection ended instead."""
        before = self._payload_bytes
        name = type(request).__name__ + (f" ({note})" if note else "")
        try:
            await self.peer.request_all(request)
        except PeerRefused as refused:
            return Reply(name, refused.reason, refused.text, self._payload_bytes - before)
        return Reply(name, None, "", self._payload_bytes - before)

    async def _count(self, event: Event) -> None:
        if isinstance(event, MessageReceived) and isinstance(event.message, Answer):
            self._payload_bytes += payload_bytes(event.message)
        await self._handle(event)


def payload_bytes(answer: Answer) -> int:
    """The length of what a message carries, without its frame."""
    return sum(len(part) for part in answer.encode_payload())


async def ask_about_script(
    peer: ProbedPeer, script: ScriptIds, proofs: Mapping[str, bytes]
) -> list[Reply]:
    """Every question that leads to a script's content, each span's first and last included.

    `proofs` are shown one after the other, by what they are: a stolen one, an empty one.
    """
    manifest = script.manifest
    first, last = script.spans[0], script.spans[-1]
    questions: list[tuple[str, Request]] = [
        ("", GetManifest(1, manifest)),
        *((name, Entitle(1, manifest, proof)) for name, proof in proofs.items()),
        ("after Entitle", GetManifest(1, manifest)),
        ("", GetHave(1, manifest)),
        *(("one piece", GetPieces(1, manifest, (piece,))) for piece in script.pieces),
        ("all at once", GetPieces(1, manifest, script.pieces)),
        ("told by themselves", GetPieceDeltas(1, manifest, script.pieces, script.pieces)),
        ("told by nothing", GetPieceDeltas(1, manifest, script.pieces, ())),
        ("first span", GetSpan(1, manifest, *first, b"")),
        ("last span", GetSpan(1, manifest, *last, b"")),
        ("any span", GetAny(1, manifest, ((0, b"\x01"),))),
        ("", GetHolders(1, manifest)),
        ("nothing of a span", GetSpan(1, manifest, *first, b"\xff" * (MAX_SPAN_CHUNKS // 8))),
    ]
    return [
        await peer.ask(request, f"{script.kind}, {note}" if note else script.kind)
        for note, request in questions
    ]


async def ask_about_others(
    peer: ProbedPeer, known: InsiderKnowledge, others: Iterable[NodeId]
) -> list[Reply]:
    """Every question about documents that are not this node's: leaves, lists and pages."""
    questions: list[tuple[str, Request]] = [
        ("another's leaf", GetLeaf(1, other, grants_root))
        for other in others
        for grants_root in known.leaves[other]
    ]
    questions += [(kind, GetList(1, kind, list_id)) for kind, list_id in known.lists]
    questions += [(kind, GetPage(1, kind, list_id, page)) for kind, list_id, page in known.pages]
    return [await peer.ask(request, note) for note, request in questions]


async def ask_for_own(peer: ProbedPeer, known: InsiderKnowledge, own: NodeId) -> list[Reply]:
    """What any member may read: proves that the connection works."""
    return [
        await peer.ask(GetHead(1)),
        await peer.ask(GetLeaf(1, own, known.leaves[own][0]), "its own leaf"),
    ]


@dataclass(frozen=True)
class ProbeReport:
    """What one peer did with every question of one node."""

    own: tuple[Reply, ...]
    """What the node may have: answered, or the connection was of no use."""
    forbidden: tuple[Reply, ...]
    wire_bytes: int
    """All that came over the connection while the forbidden was asked for, TLS included."""

    @property
    def given(self) -> tuple[Reply, ...]:
        """The forbidden questions that were not refused, or not without a byte."""
        return tuple(reply for reply in self.forbidden if not reply.refused)


def probe_peer(
    state: Path,
    address: str,
    known: InsiderKnowledge,
    *,
    scripts: Iterable[ScriptIds],
    entitled: NodeId,
) -> ProbeReport:
    """Ask the peer at `address` everything, as the node of `state`, whose daemon is stopped.

    `entitled` is a node that may read the scripts: its proofs are shown as if they were one's
    own, and its leaf and those of all other sites asked for. Raises what `Probe.connect` raises.
    """
    return trio.run(_probe_peer, state, address, known, tuple(scripts), entitled)


async def _probe_peer(
    state: Path,
    address: str,
    known: InsiderKnowledge,
    scripts: Sequence[ScriptIds],
    entitled: NodeId,
) -> ProbeReport:
    probe = Probe(state)
    async with probe.connect(parse_address(address)) as peer:
        own = await ask_for_own(peer, known, probe.node)
        before = peer.wire_bytes
        forbidden: list[Reply] = []
        for script in scripts:
            proofs = {
                "no proof": b"",
                "a stolen proof": known.stolen_proof(entitled, script.manifest),
                "its own proof": probe.own_proof(script.manifest),
            }
            forbidden += await ask_about_script(peer, script, proofs)
        forbidden += await ask_about_others(peer, known, known.strangers(probe.node))
        return ProbeReport(tuple(own), tuple(forbidden), peer.wire_bytes - before)


class _ReadingDoorkeeper(TrustedDoorkeeper):
    """The node's own doorkeeper, but that nothing is written down."""

    def __init__(self, probe: Probe) -> None:
        self._documents = probe.documents
        super().__init__(
            node=probe.node,
            trusted=probe.trust,
            leaf_of=self._stored_leaf,
            keep_leaf=_keep_nothing,
            keep=_keep_nothing,
            on_fork=_raise_fork,
            software="archid probe",
            features=FEATURES,
        )

    async def _stored_leaf(self, node: NodeId, grants_root: DocumentId) -> LeafDocument | None:
        try:
            return LeafDocument.decode(self._documents.get_leaf(node, grants_root))
        except DocumentMissing:
            return None


class _Asked(ArchidError):
    """Everything was asked: the connection has done its work."""


class _EarlyAsker(_ReadingDoorkeeper):
    """Asks instead of proving."""

    def __init__(self, probe: Probe, requests: Sequence[Request], claim: NodeId) -> None:
        super().__init__(probe)
        self._requests = requests
        self._claim = claim
        self.replies: list[Reply] = []

    def hello(self) -> Hello:
        return replace(super().hello(), node=self._claim)

    async def prove(self, peer: Hello, ask: Ask) -> Prove:  # noqa: ARG002 - asks all alike
        for request in self._requests:
            name = f"{type(request).__name__} (before any proof)"
            try:
                answer = await ask(request)
            except PeerRefused as refused:
                self.replies.append(Reply(name, refused.reason, refused.text, 0))
            else:
                self.replies.append(Reply(name, None, "", payload_bytes(answer)))
        raise _Asked("everything was asked")


async def _keep_nothing(*_new: object) -> None:
    return


def _raise_fork(_other: DocumentId, error: HeadForked) -> None:
    raise error


async def _refuse_everything(peer: Peer) -> None:
    async for request in peer.requests:
        await peer.refuse(request, ErrorCode.NOT_READY, "this is a probe")


async def _pass_over_notices(peer: Peer) -> None:
    async for _notice in peer.notices:
        pass
