"""Answers requests for pieces of manifests: whole, or as deltas against pieces that a peer has.

Making deltas costs much more than reading: tens of megabytes and up to half a second of the
interpreter's time for one request. So one is made at a time, in no thread that reads spans could
use; who asks for the same gets the same, as all rooms do when a new version is out; and when many
others wait, pieces come whole. That is 2 MB more on the line at most; in a queue without bound it
might be minutes, and an asker needs every piece before its first span.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from typing import Final, TypeAlias

import trio

from archid.net.errors import Refusal
from archid.store.errors import DocumentMissing
from archid.store.library import Library
from archid.store.piece_deltas import MadeDelta, deltas
from protocol.ids import ManifestId, PieceId
from protocol.messages import (
    Answer,
    ErrorCode,
    GetPieceDeltas,
    GetPieces,
    PieceAnswer,
    PieceDelta,
)
from protocol.piece_delta import whole

MAKERS: Final = 1
"""Threads that make deltas: they hold the interpreter's lock, so that more would be no faster."""
MAX_MAKINGS: Final = 8
"""Different requests whose deltas are being made or wait for it: a few seconds at the limits. It
is not 1, since rooms that fetch the same are seldom all at the same pieces."""
MAX_KEPT_BYTES: Final = 8 << 20
MAX_KEPT: Final = 32
KEPT_S: Final = 20.0
"""Shorter than it takes until a node that is at rest gives back its memory."""

_Key: TypeAlias = "tuple[Library, ManifestId, tuple[PieceId, ...], tuple[PieceId, ...]]"
_Made: TypeAlias = "Sequence[MadeDelta]"


class _Making:
    """Deltas that somebody is making and for which others may wait."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.made: _Made | None = None
        """None also when it is over and came to nothing."""


class DeltaDesk:
    """Makes deltas for everybody in this run of the event loop, and keeps the last for a while.

    It judges nobody: that the asker may have the pieces, and that they are here, is checked for
    each answer, whoever it was made for first.
    """

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(MAKERS)
        self._makings: dict[_Key, _Making] = {}
        self._kept: OrderedDict[_Key, tuple[float, int, _Made]] = OrderedDict()
        """When each is too old, its bytes, and the deltas; the oldest first."""

    @property
    def kept_bytes(self) -> int:
        return sum(size_bytes for _, size_bytes, _ in self._kept.values())

    async def deltas(self, library: Library, request: GetPieceDeltas) -> _Made | None:
        """A delta for each piece, or None when too many others wait; raises DocumentMissing."""
        key = (library, request.manifest, request.piece_ids, request.bases)
        while True:
            if key in self._kept:
                return self._kept[key][2]
            if key not in self._makings:
                break
            making = self._makings[key]
            await making.over.wait()
            if making.made is not None:
                return making.made
            # Whoever made them was lost, or they cannot be made: then everybody finds out alone.
        if len(self._makings) >= MAX_MAKINGS:
            return None
        return await self._make(key)

    async def _make(self, key: _Key) -> _Made:
        making = self._makings[key] = _Making()
        try:
            made = await trio.to_thread.run_sync(deltas, *key, limiter=self._limiter)
            making.made = made
            self._keep(key, made)
        finally:
            del self._makings[key]
            making.over.set()
        return made

    def _keep(self, key: _Key, made: _Made) -> None:
        if not self._kept:
            trio.lowlevel.spawn_system_task(self._forget_old, name="forget old piece deltas")
        size_bytes = sum(delta.size_bytes for delta in made)
        self._kept[key] = (trio.current_time() + KEPT_S, size_bytes, made)
        while len(self._kept) > MAX_KEPT or self.kept_bytes > MAX_KEPT_BYTES:
            self._kept.popitem(last=False)

    async def _forget_old(self) -> None:
        while self._kept:
            too_old, _, _ = next(iter(self._kept.values()))
            if trio.current_time() >= too_old:
                self._kept.popitem(last=False)
            else:
                await trio.sleep_until(too_old)


_desk: trio.lowlevel.RunVar[DeltaDesk] = trio.lowlevel.RunVar("piece_delta_desk")


def delta_desk() -> DeltaDesk:
    """The one of this run."""
    try:
        return _desk.get()
    except LookupError:
        desk = DeltaDesk()
        _desk.set(desk)
        return desk


async def piece_answers(
    library: Library, request: GetPieces | GetPieceDeltas
) -> AsyncGenerator[Answer, None]:
    """One answer for each piece, in the order asked; raises Refusal for what is not here.

    Pieces that are asked for as deltas come as a single range of their own bytes when the making is
    too busy with other requests: the asker checks them like any other delta.
    """
    number = request.request
    try:
        made = None
        if isinstance(request, GetPieceDeltas):
            made = await delta_desk().deltas(library, request)
        for n, piece in enumerate(request.piece_ids):
            # Read also where its delta is at hand: that it is here is judged now.
            data = await trio.to_thread.run_sync(library.seeding.piece, request.manifest, piece)
            if isinstance(request, GetPieces):
                yield PieceAnswer(number, piece, data)
            else:
                delta = made[n] if made is not None else whole(data)
                yield PieceDelta(number, piece, delta.ranges, delta.data)
    except DocumentMissing as error:
        raise Refusal(
            ErrorCode.UNKNOWN_MANIFEST, "that piece of that manifest is not held here"
        ) from error
