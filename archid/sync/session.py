"""Answers what one admitted peer asks for, as far as the peer may read it.

Every request is judged here, documents and content alike; nothing below this module knows who
asks. Requests of a peer are answered in order. What cannot be answered is refused with a typed
code, and the connection lives on: only the protocol machine ends connections.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import trio

from archid.errors import ArchidError, NotFound
from archid.log import get_logger
from archid.net.errors import PeerLost, Refusal
from archid.net.peer import Peer
from archid.store.documents import DocumentStore
from archid.store.errors import ChunkCorrupt, DocumentMissing
from archid.store.library import Library
from archid.sync.access import Access
from archid.sync.trust_keeper import TrustKeeper
from protocol.errors import ProtocolError
from protocol.ids import ManifestId
from protocol.messages import (
    Answer,
    Entitle,
    Entitled,
    ErrorCode,
    GetGrants,
    GetHave,
    GetHead,
    GetLeaf,
    GetList,
    GetManifest,
    GetPage,
    GetPieces,
    GetRoot,
    GetSpan,
    GrantsAnswer,
    HaveAnswer,
    HeadAnswer,
    LeafAnswer,
    ListAnswer,
    ManifestAnswer,
    PageAnswer,
    PieceAnswer,
    Request,
    RootDocument,
    SpanAnswer,
)
from protocol.refusals import GrantsNotAccepted, NodeDenied, NotEntitled

log = get_logger(__name__)


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
        on_damage: Callable[[ManifestId, ChunkCorrupt], Awaitable[None]],
    ) -> None:
        self._peer = peer
        self._access = access
        self._keeper = keeper
        self._documents = documents
        self._library = library
        self._on_damage = on_damage

    async def run(self) -> None:
        """Answer until the peer is gone."""
        try:
            async for request in self._peer.requests:
                await self._serve(request)
        except PeerLost:
            return

    async def _serve(self, request: Request) -> None:
        try:
            if not self._peer.still_wants(request):
                raise Refusal(ErrorCode.CANCELLED, "cancelled")
            async with aclosing(self._answers(request)) as answers:
                async for answer in answers:
                    await self._peer.answer(answer)
        except Refusal as refusal:
            await self._refuse(request, refusal.reason, refusal.text)
        except DocumentMissing as error:
            await self._refuse(request, ErrorCode.UNKNOWN_DOCUMENT, str(error))
        except PeerLost:
            raise
        except (ArchidError, OSError) as error:
            log.error("request_failed", request=type(request).__name__, why=str(error))
            await self._refuse(request, ErrorCode.INTERNAL, "this node cannot read it now")

    async def _refuse(self, request: Request, code: ErrorCode, text: str) -> None:
        log.info(
            "request_refused",
            node=self._peer.facts.node.short,
            request=type(request).__name__,
            code=code.name_text,
        )
        await self._peer.refuse(request, code, text)

    async def _answers(self, request: Request) -> AsyncGenerator[Answer, None]:
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
                self._require_everything("lists")
                index = await trio.to_thread.run_sync(self._documents.get_list, request.list_id)
                yield ListAnswer(request.request, index)
            case GetPage():
                self._require_everything("pages of lists")
                page = await trio.to_thread.run_sync(self._documents.get_page, request.page_id)
                yield PageAnswer(request.request, page)
            case Entitle():
                self._entitle(request)
                yield Entitled(request.request)
            case GetManifest():
                self._require(request.manifest)
                yield ManifestAnswer(request.request, await self._manifest(request.manifest))
            case GetPieces():
                self._require(request.manifest)
                for piece in request.piece_ids:
                    data = await trio.to_thread.run_sync(
                        self._library.piece, request.manifest, piece
                    )
                    yield PieceAnswer(request.request, piece, data)
            case GetHave():
                self._require(request.manifest)
                if not self._library.holds(request.manifest):
                    raise Refusal(ErrorCode.UNKNOWN_MANIFEST, "that manifest is not held here")
                yield HaveAnswer(request.request, complete=True, bitmaps=())
            case GetSpan():
                self._require(request.manifest)
                yield await self._span(request)
            case _:
                raise Refusal(ErrorCode.PROTOCOL_ERROR, "this node does not answer that")

    async def _leaf(self, request: GetLeaf) -> Answer:
        data = await trio.to_thread.run_sync(
            self._documents.get_leaf, request.node, request.grants_root
        )
        if not self._access.reads_everything and request.node != self._peer.facts.node:
            found = self._keeper.newest_leaf(request.node)
            if found is None or not self._access.may_read_leaf(found[1].facts):
                raise Refusal(ErrorCode.NOT_ENTITLED, "that leaf belongs to another site")
        return LeafAnswer(request.request, data)

    def _entitle(self, request: Entitle) -> None:
        try:
            self._access.show(request.manifest, request.proof)
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

    async def _manifest(self, manifest: ManifestId) -> bytes:
        try:
            return await trio.to_thread.run_sync(self._documents.get_manifest, manifest)
        except DocumentMissing as error:
            raise Refusal(ErrorCode.UNKNOWN_MANIFEST, "that manifest is not held here") from error

    async def _span(self, request: GetSpan) -> Answer:
        try:
            data = await trio.to_thread.run_sync(
                self._library.read_span, request.manifest, request.piece, request.n, request.skip
            )
        except ChunkCorrupt as error:
            log.error("chunk_rotten", manifest=request.manifest.short, chunk=error.chunk.short)
            await self._on_damage(request.manifest, error)
            raise Refusal(
                ErrorCode.CHUNK_CORRUPT, "a chunk of that span is damaged here"
            ) from error
        except (NotFound, ProtocolError) as error:
            raise Refusal(ErrorCode.UNKNOWN_SPAN, str(error)) from error
        return SpanAnswer(request.request, request.piece, request.n, data)

    def _require(self, manifest: ManifestId) -> None:
        if not self._access.may_read(manifest):
            raise Refusal(
                ErrorCode.NOT_ENTITLED, f"no entry was shown for manifest {manifest.short}"
            )

    def _require_everything(self, what: str) -> None:
        if not self._access.reads_everything:
            raise Refusal(ErrorCode.NOT_ENTITLED, f"{what} are for central and REPOs only")
