"""Answers what one admitted peer asks for, as far as the peer may read it.

Every request is judged here, documents and content alike, and again when its answer is ready to
go, since the head may have changed meanwhile; nothing below this module knows who asks. Requests
of a peer are answered in order; those for spans, which wait for their turn, hold up only one
another. What cannot be answered is refused with a typed code, and the
connection lives on; only a peer that was revoked is cut off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext, suppress
from typing import Final

import trio

from archid.errors import ArchidError
from archid.log import SparingLog, get_logger
from archid.net.errors import PeerLost, Refusal
from archid.net.lane_desk import LaneDesk
from archid.net.peer import Peer
from archid.store.documents import DocumentStore
from archid.store.errors import DocumentMissing
from archid.store.library import Library
from archid.sync.access import Access
from archid.sync.piece_answers import piece_answers
from archid.sync.span_answers import SpanAnswers
from archid.sync.span_exchange import SpanExchange, SpanNews
from archid.sync.span_runs import SpanRuns
from archid.sync.trust_keeper import TrustKeeper
from archid.sync.upload_turns import line_of
from archid.sync.whereabouts import Whereabouts
from protocol.errors import ProtocolError
from protocol.facts import NodeFacts
from protocol.grants import LeafDocument, read_items
from protocol.ids import DocumentId, ManifestId, NodeId
from protocol.messages import (
    Answer,
    Entitle,
    Entitled,
    ErrorCode,
    GetAny,
    GetGrants,
    GetHave,
    GetHead,
    GetHolders,
    GetLeaf,
    GetList,
    GetManifest,
    GetPage,
    GetPieceDeltas,
    GetPieces,
    GetRoot,
    GetSpan,
    GrantsAnswer,
    HaveAnswer,
    HaveUpdate,
    HeadAnswer,
    Holder,
    HoldersAnswer,
    LeafAnswer,
    ListAnswer,
    ManifestAnswer,
    OpenLane,
    PageAnswer,
    Request,
    RootDocument,
    SpanAnswer,
)
from protocol.refusals import GrantsNotAccepted, NodeDenied, NotEntitled
from protocol.serve_turns import MANY_SPANS, Turn

log = get_logger(__name__)
_sparing = SparingLog(log)

_USUAL: Final = frozenset({ErrorCode.CANCELLED, ErrorCode.UNKNOWN_MANIFEST})
_OTHER_LEAF: Final = "that leaf belongs to another site"


class Session:
    """The serving side of one connection."""

    def __init__(
        self,
        peer: Peer,
        access: Access,
        *,
        keeper: TrustKeeper,
        documents: DocumentStore,
        library: Library,
        spans: SpanExchange,
        lanes: LaneDesk,
        whereabouts: Whereabouts | None = None,
    ) -> None:
        self._peer = peer
        self._access = access
        self._keeper = keeper
        self._documents = documents
        self._library = library
        self._spans = spans
        self._lanes = lanes
        self._whereabouts = whereabouts
        self._content = SpanAnswers(peer, library, spans, on_rotten=self._rotten)
        self._runs = SpanRuns(
            peer,
            access,
            judge=self._require_access,
            library=library,
            spans=spans,
            on_rotten=self._content.found_rotten,
        )
        self._for_spans: deque[Request] = deque()
        """Requests for spans that were not served yet; the connection bounds how many are open."""
        self._for_spans_came = trio.Event()
        self._following: dict[ManifestId, tuple[SpanNews, int]] = {}
        self._owed: set[ManifestId] = set()
        """Versions that the peer knows to be here in part, and that nothing is verified of now or
        that it may not read now: it is told of all that comes once that is otherwise."""

    async def run(self) -> None:
        """Answer until the peer is gone."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_spans)
                nursery.start_soon(self._serve_spans)
                with suppress(PeerLost):
                    async for request in self._peer.requests:
                        if isinstance(request, GetSpan | GetAny):
                            self._for_spans.append(request)
                            self._for_spans_came.set()
                            self._runs.go_on(self._for_spans)
                        else:
                            await self._serve(request)
                nursery.cancel_scope.cancel()
        finally:
            # Whoever runs this cancels it with the connection, which nearly always comes first.
            self._spans.peer_lost(self._peer)
            if self._whereabouts is not None:
                self._whereabouts.peer_lost(self._peer)

    async def _serve_spans(self) -> None:
        try:
            while True:
                await self._for_spans_came.wait()
                self._for_spans_came = trio.Event()
                while self._for_spans:
                    await self._serve_first(self._for_spans)
        except PeerLost as error:
            # A lane may be lost first, or alone. Who lives on without it would wait for spans that
            # nobody serves; if the connection has an end of its own coming, that says why.
            with trio.move_on_after(self._peer.settings.goodbye_timeout_s):
                await self._peer.closed.wait()
            self._peer.disconnect(ErrorCode.CLOSING, str(error))

    async def _serve_first(self, waiting: deque[Request]) -> None:
        """Serve the first of these requests, or as many as go in one run."""
        try:
            count = await self._runs.send(waiting)
        except Refusal as refusal:
            await self._refuse(waiting.popleft(), refusal.reason, refusal.text)
            return
        for _ in range(count):
            waiting.popleft()
        if not count:
            await self._serve(waiting.popleft())

    async def _serve(self, request: Request) -> None:
        try:
            if not self._peer.still_wants(request):
                raise Refusal(ErrorCode.CANCELLED, "cancelled")
            self._require_access(request)
            async with self._slot(request), self._turn_of(request) as turn:
                await self._answer(request, turn)
        except Refusal as refusal:
            await self._refuse(request, refusal.reason, refusal.text)
        except DocumentMissing as error:
            await self._refuse(request, ErrorCode.UNKNOWN_DOCUMENT, str(error))
        except PeerLost:
            raise
        except (ArchidError, ProtocolError, OSError) as error:
            _sparing.error("request_failed", request=type(request).__name__, why=str(error))
            await self._refuse(request, ErrorCode.INTERNAL, "this node cannot read it now")

    def _slot(self, request: Request) -> AbstractAsyncContextManager[None]:
        if isinstance(request, GetSpan | GetAny):
            return self._spans.slots.one(self._peer.facts.node)
        return nullcontext()

    def _turn_of(self, request: Request) -> AbstractAsyncContextManager[Turn | None]:
        if isinstance(request, GetSpan | GetAny):
            facts = self._peer.facts
            return self._spans.turns.one(
                facts.node, lambda: self._lacks(request), site=line_of(facts)
            )
        return nullcontext()

    def _lacks(self, request: GetSpan | GetAny) -> int:
        """How many spans the peer lacks, as far as a request tells."""
        if isinstance(request, GetSpan) or not self._peer.still_wants(request):
            return MANY_SPANS
        return len(self._spans.still_wanted(self._peer, request))

    async def _answer(self, request: Request, turn: Turn | None) -> None:
        size_bytes = 0
        async with aclosing(self._answers(request, turn)) as answers:
            async for answer in answers:
                self._require_access(request)
                await self._peer.answer(answer)
                size_bytes += len(answer.data) if isinstance(answer, SpanAnswer) else 0
        turns = self._spans.turns
        if turn is not None and size_bytes and turns.crowded(self._peer.node):
            await self._peer.until_gone()
            turns.sent(turn, size_bytes)

    async def _refuse(self, request: Request, code: ErrorCode, text: str) -> None:
        # Who looks for a version asks everybody; that it is not here is no news.
        told = log.debug if code in _USUAL else _sparing.info
        told(
            "request_refused",
            node=self._peer.facts.node.short,
            request=type(request).__name__,
            code=code.name_text,
        )
        await self._peer.refuse(request, code, text)

    async def _answers(self, request: Request, turn: Turn | None) -> AsyncGenerator[Answer, None]:
        match request:
            case GetRoot():
                data = await trio.to_thread.run_sync(self._documents.get_root, request.version)
                yield RootDocument(request.request, data)
            case GetHead():
                yield HeadAnswer(request.request, *self._keeper.head_bytes())
            case GetGrants():
                envelope = self._keeper.trust.grants_envelope(request.grants_root)
                if envelope is None:
                    raise Refusal(ErrorCode.UNKNOWN_DOCUMENT, "that Grants root is not held here")
                yield GrantsAnswer(request.request, envelope.encode())
            case GetLeaf():
                yield await self._leaf(request)
            case GetList():
                index = await trio.to_thread.run_sync(self._documents.get_list, request.list_id)
                yield ListAnswer(request.request, index)
            case GetPage():
                page = await trio.to_thread.run_sync(self._documents.get_page, request.page_id)
                yield PageAnswer(request.request, page)
            case Entitle():
                self._entitle(request)
                yield Entitled(request.request)
            case GetManifest():
                yield ManifestAnswer(request.request, await self._manifest(request.manifest))
            case GetPieces() | GetPieceDeltas():
                async with aclosing(piece_answers(self._library, request)) as answers:
                    async for answer in answers:
                        yield answer
            case GetHave():
                yield await self._have(request)
            case GetHolders():
                yield HoldersAnswer(request.request, self._others(request.manifest))
            case GetSpan():
                yield await self._content.named(request, turn)
            case GetAny():
                async for answer in self._content.any_of(request, turn):
                    yield answer
            case OpenLane():
                yield self._lanes.offer(self._peer, request)
            case _:
                raise Refusal(ErrorCode.PROTOCOL_ERROR, "this node does not answer that")

    async def _leaf(self, request: GetLeaf) -> Answer:
        try:
            data, owner = await trio.to_thread.run_sync(
                self._leaf_and_owner, request.node, request.grants_root
            )
        except DocumentMissing:
            # Whether a leaf is here is told only to those who might have read it.
            if self._access.reads_everything or request.node == self._peer.facts.node:
                raise
            raise Refusal(ErrorCode.NOT_ENTITLED, _OTHER_LEAF) from None
        if not self._access.may_read_leaf(owner):
            raise Refusal(ErrorCode.NOT_ENTITLED, _OTHER_LEAF)
        return LeafAnswer(request.request, data)

    def _leaf_and_owner(self, node: NodeId, grants_root: DocumentId) -> tuple[bytes, NodeFacts]:
        data = self._documents.get_leaf(node, grants_root)
        try:
            leaf = LeafDocument.decode(data)
            return data, read_items(leaf.node, leaf.items).facts
        except (ProtocolError, IndexError) as error:
            raise DocumentMissing("leaves", node.hex()) from error

    def _entitle(self, request: Entitle) -> None:
        try:
            self._access.show(request.manifest, request.proof)
            if request.manifest in self._owed:
                self._spans.changed.fire()
            self._spans.sought(self._peer, request.manifest)
            if self._whereabouts is not None:
                self._whereabouts.seeks(self._peer, request.manifest)
        except NotEntitled as error:
            raise Refusal(ErrorCode.NOT_ENTITLED, str(error)) from error
        except NodeDenied as error:
            raise Refusal(ErrorCode.DENIED, str(error)) from error
        except GrantsNotAccepted as error:
            # Accepted but not held: this node is behind and will ask for it by itself.
            code = ErrorCode.NOT_READY if error.named else ErrorCode.BAD_PROOF
            raise Refusal(code, str(error)) from error
        except ProtocolError as error:
            raise Refusal(ErrorCode.BAD_PROOF, str(error)) from error

    def _others(self, manifest: ManifestId) -> tuple[Holder, ...]:
        if self._whereabouts is None:
            return ()
        return self._whereabouts.others(self._peer.facts, manifest)

    async def _manifest(self, manifest: ManifestId) -> bytes:
        try:
            return await trio.to_thread.run_sync(self._library.publication, manifest)
        except DocumentMissing as error:
            raise Refusal(ErrorCode.UNKNOWN_MANIFEST, "that manifest is not held here") from error

    async def _have(self, request: GetHave) -> Answer:
        manifest = request.manifest
        # Looked at first: what is verified meanwhile is told twice rather than not at all.
        news = self._spans.news(manifest)
        told = len(news.came) if news else 0
        if self._library.holds(manifest) and not self._library.damage.chunks(manifest):
            return HaveAnswer(request.request, complete=True, bitmaps=())
        bitmaps = await trio.to_thread.run_sync(self._library.seeding.shared_bitmaps, manifest)
        if bitmaps is None:
            raise Refusal(ErrorCode.UNKNOWN_MANIFEST, "that manifest is not held here")
        if news is not None:
            self._following[manifest] = (news, told)
        else:  # it may be fetched or repaired by now
            self._owed.add(manifest)
        self._spans.changed.fire()  # some may have come before this was followed
        return HaveAnswer(request.request, complete=False, bitmaps=tuple(bitmaps))

    def _rotten(self, manifest: ManifestId) -> None:
        if self._library.holds(manifest):
            self._owed.add(manifest)
        self._spans.changed.fire()  # it may be under repair already

    async def _tell_spans(self) -> None:
        """Pass on what is verified here of versions whose have-map the peer has asked for."""
        seen = -1
        with suppress(PeerLost, ProtocolError):  # whoever judges the peer ends its connection
            while True:
                seen = await self._spans.changed.wait(seen)
                for manifest in tuple(self._following):
                    await self._tell_of(manifest)
                for manifest in self._owed.intersection(self._spans.under_way()):
                    news = self._spans.news(manifest)
                    if news is not None and self._access.may_read(manifest):
                        self._owed.discard(manifest)
                        self._following[manifest] = (news, 0)
                        await self._tell_of(manifest)

    async def _tell_of(self, manifest: ManifestId) -> None:
        news, told = self._following[manifest]
        self._access.judge_again()
        while told < len(news.came) and self._access.may_read(manifest):
            piece, n = news.came[told]
            if not news.held_by(self._peer, piece, n):
                await self._peer.announce(HaveUpdate(manifest, piece, n))
            told += 1
        if self._following[manifest][0] is not news:
            return  # asked for anew meanwhile
        if news.ended or not self._access.may_read(manifest):
            del self._following[manifest]
            self._owed.add(manifest)
        else:
            self._following[manifest] = (news, told)

    def _require_access(self, request: Request) -> None:
        """Raise Refusal unless the peer may have the answer by what counts at this moment.

        A peer that is not believed any more is cut off: PeerLost.
        """
        try:
            self._access.judge_again()
        except ProtocolError as error:
            self._peer.disconnect(self._access.code, str(error))
            raise self._peer.gone() from error
        match request:
            case GetList() | GetPage() if not self._access.reads_everything:
                raise Refusal(ErrorCode.NOT_ENTITLED, "lists are for central and REPOs only")
            case (
                GetManifest(manifest=manifest)
                | GetPieces(manifest=manifest)
                | GetPieceDeltas(manifest=manifest)
                | GetHave(manifest=manifest)
                | GetSpan(manifest=manifest)
                | GetAny(manifest=manifest)
                | GetHolders(manifest=manifest)
            ) if not self._access.may_read(manifest):
                raise Refusal(
                    ErrorCode.NOT_ENTITLED, f"no entry was shown for manifest {manifest.short}"
                )
