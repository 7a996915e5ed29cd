"""Answers one request for a span: picks it if that is left to this node, and has it read.

What cannot be answered is refused with a typed code. Judging who asks, and sending, is left to
`archid.sync.session`; several at a time go by `archid.sync.span_runs`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

import trio

from archid.errors import NotFound
from archid.log import SparingLog, get_logger
from archid.net.errors import Refusal
from archid.net.peer import Peer
from archid.store.errors import ChunkCorrupt, DocumentMissing
from archid.store.library import Library
from archid.sync.span_exchange import SpanExchange
from protocol.errors import ProtocolError
from protocol.ids import ManifestId
from protocol.messages import Answer, ErrorCode, GetAny, GetSpan, Picked, SpanAnswer
from protocol.serve_turns import Turn

_sparing = SparingLog(get_logger(__name__))


class SpanAnswers:
    """The spans that one peer is given."""

    def __init__(
        self,
        peer: Peer,
        library: Library,
        spans: SpanExchange,
        *,
        on_rotten: Callable[[ManifestId], None],
    ) -> None:
        """`on_rotten` is told of a version of which a chunk was found damaged here."""
        self._peer = peer
        self._library = library
        self._spans = spans
        self._on_rotten = on_rotten

    async def any_of(self, request: GetAny, turn: Turn | None) -> AsyncGenerator[Answer, None]:
        """Pick a span now, when its turn has come, say which, and send it."""
        manifest = request.manifest
        wanted = self._spans.still_wanted(self._peer, request)
        if not wanted:
            raise Refusal(ErrorCode.CANCELLED, "nothing of it is wanted any more")
        try:
            found = self._library.seeding.readable_at_hand(manifest, wanted)
            if found is None:
                found = await trio.to_thread.run_sync(
                    self._library.seeding.readable, manifest, wanted
                )
        except (NotFound, DocumentMissing) as error:
            raise Refusal(ErrorCode.UNKNOWN_MANIFEST, "that manifest is not held here") from error
        layout, among = found
        picked = self._spans.pick(self._peer, manifest, among, span_count=len(layout.spans))
        if picked is None:
            raise Refusal(ErrorCode.UNKNOWN_SPAN, "none of these spans is held here")
        span = layout.spans[picked]
        told = sent = False
        try:
            yield Picked(request.request, span.piece_index, span.n)
            told = True
            await self._begin(turn)
            if not self._peer.still_wants(request):
                raise Refusal(ErrorCode.CANCELLED, "cancelled")
            named = GetSpan(request.request, manifest, span.piece, span.n, layout.others(span))
            answer = await self._span(named)
            sent = True
            yield answer
        finally:
            if not sent:
                self._spans.not_sent(self._peer, manifest, picked, told=told)

    def found_rotten(self, manifest: ManifestId, error: ChunkCorrupt) -> None:
        """A chunk that was to be sent does not hold: say so."""
        _sparing.error("chunk_rotten", manifest=manifest.short, chunk=error.chunk.short)
        self._on_rotten(manifest)

    async def named(self, request: GetSpan, turn: Turn | None) -> SpanAnswer:
        """Send the span that was asked for by name when its turn has come."""
        await self._begin(turn)
        return await self._span(request)

    async def _begin(self, turn: Turn | None) -> None:
        if turn is not None:
            await self._spans.turns.begin(turn)

    async def _span(self, request: GetSpan) -> SpanAnswer:
        try:
            data = await trio.to_thread.run_sync(
                self._library.seeding.read_span,
                request.manifest,
                request.piece,
                request.n,
                request.skip,
            )
        except ChunkCorrupt as error:
            self.found_rotten(request.manifest, error)
            raise Refusal(
                ErrorCode.CHUNK_CORRUPT, "a chunk of that span is damaged here"
            ) from error
        except DocumentMissing as error:
            raise Refusal(ErrorCode.UNKNOWN_MANIFEST, "that manifest is not held here") from error
        except (NotFound, ProtocolError) as error:
            whole = isinstance(error, NotFound) and error.code == "unknown_manifest"
            code = ErrorCode.UNKNOWN_MANIFEST if whole else ErrorCode.UNKNOWN_SPAN
            raise Refusal(code, str(error)) from error
        return SpanAnswer(request.request, request.piece, request.n, data)
