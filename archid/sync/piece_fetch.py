"""Brings the pieces of one manifest from a peer, as deltas where it can tell them so.

Where a version of the same script is here, its pieces are named as what deltas may refer to. What
comes is believed only by its id, and a piece of which a delta does not help comes whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import trio

from archid.net.peer import Peer
from archid.store.errors import DocumentMissing
from archid.store.library import Library
from archid.store.piece_deltas import pieces_before, undo_delta
from protocol.errors import FormatError
from protocol.features import DELTAS
from protocol.ids import PieceId
from protocol.limits import MAX_PIECES_ASKED
from protocol.manifest import ManifestRoot
from protocol.messages import Answer, GetPieceDeltas, GetPieces, PieceAnswer, PieceDelta
from protocol.piece_delta import bases_for


class PieceBatch(NamedTuple):
    """What one request asks for, and pieces here that are much like it."""

    pieces: tuple[PieceId, ...]
    bases: tuple[PieceId, ...]


class PieceFetch:
    """The pieces that a root names and that are not here yet."""

    def __init__(self, library: Library, root: ManifestRoot) -> None:
        self._library = library
        self._root = root
        self._wanted = [ref.id for ref in root.pieces]
        self._lengths = {ref.id: ref.length for ref in root.pieces}
        self._whole = False
        """Whether a base was lost, so that deltas are of no use any more."""

    async def batches(self) -> list[PieceBatch]:
        """What is missing, in requests; empty when everything is here."""
        return await trio.to_thread.run_sync(self._batches)

    async def bring(self, peer: Peer, batch: PieceBatch) -> None:
        """Ask for a batch and keep what comes.

        Raises ProtocolError for what was not asked for, PeerRefused, PeerLost, PeerTooSlow.
        """
        if batch.bases and DELTAS in peer.features:
            request = GetPieceDeltas(0, self._root.id, batch.pieces, batch.bases)
            answers = await peer.request_all(request)
        else:
            answers = await peer.request_all(GetPieces(0, self._root.id, batch.pieces))
        await trio.to_thread.run_sync(self._keep, batch, answers)

    def _batches(self) -> list[PieceBatch]:
        missing = self._library.missing_pieces(self._wanted)
        before: list[PieceId] = []
        if missing and not self._whole:
            before = pieces_before(self._library, self._root)
        parts = [
            tuple(missing[n : n + MAX_PIECES_ASKED])
            for n in range(0, len(missing), MAX_PIECES_ASKED)
        ]
        return [PieceBatch(one, self._bases(one, before)) for one in parts]

    def _bases(self, pieces: Sequence[PieceId], before: Sequence[PieceId]) -> tuple[PieceId, ...]:
        """Those of the version before that are likely to help, as far as they are here."""
        likely = bases_for(pieces, self._wanted, before)
        gone = set(self._library.missing_pieces(likely))
        return tuple(one for one in likely if one not in gone)

    def _keep(self, batch: PieceBatch, answers: Sequence[Answer]) -> None:
        try:
            pieces = [self._piece(batch, answer) for answer in answers]
        except DocumentMissing:
            # Not the peer's fault: what is missing is asked for again, whole.
            self._whole = True
            return
        if [PieceId.of(data) for data in pieces] != list(batch.pieces):
            raise FormatError("a piece is not the one that was asked for")
        self._library.keep_pieces(pieces)

    def _piece(self, batch: PieceBatch, answer: Answer) -> bytes:
        if isinstance(answer, PieceDelta):
            length = self._lengths[answer.piece]
            return undo_delta(self._library, answer.ranges, answer.data, batch.bases, length)
        if isinstance(answer, PieceAnswer):
            return answer.data
        raise FormatError("a piece was asked for and something else came")
