"""The manifest of the next version comes as what is new in it, and is believed by its ids only."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from archid.net.errors import PeerLost, Refusal
from archid.net.peer import Peer
from archid.store import piece_deltas
from archid.store.library import Library
from archid.store.piece_deltas import MadeDelta
from archid.store.shelves import PIECES
from archid.sync import piece_answers as answers_module
from archid.sync import sources as sources_module
from archid.sync.fetcher import Want
from archid.sync.piece_answers import KEPT_S, MAX_MAKINGS, delta_desk, piece_answers
from protocol.features import DELTAS
from protocol.ids import ManifestId, PieceId
from protocol.messages import (
    Answer,
    Entitle,
    Entitled,
    ErrorCode,
    GetHave,
    GetManifest,
    GetPieceDeltas,
    GetPieces,
    HaveAnswer,
    ManifestAnswer,
    PieceAnswer,
    PieceDelta,
    Refused,
    Request,
)
from protocol.piece_delta import DeltaMaker, apply_delta
from tests.expected_errors import ErrorWatch
from tests.unit.store.trees import File, Version, assert_tree, random_bytes
from tests.unit.sync.sync_nodes import (
    Session,
    SyncFleet,
    SyncNode,
    connect,
    entries,
    event,
    release,
    running,
    until,
)

FILES = 2000
FILE_BYTES = 40


@dataclass
class Stage:
    """A server that holds a film of many files and is granted the next version of it."""

    fleet: SyncFleet
    old: Version
    new: Version
    salle: SyncNode
    one: SyncNode
    two: SyncNode

    @property
    def new_pieces_bytes(self) -> int:
        """All of the pieces that the server does not have."""
        return sum(
            len(data) for piece, data in self.new.pieces.items() if piece not in self.old.pieces
        )

    def let_deltas(self, *nodes: SyncNode) -> None:
        for node in nodes:
            node.doorkeeper._features = (DELTAS,)

    def fetch(self, nursery: trio.Nursery) -> None:
        self.salle.fetcher.want([Want(self.new.manifest, 0)])
        nursery.start_soon(self.salle.fetcher.run)

    async def fetched(self) -> None:
        fetcher = self.salle.fetcher
        await until(lambda: self.salle.library.holds(self.new.manifest), fetcher.placed)
        assert_tree(self.salle.library.tree(self.new.manifest), self.new.tree)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(sources_module, "FIRST_RETRY_S", 0.02)
    fleet = SyncFleet(tmp_path)
    tree = {f"{n:06}": File(random_bytes(n, FILE_BYTES)) for n in range(FILES)}
    changed = {f"{n:06}": File(random_bytes(FILES + n, FILE_BYTES)) for n in range(0, FILES, 100)}
    old = fleet.publish("film", tree)
    new = fleet.publish("film", {**tree, **changed}, version=2)
    salle = fleet.enrol("salle")
    one, two = fleet.enrol("one", "repo", ""), fleet.enrol("two", "repo", "")
    fleet.give(salle, entries(release("Dune"), feature=new))
    fleet.sign()
    with ExitStack() as stack:
        nodes = [stack.enter_context(fleet.node(identity)) for identity in (salle, one, two)]
        made = Stage(fleet, old, new, *nodes)
        made.salle.hold(old)
        assert len(new.pieces) > 3
        yield made


def scripted(stage: Stage, answers: list[Request], delta: object) -> Session:
    """A peer that tells the pieces as `delta` says, notes what it is asked, and holds no span."""
    assert callable(delta)

    def answer(request: Request) -> Sequence[Answer | Refused]:
        number = request.request
        match request:
            case Entitle():
                return [Entitled(number)]
            case GetManifest():
                return [ManifestAnswer(number, stage.fleet.publications[stage.new.manifest])]
            case GetPieces():
                pieces = stage.new.pieces
                return [PieceAnswer(number, one, pieces[one]) for one in request.piece_ids]
            case GetPieceDeltas():
                return list(delta(request))
            case GetHave():
                return [HaveAnswer(number, complete=False, bitmaps=())]
        return [Refused(number, ErrorCode.UNKNOWN_DOCUMENT, "not here")]

    async def drain(peer: Peer) -> None:
        async for _ in peer.notices:
            pass

    async def session(peer: Peer) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, peer)
            try:
                async for request in peer.requests:
                    answers.append(request)
                    for one in answer(request):
                        await peer.answer(one)
            except PeerLost:
                pass
            nursery.cancel_scope.cancel()

    return session


def true_deltas(stage: Stage, request: GetPieceDeltas) -> list[PieceDelta]:
    maker = DeltaMaker({n: stage.old.pieces[base] for n, base in enumerate(request.bases)})
    found = [(piece, maker.delta(stage.new.pieces[piece])) for piece in request.piece_ids]
    return [PieceDelta(request.request, piece, one.ranges, one.data) for piece, one in found]


@pytest.mark.parametrize("held_before", [True, False])
async def test_pieces_are_told_by_those_of_the_version_before_if_both_have_it(
    stage: Stage, held_before: bool
) -> None:
    stage.let_deltas(stage.salle, stage.one)
    if held_before:
        stage.one.hold(stage.old)
    stage.one.hold(stage.new)
    async with running() as nursery:
        link = await connect(nursery, stage.salle, stage.one)
        before = link.left.received_bytes
        stage.fetch(nursery)
        await stage.fetched()
        received = link.left.received_bytes - before
    if held_before:
        assert received < stage.new_pieces_bytes // 4
    else:
        assert received > stage.new_pieces_bytes


async def test_an_older_node_gives_them_whole(stage: Stage) -> None:
    stage.let_deltas(stage.salle)
    stage.one.hold(stage.old)
    stage.one.hold(stage.new)
    async with running() as nursery:
        link = await connect(nursery, stage.salle, stage.one)
        stage.fetch(nursery)
        await stage.fetched()
        assert link.left.received_bytes > stage.new_pieces_bytes


async def test_a_delta_that_makes_something_else_is_a_lie(
    stage: Stage, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("peer_sent_wrong_bytes")
    stage.let_deltas(stage.salle, stage.one, stage.two)
    asked: list[Request] = []

    def wrong(request: GetPieceDeltas) -> list[PieceDelta]:
        # As long as they should be, of bytes of another piece.
        return [
            delta.__class__(delta.request, delta.piece, ((0, 0, length),), bytes(length))
            for delta in true_deltas(stage, request)
            if (length := len(stage.new.pieces[delta.piece]))
        ]

    async with stage.salle.events.subscribe() as events, running() as nursery:
        await connect(nursery, stage.salle, stage.two, right=scripted(stage, asked, wrong))

        async def help_later() -> None:
            await event(events, "alarm", code="peer_sent_wrong_bytes")
            missing = stage.salle.library.missing_pieces(list(stage.new.pieces))
            assert missing == [one for one in stage.new.pieces if one not in stage.old.pieces]
            stage.one.hold(stage.new)
            await connect(nursery, stage.salle, stage.one)

        nursery.start_soon(help_later)
        stage.fetch(nursery)
        await stage.fetched()
    assert any(isinstance(request, GetPieceDeltas) for request in asked)


async def test_a_base_that_is_lost_meanwhile_is_nobodys_lie(stage: Stage) -> None:
    stage.let_deltas(stage.salle, stage.one, stage.two)
    asked: list[Request] = []
    whole = trio.Event()

    def lose_and_tell(request: GetPieceDeltas) -> list[PieceDelta]:
        for base in request.bases:
            stage.salle.documents.remove_unless_touched(PIECES, base.hex(), math.inf)
        return true_deltas(stage, request)

    session = scripted(stage, asked, lose_and_tell)
    async with running() as nursery:
        await connect(nursery, stage.salle, stage.two, right=session)

        async def help_later() -> None:
            while not any(isinstance(request, GetPieces) for request in asked):
                await trio.lowlevel.checkpoint()
            whole.set()
            stage.one.hold(stage.new)
            await connect(nursery, stage.salle, stage.one)

        nursery.start_soon(help_later)
        stage.fetch(nursery)
        await stage.fetched()
    assert whole.is_set()


class Makings:
    """Counts the makings of deltas, each of which goes on when it is let."""

    def __init__(self, real: Callable[..., list[MadeDelta]]) -> None:
        self.begun = self.most_at_once = 0
        self.go_on = threading.Event()
        self._real = real
        self._at_once = 0
        self._lock = threading.Lock()

    def make(
        self,
        library: Library,
        manifest: ManifestId,
        pieces: Sequence[PieceId],
        bases: Sequence[PieceId],
    ) -> list[MadeDelta]:
        with self._lock:
            self.begun += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        self.go_on.wait()
        try:
            return self._real(library, manifest, pieces, bases)
        finally:
            with self._lock:
                self._at_once -= 1


@contextmanager
def held_makings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Makings]:
    with monkeypatch.context() as patch:
        makings = Makings(piece_deltas.deltas)
        patch.setattr(answers_module, "deltas", makings.make)
        try:
            yield makings
        finally:
            makings.go_on.set()


def question(stage: Stage, which: int = 0) -> GetPieceDeltas:
    """One of many requests that differ, each for all the new pieces."""
    old = list(stage.old.pieces)
    wanted = [piece for piece in stage.new.pieces if piece not in stage.old.pieces]
    return GetPieceDeltas(which, stage.new.manifest, tuple(wanted), (*old, *old[:1] * which))


async def ask(stage: Stage, request: GetPieceDeltas) -> int:
    """Check every answer; how many bytes came along with them."""
    told = 0
    async for answer in piece_answers(stage.one.library, request):
        assert isinstance(answer, PieceDelta)
        expected = stage.new.pieces[answer.piece]
        bases = [stage.old.pieces[base] for base in request.bases]
        assert apply_delta(answer.ranges, answer.data, bases, len(expected)) == expected
        told += len(answer.data)
    return told


async def test_who_asks_for_the_same_gets_what_was_made_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.one.hold(stage.old)
    stage.one.hold(stage.new)
    told: list[int] = []

    async def note(request: GetPieceDeltas) -> None:
        told.append(await ask(stage, request))

    with held_makings(monkeypatch) as makings:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(note, question(stage))
            await trio.testing.wait_all_tasks_blocked()
            makings.go_on.set()
        await note(question(stage))
    assert makings.begun == 1
    assert len(set(told)) == 1
    assert told[0] < stage.new_pieces_bytes // 4


async def test_deltas_are_made_one_at_a_time_and_pieces_come_whole_when_many_wait(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.one.hold(stage.old)
    stage.one.hold(stage.new)
    told: dict[int, int] = {}

    async def note(which: int) -> None:
        told[which] = await ask(stage, question(stage, which))

    with held_makings(monkeypatch) as makings:
        async with trio.open_nursery() as nursery:
            for which in range(MAX_MAKINGS):
                nursery.start_soon(note, which)
            await trio.testing.wait_all_tasks_blocked()
            await note(MAX_MAKINGS)
            assert told == {MAX_MAKINGS: stage.new_pieces_bytes}
            makings.go_on.set()
    assert makings.begun == MAX_MAKINGS
    assert makings.most_at_once == 1
    del told[MAX_MAKINGS]
    assert all(size < stage.new_pieces_bytes // 4 for size in told.values())


async def test_a_version_is_fetched_whole_from_who_is_busy_with_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.let_deltas(stage.salle, stage.one)
    stage.one.hold(stage.old)
    stage.one.hold(stage.new)
    async with running() as nursery:
        with held_makings(monkeypatch):
            for which in range(1, MAX_MAKINGS + 1):
                nursery.start_soon(ask, stage, question(stage, which))
            await trio.testing.wait_all_tasks_blocked()
            link = await connect(nursery, stage.salle, stage.one)
            before = link.left.received_bytes
            stage.fetch(nursery)
            await stage.fetched()
            assert link.left.received_bytes - before > stage.new_pieces_bytes


async def test_who_waits_for_a_making_whose_asker_is_lost_makes_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.one.hold(stage.old)
    stage.one.hold(stage.new)
    told: list[int] = []

    async def note() -> None:
        told.append(await ask(stage, question(stage)))

    with held_makings(monkeypatch) as makings:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, stage, question(stage, 1))
            await trio.testing.wait_all_tasks_blocked()
            lost = trio.CancelScope()

            async def be_lost() -> None:
                with lost:
                    await ask(stage, question(stage))

            nursery.start_soon(be_lost)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(note)
            await trio.testing.wait_all_tasks_blocked()
            lost.cancel()
            await trio.testing.wait_all_tasks_blocked()
            makings.go_on.set()
    assert told
    assert told[0] < stage.new_pieces_bytes // 4
    assert makings.begun == 2


async def test_what_was_made_is_not_told_of_a_piece_that_is_gone(stage: Stage) -> None:
    stage.one.hold(stage.old)
    stage.one.hold(stage.new)
    await ask(stage, question(stage))
    assert delta_desk().kept_bytes > 0
    gone = question(stage).piece_ids[0]
    stage.one.documents.remove_unless_touched(PIECES, gone.hex(), math.inf)
    with pytest.raises(Refusal, match="not held here"):
        await ask(stage, question(stage))


async def test_what_was_made_is_forgotten_after_a_while(
    stage: Stage, mock_clock: trio.testing.MockClock
) -> None:
    stage.one.hold(stage.old)
    stage.one.hold(stage.new)
    await ask(stage, question(stage))
    assert delta_desk().kept_bytes > 0
    mock_clock.jump(KEPT_S + 1)
    await trio.testing.wait_all_tasks_blocked()
    assert delta_desk().kept_bytes == 0
