"""Answers requests for pieces of manifests: whole, or as deltas against pieces that a peer has."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import trio

from archid.net.errors import Refusal
from archid.store.errors import DocumentMissing
from archid.store.library import Library
from archid.store.piece_deltas import deltas
from protocol.messages import (
    Answer,
    ErrorCode,
    GetPieceDeltas,
    GetPieces,
    PieceAnswer,
    PieceDelta,
)


async def piece_answers(
    library: Library, request: GetPieces | GetPieceDeltas
) -> AsyncGenerator[Answer, None]:
    """One answer for each piece, in the order asked; raises Refusal for what is not here."""
    number, manifest = request.request, request.manifest
    try:
        if isinstance(request, GetPieces):
            for piece in request.piece_ids:
                data = await trio.to_thread.run_sync(library.seeding.piece, manifest, piece)
                yield PieceAnswer(number, piece, data)
        else:
            made = await trio.to_thread.run_sync(
                deltas, library, manifest, request.piece_ids, request.bases
            )
            for piece, delta in zip(request.piece_ids, made, strict=True):
                yield PieceDelta(number, piece, delta.ranges, delta.data)
    except DocumentMissing as error:
        raise Refusal(
            ErrorCode.UNKNOWN_MANIFEST, "that piece of that manifest is not held here"
        ) from error
