"""Neighbours help one another before any of them holds a version whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import trio.testing

from archid.net.errors import PeerRefused, Refusal
from archid.net.peer import Peer
from archid.store.staging import Staging
from archid.sync import span_run
from archid.sync.fetcher import Want
from archid.sync.signal import Signal
from archid.sync.upload_slots import UploadSlots
from protocol.features import FEATURES, SWARM
from protocol.fetch_peer import FIRST_BACKOFF_S
from protocol.head import DENIED_RELEASE, Denial
from protocol.ids import PieceId
from protocol.layout import Span
from protocol.messages import (
    Answer,
    Entitle,
    ErrorCode,
    GetAny,
    GetHave,
    GetSpan,
    HaveAnswer,
    Picked,
    SpanAnswer,
    Unwant,
)
from protocol.serve_breadth import FIRST, LEVELS
from tests.expected_errors import ErrorWatch
from tests.unit.store.trees import Version, assert_tree
from tests.unit.sync.sync_nodes import (
    MIB,
    SyncFleet,
    SyncNode,
    connect,
    entries,
    linked,
    reel,
    release,
    running,
    until,
)


@dataclass
class Cinema:
    """Two servers of one cinema that may have a film, and one of another that may not."""

    film: Version
    salle: SyncNode
    sas: SyncNode
    stranger: SyncNode


@pytest.fixture
def cinema(tmp_path: Path) -> Iterator[Cinema]:
    fleet = SyncFleet(tmp_path)
    # A chunk that occurs in two spans belongs to the first alone.
    film = fleet.publish("film", {**reel(1, 6 * MIB), "again.bin": reel(1, 6 * MIB)["reel.bin"]})
    salle, sas = fleet.enrol("salle", site="lyon"), fleet.enrol("sas", site="lyon")
    stranger = fleet.enrol("stranger", site="paris")
    for one in (salle, sas):
        fleet.give(one, entries(release("Dune"), feature=film))
    fleet.sign()
    with ExitStack() as stack:
        nodes = [stack.enter_context(fleet.node(one)) for one in (salle, sas, stranger)]
        for node in nodes:
            node.doorkeeper._features = FEATURES
        yield Cinema(film, *nodes)


@contextmanager
def fetching(node: SyncNode, film: Version) -> Iterator[tuple[Staging, Callable[[Span], None]]]:
    """A node in the middle of a fetch; the function gives it one span more."""
    node.hold_documents(film)
    staging = node.library.stage(film.layout)
    with node.directory.spans.telling(film.manifest) as verified:
        node.library.share(staging)

        def take(span: Span) -> None:
            skip = staging.skip(span)
            staging.write_span(span, skip, film.span_bytes(span, skip))
            verified(span.piece, span.n)

        yield staging, take
    node.library.end_staging(staging)


async def test_what_a_neighbour_verifies_is_passed_on_at_once(
    cinema: Cinema, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is not announced is not found out by asking again either.
    monkeypatch.setattr(span_run, "ASK_AGAIN_S", float("inf"))
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    spans = [span for span in film.layout.spans if film.layout.wanted_bytes(span)]
    assert len(spans) > 4
    with fetching(salle, film) as (_, take):
        take(spans[0])
        sas.fetcher.want([Want(film.manifest, 0)])
        async with running(sas.fetcher.run) as nursery:
            await connect(nursery, sas, salle)
            progress = sas.fetcher.progress[film.manifest]
            for span in spans[1:]:
                # It has all that the neighbour has, long before the neighbour has all.
                held = salle.library.seeding.shared_bitmaps(film.manifest)
                await has(sas, film, held)
                assert not salle.library.holds(film.manifest)
                assert not sas.library.holds(film.manifest)
                take(span)
            await until(lambda: sas.library.holds(film.manifest), sas.fetcher.placed)
            assert progress.received_bytes == sum(map(film.layout.wanted_bytes, spans))
    assert_tree(sas.library.tree(film.manifest), film.tree)


async def has(node: SyncNode, film: Version, bitmaps: list[tuple[int, bytes]] | None) -> None:
    """Wait until a node's fetch has verified these spans."""
    await until(
        lambda: node.library.seeding.shared_bitmaps(film.manifest) == bitmaps,
        node.directory.spans.changed,
    )


async def test_a_node_in_mid_fetch_gives_what_it_has_and_refuses_what_it_has_not(
    cinema: Cinema,
) -> None:
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    first, second, *_ = film.layout.spans
    with fetching(salle, film) as (_, take):
        take(second)
        async with linked(sas, salle) as link:
            peer = link.left
            await peer.request(Entitle(0, film.manifest, sas.leaf.proof_for(film.manifest)))
            have = await peer.request(GetHave(0, film.manifest), HaveAnswer)
            [(piece_index, bitmap)] = have.bitmaps
            assert (have.complete, piece_index) == (False, 0)
            # Those of the second file have nothing of their own.
            own = [n for n, span in enumerate(film.layout.spans) if film.layout.wanted_bytes(span)]
            assert [n for n in own if bitmap[n // 8] >> n % 8 & 1] == [1]
            held = GetSpan(0, film.manifest, second.piece, second.n, b"")
            answer = await peer.request(held, SpanAnswer)
            assert bytes(answer.data) == film.span_bytes(second)
            with pytest.raises(PeerRefused) as refused:
                await peer.request(GetSpan(0, film.manifest, first.piece, first.n, b""))
            assert refused.value.reason is ErrorCode.UNKNOWN_SPAN
            with pytest.raises(PeerRefused) as refused:
                await peer.request(GetSpan(0, film.manifest, PieceId(bytes(32)), 0, b""))
            assert refused.value.reason is ErrorCode.UNKNOWN_SPAN


async def test_a_neighbour_is_not_told_of_what_it_is_known_to_hold(cinema: Cinema) -> None:
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    first, second, third, *_ = film.layout.spans
    heard: list[int] = []
    told = Signal()

    def hear(_peer: Peer, _piece: PieceId, n: int) -> None:
        heard.append(n)
        told.fire()

    with fetching(salle, film) as (_, take):
        take(first)
        salle.directory.spans.spare(
            film.manifest,
            lambda peer, piece, n: peer.node == sas.id and (piece, n) == (second.piece, second.n),
        )
        async with linked(sas, salle) as link:
            with sas.directory.spans.listening(film.manifest, hear, lambda _peer: None):
                proof = sas.leaf.proof_for(film.manifest)
                await link.left.request(Entitle(0, film.manifest, proof))
                await link.left.request(GetHave(0, film.manifest), HaveAnswer)
                take(second)
                take(third)
                await until(lambda: bool(heard), told)
                assert heard == [third.n]


@asynccontextmanager
async def hearing(
    node: SyncNode, film: Version
) -> AsyncIterator[Callable[[Span], Awaitable[None]]]:
    """What peers announce to a node; the function waits until a span was."""
    heard: set[tuple[PieceId, int]] = set()
    told = Signal()

    def hear(_peer: Peer, piece: PieceId, n: int) -> None:
        heard.add((piece, n))
        told.fire()

    async def until_heard(span: Span) -> None:
        await until(lambda: (span.piece, span.n) in heard, told)

    with node.directory.spans.listening(film.manifest, hear, lambda _peer: None):
        yield until_heard


async def test_who_asks_just_before_a_node_begins_to_share_is_told_all_that_comes(
    cinema: Cinema,
) -> None:
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    threads = trio.to_thread.current_default_thread_limiter()
    async with linked(sas, salle) as link, hearing(sas, film) as until_heard:
        proof = sas.leaf.proof_for(film.manifest)
        await link.left.request(Entitle(0, film.manifest, proof))
        have: list[HaveAnswer] = []

        async def ask() -> None:
            have.append(await link.left.request(GetHave(0, film.manifest), HaveAnswer))

        salle.hold_documents(film)
        usual, threads.total_tokens = threads.total_tokens, 1
        with ExitStack() as stack:
            stack.callback(setattr, threads, "total_tokens", usual)
            async with trio.open_nursery() as nursery, threads:
                nursery.start_soon(ask)
                # The question has come, and its answer is to be looked up in a thread.
                while not threads.statistics().tasks_waiting:
                    await trio.testing.wait_all_tasks_blocked()
                _, take = stack.enter_context(fetching(salle, film))
            [answer] = have
            assert not answer.complete
            for span in film.layout.spans[:3]:
                take(span)
                await until_heard(span)


async def test_who_showed_an_entry_anew_is_told_all_that_came_meanwhile(cinema: Cinema) -> None:
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    first, second, third, *_ = film.layout.spans
    async with linked(sas, salle) as link, hearing(sas, film) as until_heard:
        proof = sas.leaf.proof_for(film.manifest)
        with fetching(salle, film) as (_, take):
            await link.left.request(Entitle(0, film.manifest, proof))
            await link.left.request(GetHave(0, film.manifest), HaveAnswer)
            take(first)
            await until_heard(first)
            fleet, before = salle.fleet, salle.fleet.grants_roots[0]
            fleet.sign(denied=(Denial(DENIED_RELEASE, release("Dune").release, before),))
            await salle.take_head()
            take(second)
            with pytest.raises(PeerRefused) as refused:
                await link.left.request(GetHave(0, film.manifest), HaveAnswer)
            assert refused.value.reason is ErrorCode.NOT_ENTITLED
            await sas.take_head()
            proof = sas.leaf.proof_for(film.manifest)
            await link.left.request(Entitle(0, film.manifest, proof))
            await until_heard(second)
        # Another fetch of it, as after one that failed.
        with fetching(salle, film) as (_, take):
            take(third)
            await until_heard(third)


async def test_another_cinema_is_told_nothing_of_what_is_being_fetched(cinema: Cinema) -> None:
    film, salle, stranger = cinema.film, cinema.salle, cinema.stranger
    first, *_ = film.layout.spans
    heard: list[int] = []
    with fetching(salle, film) as (_, take):
        take(first)
        async with linked(stranger, salle) as link:
            listener = stranger.directory.spans.listening(
                film.manifest, lambda _peer, _piece, n: heard.append(n), lambda _peer: None
            )
            with listener:
                for request in (
                    GetHave(0, film.manifest),
                    GetSpan(0, film.manifest, first.piece, first.n, b""),
                ):
                    with pytest.raises(PeerRefused) as refused:
                        await link.left.request(request)
                    assert refused.value.reason is ErrorCode.NOT_ENTITLED
                take(film.layout.spans[1])
                with pytest.raises(PeerRefused):
                    await link.left.request(GetHave(0, film.manifest))
    assert heard == []


async def test_rotten_bytes_of_an_unfinished_version_are_not_sent_and_not_placed(
    cinema: Cinema, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("chunk_rotten")
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    first, *_ = film.layout.spans
    with fetching(salle, film) as (staging, take):
        take(first)
        held_bytes = staging.held_bytes
        path = staging.path / film.layout.files[0].path
        with path.open("r+b") as file:
            file.seek(10)
            file.write(b"rot")
        async with linked(sas, salle) as link:
            await link.left.request(Entitle(0, film.manifest, sas.leaf.proof_for(film.manifest)))
            request = GetSpan(0, film.manifest, first.piece, first.n, b"")
            with pytest.raises(PeerRefused) as refused:
                await link.left.request(request)
            assert refused.value.reason is ErrorCode.CHUNK_CORRUPT
        assert staging.held_bytes < held_bytes
        assert not staging.is_span_held(first)
        take(first)
        assert staging.held_bytes == held_bytes


async def test_a_version_that_becomes_a_tree_meanwhile_is_served_from_there(
    cinema: Cinema,
) -> None:
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    with fetching(salle, film) as (staging, take):
        for span in film.layout.spans:
            take(span)
        async with linked(sas, salle) as link:
            await link.left.request(Entitle(0, film.manifest, sas.leaf.proof_for(film.manifest)))
            await trio.to_thread.run_sync(salle.library.place, staging)
            span = film.layout.spans[-1]
            request = GetSpan(0, film.manifest, span.piece, span.n, b"")
            answer = await link.left.request(request, SpanAnswer)
            assert bytes(answer.data) == film.span_bytes(span)


async def test_a_holder_of_everything_picks_and_sends_each_span_once(cinema: Cinema) -> None:
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    salle.hold(film)
    sas.fetcher.want([Want(film.manifest, 0)])
    async with running(sas.fetcher.run) as nursery:
        link = await connect(nursery, sas, salle)
        assert SWARM in link.left.features
        await until(lambda: sas.library.holds(film.manifest), sas.fetcher.placed)
    assert_tree(sas.library.tree(film.manifest), film.tree)
    own = [n for n, span in enumerate(film.layout.spans) if film.layout.wanted_bytes(span)]
    sent = picks_of(salle, film)
    assert [n for n, times in enumerate(sent) if times] == own
    assert max(sent) == 1
    assert link.right.traffic.span_bytes_sent == sum(
        map(film.layout.wanted_bytes, film.layout.spans)
    )


async def test_a_peer_without_the_feature_is_asked_by_name(cinema: Cinema) -> None:
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    salle.hold(film)
    salle.doorkeeper._features = ()
    sas.fetcher.want([Want(film.manifest, 0)])
    async with running(sas.fetcher.run) as nursery:
        link = await connect(nursery, sas, salle)
        assert SWARM not in link.left.features
        await until(lambda: sas.library.holds(film.manifest), sas.fetcher.placed)
    assert_tree(sas.library.tree(film.manifest), film.tree)
    assert picks_of(salle, film) == []


async def test_spans_of_which_a_part_is_here_are_asked_for_without_that_part(
    cinema: Cinema,
) -> None:
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    salle.hold(film)
    sas.hold_documents(film)
    staging = sas.library.stage(film.layout)
    chunk = film.layout.chunk(0)
    staging.write_chunks([(0, film.span_bytes(film.layout.spans[0])[: chunk.length])])
    missing_bytes = sum(map(film.layout.wanted_bytes, film.layout.spans)) - chunk.length
    sas.library.end_staging(staging)
    sas.fetcher.want([Want(film.manifest, 0)])
    async with running(sas.fetcher.run) as nursery:
        link = await connect(nursery, sas, salle)
        await until(lambda: sas.library.holds(film.manifest), sas.fetcher.placed)
    assert_tree(sas.library.tree(film.manifest), film.tree)
    assert link.right.traffic.span_bytes_sent == missing_bytes
    assert picks_of(salle, film)[0] == 0


async def test_any_of_several_is_judged_and_refused_like_every_request(cinema: Cinema) -> None:
    film, salle, sas, stranger = cinema.film, cinema.salle, cinema.sas, cinema.stranger
    salle.hold(film)
    request = GetAny(0, film.manifest, ((0, b"\x03"),))
    async with linked(stranger, salle) as link:
        with pytest.raises(PeerRefused) as refused:
            await link.left.request_all(request)
        assert refused.value.reason is ErrorCode.NOT_ENTITLED
    async with linked(sas, salle) as link:
        peer = link.left
        await peer.request(Entitle(0, film.manifest, sas.leaf.proof_for(film.manifest)))
        picked, answer = await peer.request_all(request)
        assert isinstance(picked, Picked)
        assert isinstance(answer, SpanAnswer)
        span = film.layout.spans[picked.n]
        assert bytes(answer.data) == film.span_bytes(span, film.layout.others(span))
        with pytest.raises(PeerRefused) as refused:
            await peer.request_all(GetAny(0, film.manifest, ((70, b"\x01"),)))
        assert refused.value.reason is ErrorCode.UNKNOWN_SPAN
        # What was taken out before the request's turn came is not picked.
        both = peer.connection.last_request + 1
        for n in (0, 1):
            await peer.announce(Unwant(both + 10, film.manifest, 0, n))
        while len(salle.directory.spans._choice._unwanted.get(link.right, ())) < 2:
            await peer.request(GetHave(0, film.manifest), HaveAnswer)
        with pytest.raises(PeerRefused) as refused:
            await peer.request_all(request)
        assert refused.value.reason is ErrorCode.CANCELLED
    assert link.right.traffic.span_bytes_sent == len(answer.data)


async def test_what_a_peer_was_told_is_not_picked_for_its_next_request_though_it_was_cancelled(
    cinema: Cinema,
) -> None:
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    salle.hold(film)
    spans, request = salle.directory.spans, GetAny(0, film.manifest, ((0, b"\x03"),))
    # Of the two, 0 is what was sent least, and will be again.
    spans._choice.pick(film.manifest, [1], span_count=len(film.layout.spans))
    async with linked(sas, salle) as link:
        peer = link.left
        await peer.request(Entitle(0, film.manifest, sas.leaf.proof_for(film.manifest)))
        told: list[Answer] = []
        async with AsyncExitStack() as stack:
            at_first = 3 * LEVELS[FIRST] // 2
            for name in range(at_first):  # as many sites as may be sent to
                turn = await stack.enter_async_context(spans.turns.one(name, lambda: 1, site=name))
                await spans.turns.begin(turn)
            number = peer.begin(request, on_part=told.append, on_end=lambda _: None)
            while not told:
                await trio.lowlevel.checkpoint()
            peer.give_up(number)  # it came elsewhere
            while number not in link.right._cancelled:
                await trio.lowlevel.checkpoint()
        picked, _ = await peer.request_all(request)
    assert told == [Picked(number, 0, 0)]
    assert isinstance(picked, Picked)
    assert picked.n == 1


@pytest.mark.parametrize("by_server", [True, False])
async def test_nothing_is_remembered_of_a_connection_that_has_ended(
    cinema: Cinema, by_server: bool
) -> None:
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    salle.hold(film)
    async with linked(sas, salle) as link:
        peer, choice = link.left, salle.directory.spans._choice
        await peer.request(Entitle(0, film.manifest, sas.leaf.proof_for(film.manifest)))
        await peer.announce(Unwant(100, film.manifest, 0, 2))
        await peer.request_all(GetAny(0, film.manifest, ((0, b"\x03"),)))
        whereabouts = salle.links._whereabouts
        assert whereabouts is not None
        while not choice._unwanted:
            await trio.lowlevel.checkpoint()
        assert list(choice._given) == list(whereabouts._seeking) == [link.right]
        (link.right if by_server else peer).disconnect(ErrorCode.CLOSING, "in a test")
        while salle.directory.all():
            await trio.lowlevel.checkpoint()
        assert not choice._given
        assert not choice._unwanted
        assert not whereabouts._seeking


def picks_of(node: SyncNode, film: Version) -> list[int]:
    """How often a node has picked each span."""
    return list(node.directory.spans._choice._sent.get(film.manifest, ()))


async def test_when_every_slot_is_taken_a_request_is_told_so_after_a_while(cinema: Cinema) -> None:
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    salle.hold(film)
    span = film.layout.spans[0]
    salle.directory.spans.slots = slots = UploadSlots(1, longest_wait_s=0.05)
    async with linked(sas, salle) as link:
        peer = link.left
        await peer.request(Entitle(0, film.manifest, sas.leaf.proof_for(film.manifest)))
        async with slots.one("somebody"):
            for ask in (
                GetSpan(0, film.manifest, span.piece, span.n, b""),
                GetAny(0, film.manifest, ((0, b"\x01"),)),
            ):
                with pytest.raises(PeerRefused) as refused:
                    await peer.request_all(ask)
                assert refused.value.reason is ErrorCode.BUSY
            # Only spans need one.
            assert (await peer.request(GetHave(0, film.manifest), HaveAnswer)).complete
        answer = await peer.request(GetSpan(0, film.manifest, span.piece, span.n, b""), SpanAnswer)
        assert bytes(answer.data) == film.span_bytes(span)


class NotedSlots(UploadSlots):
    """Says when it was first told anew that the node is busy: an only holder has several requests
    open, which are refused one right after the other and count as once."""

    def __init__(self, count: int) -> None:
        super().__init__(1, longest_wait_s=0.01)
        self._count = count
        self.refused_at: list[float] = []
        self._last_at = 0.0
        self.enough = trio.Event()

    @asynccontextmanager
    async def one(self, peer: Hashable) -> AsyncIterator[None]:
        try:
            async with super().one(peer):
                yield
        except Refusal:
            now = trio.current_time()
            if not self.refused_at or now - self._last_at > FIRST_BACKOFF_S / 2:
                self.refused_at.append(now)
            self._last_at = now
            if len(self.refused_at) == self._count:
                self.enough.set()
            raise


async def test_a_busy_node_is_asked_again_after_waits_that_grow_and_serves_in_the_end(
    cinema: Cinema,
) -> None:
    film, salle, sas = cinema.film, cinema.salle, cinema.sas
    salle.hold(film)
    salle.directory.spans.slots = slots = NotedSlots(3)
    sas.fetcher.want([Want(film.manifest, 0)])
    async with running(sas.fetcher.run) as nursery:
        async with slots.one("somebody"):
            await connect(nursery, sas, salle)
            await slots.enough.wait()
        await until(lambda: sas.library.holds(film.manifest), sas.fetcher.placed)
    waits_s = [later - sooner for sooner, later in pairwise(slots.refused_at)]
    assert all(wait_s >= FIRST_BACKOFF_S * 2**n for n, wait_s in enumerate(waits_s)), waits_s
    assert_tree(sas.library.tree(film.manifest), film.tree)
