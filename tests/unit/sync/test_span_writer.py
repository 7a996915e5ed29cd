"""Spans are written in few hops, each gets its own outcome, and a cancelled one spoils nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from archid.store.errors import ChunkCorrupt, DiskFull
from archid.store.filling import SpanBytes
from archid.store.layout import StatePaths
from archid.store.staging import Staging
from archid.sync.span_writer import SpanWriter
from tests.unit.store.trees import File, Version, random_bytes, version_of

SPANS = 5


class Watched(Staging):
    """A staging whose first batch is written only when `go` is set."""

    batches: list[int]
    began: threading.Event
    go: threading.Event

    def write_spans(self, received: Sequence[SpanBytes]) -> list[ChunkCorrupt | None]:
        self.batches.append(len(received))
        self.began.set()
        assert self.go.wait(30)
        return super().write_spans(received)


@pytest.fixture
def version() -> Version:
    return version_of({"film": File(random_bytes(1, SPANS << 20))}, chunk_bytes=65536)


@pytest.fixture
def staging(tmp_path: Path, version: Version) -> Iterator[Watched]:
    paths = StatePaths(tmp_path / "state", tmp_path / "scripts")
    paths.prepare()
    opened = Watched.open(paths.staging_of(version.manifest), version.layout)
    opened.batches, opened.began, opened.go = [], threading.Event(), threading.Event()
    yield opened
    opened.go.set()
    opened.close()


def came(version: Version, number: int) -> SpanBytes:
    span = version.layout.spans[number]
    return SpanBytes(span, b"", version.span_bytes(span))


async def began(staging: Watched) -> None:
    assert await trio.to_thread.run_sync(staging.began.wait, 30)


async def test_what_comes_while_a_thread_writes_is_written_in_one_hop(
    version: Version, staging: Watched
) -> None:
    writer = SpanWriter(staging)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, came(version, 0))
        await began(staging)
        for number in range(1, SPANS):
            nursery.start_soon(writer.write, came(version, number))
        await trio.testing.wait_all_tasks_blocked()
        staging.go.set()
    assert staging.batches == [1, SPANS - 1]
    assert staging.is_complete


async def test_a_wrong_span_is_told_to_who_brought_it(version: Version, staging: Watched) -> None:
    writer = SpanWriter(staging)
    honest = came(version, 1)
    wrong = came(version, 2)._replace(data=bytes(len(honest.data)))

    async def write_wrong() -> None:
        with pytest.raises(ChunkCorrupt):
            await writer.write(wrong)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, came(version, 0))
        await began(staging)
        nursery.start_soon(write_wrong)
        nursery.start_soon(writer.write, honest)
        await trio.testing.wait_all_tasks_blocked()
        staging.go.set()
    assert staging.is_span_held(honest.span)
    assert not staging.is_span_held(wrong.span)


async def test_a_cancelled_span_is_left_out_and_the_others_are_written(
    version: Version, staging: Watched
) -> None:
    writer = SpanWriter(staging)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, came(version, 0))
        await began(staging)
        with trio.CancelScope() as unwanted:
            async with trio.open_nursery() as inner:
                inner.start_soon(writer.write, came(version, 1))
                await trio.testing.wait_all_tasks_blocked()
                unwanted.cancel()
        nursery.start_soon(writer.write, came(version, 2))
        await trio.testing.wait_all_tasks_blocked()
        staging.go.set()
    assert staging.batches == [1, 1]
    held = [staging.is_span_held(span) for span in version.layout.spans]
    assert held == [True, False, True, False, False]


async def test_a_span_that_is_being_written_when_it_is_cancelled_counts(
    version: Version, staging: Watched
) -> None:
    writer = SpanWriter(staging)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, came(version, 0))
        await began(staging)
        nursery.cancel_scope.cancel()
        staging.go.set()
    assert staging.is_span_held(version.layout.spans[0])


async def test_one_that_is_cancelled_while_its_batch_is_written_leaves_the_others_alone(
    version: Version, staging: Watched
) -> None:
    writer = SpanWriter(staging)
    unwanted = trio.CancelScope()
    written: list[int] = []

    async def write(number: int) -> None:
        await writer.write(came(version, number))
        written.append(number)

    async def write_unwanted() -> None:
        with unwanted:
            await write(2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, 0)
        await began(staging)
        nursery.start_soon(write, 1)  # it writes what waits with it
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(write_unwanted)
        nursery.start_soon(write, 3)
        await trio.testing.wait_all_tasks_blocked()
        first, staging.go = staging.go, threading.Event()
        staging.began.clear()
        first.set()
        await began(staging)
        unwanted.cancel()
        await trio.testing.wait_all_tasks_blocked()
        staging.go.set()
    assert staging.batches == [1, 3]
    assert sorted(written) == [0, 1, 3]
    assert staging.is_span_held(version.layout.spans[2]), "it was being written all the same"


async def test_a_full_disk_is_told_to_everyone_who_waits(
    version: Version, staging: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_chunks: object) -> None:
        raise DiskFull(staging.path)

    monkeypatch.setattr(staging, "write_chunks", full)
    writer = SpanWriter(staging)
    told: list[int] = []

    async def write(number: int) -> None:
        with pytest.raises(DiskFull):
            await writer.write(came(version, number))
        told.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, 0)
        await began(staging)
        nursery.start_soon(write, 1)
        nursery.start_soon(write, 2)
        await trio.testing.wait_all_tasks_blocked()
        staging.go.set()
    assert sorted(told) == [0, 1, 2]
