"""Serving spans of a version that is still being put together.

Neighbours help one another before any of them is complete. What was verified when it was written
is hashed again when it is read, as everything that leaves is; a chunk that no longer holds counts
as missing from then on, so that no tree can be made of it. A staging folder may become a tree, or
be given up, at any moment: then `NotFound` says that it is not here any more.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from blake3 import blake3

from archid.errors import NotFound
from archid.store import syscalls
from archid.store.errors import ChunkCorrupt, storage_error
from archid.store.staging import Staging
from protocol.entries import FileEntry
from protocol.ids import DIGEST_BYTES, ChunkId, PieceId
from protocol.layout import Layout, Span, asked


def span_of(layout: Layout, piece: PieceId, n: int) -> Span:
    """The span that a peer named; raises NotFound (code unknown_span), FormatError."""
    for index, ref in enumerate(layout.root.pieces):
        if ref.id == piece:
            return layout.spans[layout.span_index(index, n)]
    raise _unknown(layout, "there is no such piece")


def held_bitmaps(staging: Staging) -> list[tuple[int, bytes]]:
    """Which spans can be served: piece by piece, without the pieces that have none.

    A span counts when every chunk that occurs first in it is held: whoever asks leaves out the
    others, which belong to other spans.
    """
    spans = staging.layout.spans
    return _span_bitmaps(spans[number] for number in staging.held_spans())


def bitmaps_without(layout: Layout, rotten: AbstractSet[int]) -> list[tuple[int, bytes]]:
    """The same for a tree in which the chunks `rotten`, by their homes, do not hold."""
    return _span_bitmaps(span for span in layout.spans if rotten.isdisjoint(span.chunks))


def _span_bitmaps(spans: Iterable[Span]) -> list[tuple[int, bytes]]:
    found: dict[int, bytearray] = {}
    for span in spans:
        bitmap = found.setdefault(span.piece_index, bytearray())
        bitmap.extend(bytes(max(0, span.n // 8 + 1 - len(bitmap))))
        bitmap[span.n // 8] |= 1 << span.n % 8
    return sorted((index, bytes(bitmap)) for index, bitmap in found.items())


def read_staged_span(
    staging: Staging, span: Span, skip: bytes, room: memoryview | None = None
) -> memoryview:
    """The bytes of a span's chunks that `skip` does not leave out, every one hashed just now.

    They are put into `room`, which has room for the largest span, if it is given.

    Raises NotFound (`unknown_span` when one of them is missing, `unknown_manifest` when the
    staging has ended), ChunkCorrupt, StorageError.
    """
    layout = staging.layout
    wanted = asked(span, skip)
    if not all(staging.is_held(at) for chunks in wanted for at in chunks):
        raise _unknown(layout, "it is not held whole yet")
    stretches = [stretch for chunks in wanted for stretch in layout.stretches(chunks)]
    size_bytes = sum([stretch.size_bytes for stretch in stretches])
    view = memoryview(bytearray(size_bytes)) if room is None else room[:size_bytes]
    start = 0
    for number, offset, _, size_bytes in stretches:
        _read(staging, layout.files[number], view[start : start + size_bytes], offset)
        start += size_bytes
    start = 0
    for chunks in wanted:
        ids, lengths = layout.keys(chunks, DIGEST_BYTES), layout.lengths(chunks)
        for at, id_bytes, length in zip(chunks, ids, lengths, strict=True):
            if blake3(view[start : start + length]).digest() != id_bytes:
                staging.forget_chunk(at)
                raise ChunkCorrupt(ChunkId(id_bytes), f"in {staging.path}")
            start += length
    return view


def _read(staging: Staging, file: FileEntry, view: memoryview, offset: int) -> None:
    try:
        fd = staging.open_for_reading(file)
        try:
            syscalls.pread_into(fd, view, offset)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return  # its bytes will not hold
    except OSError as error:
        raise storage_error(error, staging.path / file.path) from error


def _unknown(layout: Layout, why: str) -> NotFound:
    return NotFound(
        f"That span of the manifest {layout.manifest.short} is not here: {why}", code="unknown_span"
    )
