"""Versions come whole from real peers: alone, together, lost, lying, interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from archid.net.errors import PeerLost
from archid.net.peer import Peer
from archid.sync import fetcher as fetcher_module
from archid.sync import sources as sources_module
from archid.sync.fetch_progress import FetchProgress, FetchState
from archid.sync.fetcher import Want
from archid.sync.sources import Sources
from protocol.envelope import Envelope
from protocol.ids import ManifestId
from protocol.messages import (
    Answer,
    Entitle,
    Entitled,
    ErrorCode,
    GetHave,
    GetManifest,
    GetPieces,
    GetSpan,
    HaveAnswer,
    ManifestAnswer,
    PieceAnswer,
    Refused,
    Request,
    SpanAnswer,
)
from tests.expected_errors import ErrorWatch
from tests.unit.store.trees import Version, assert_tree
from tests.unit.sync.sync_nodes import (
    MIB,
    Link,
    Session,
    SyncFleet,
    SyncNode,
    connect,
    entries,
    event,
    reel,
    release,
    running,
    until,
)

LARGE = 6 * MIB


@dataclass
class Stage:
    """A server that is granted a film, two REPOs, and nothing held yet."""

    fleet: SyncFleet
    film: Version
    salle: SyncNode
    one: SyncNode
    two: SyncNode

    @property
    def progress(self) -> FetchProgress:
        return self.salle.fetcher.progress[self.film.manifest]

    def fetch(self, nursery: trio.Nursery) -> None:
        """Let the server want the film, and work on it."""
        self.salle.fetcher.want([Want(self.film.manifest, 0)])
        nursery.start_soon(self.salle.fetcher.run)

    async def fetched(self) -> None:
        fetcher = self.salle.fetcher
        await until(lambda: self.salle.library.holds(self.film.manifest), fetcher.placed)

    def sources(self) -> Sources:
        manifest = self.film.manifest
        return Sources(manifest, self.salle.directory, lambda: self.salle.leaf.proof_for(manifest))

    def assert_whole(self) -> None:
        assert self.salle.library.holds(self.film.manifest)
        assert_tree(self.salle.library.tree(self.film.manifest), self.film.tree)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(sources_module, "FIRST_RETRY_S", 0.02)
    fleet = SyncFleet(tmp_path)
    film = fleet.publish("film", reel(1, LARGE))
    salle = fleet.enrol("salle")
    one, two = fleet.enrol("one", "repo", ""), fleet.enrol("two", "repo", "")
    fleet.give(salle, entries(release("Dune"), feature=film))
    fleet.sign()
    with ExitStack() as stack:
        nodes = [stack.enter_context(fleet.node(identity)) for identity in (salle, one, two)]
        yield Stage(fleet, film, *nodes)


Answers = Callable[[Request], Answer | Refused | list[Answer] | None]


def scripted(answers: Answers) -> Session:
    """A peer that answers as the test says; None answers nothing."""

    async def session(peer: Peer) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, peer)
            try:
                async for request in peer.requests:
                    answer = answers(request)
                    for one in answer if isinstance(answer, list) else [answer]:
                        if one is not None:
                            await peer.answer(one)
            except PeerLost:
                pass
            nursery.cancel_scope.cancel()

    async def drain(peer: Peer) -> None:
        async for _ in peer.notices:
            pass

    return session


def honest(stage: Stage) -> Answers:
    """What a peer that holds the film answers."""
    film = stage.film

    def answers(request: Request) -> Answer | Refused | list[Answer] | None:
        match request:
            case Entitle():
                return Entitled(request.request)
            case GetHave():
                return HaveAnswer(request.request, complete=True, bitmaps=())
            case GetManifest():
                envelope = stage.fleet.publications[film.manifest]
                return ManifestAnswer(request.request, envelope)
            case GetPieces():
                return [
                    PieceAnswer(request.request, one, film.pieces[one]) for one in request.piece_ids
                ]
            case GetSpan():
                span = next(
                    one
                    for one in film.layout.spans
                    if (one.piece, one.n) == (request.piece, request.n)
                )
                data = film.span_bytes(span, request.skip)
                return SpanAnswer(request.request, request.piece, request.n, data)
            case _:
                return Refused(request.request, ErrorCode.UNKNOWN_DOCUMENT, "not here")

    return answers


async def test_a_version_comes_whole_from_one_peer(stage: Stage) -> None:
    stage.one.hold(stage.film)
    async with running() as nursery:
        await connect(nursery, stage.salle, stage.one)
        stage.fetch(nursery)
        await stage.fetched()
    stage.assert_whole()
    assert stage.progress.state is FetchState.HELD
    assert stage.progress.received_bytes == LARGE


async def test_the_entry_is_shown_and_the_have_map_asked_for_in_one_round_trip(
    stage: Stage,
) -> None:
    good = honest(stage)
    shown: list[Request] = []

    def answers(request: Request) -> Answer | Refused | list[Answer] | None:
        if isinstance(request, Entitle):
            shown.append(request)  # answered once the next question is here
            return None
        if isinstance(request, GetHave):
            return [Entitled(shown.pop().request), HaveAnswer(request.request, True, ())]
        return good(request)

    async with running() as nursery:
        await connect(nursery, stage.salle, stage.one, right=scripted(answers))
        stage.fetch(nursery)
        await stage.fetched()
    stage.assert_whole()


async def test_why_an_entry_is_refused_is_told_and_not_that_there_is_none(stage: Stage) -> None:
    def answers(request: Request) -> Answer | Refused | list[Answer] | None:
        if isinstance(request, Entitle):
            return Refused(request.request, ErrorCode.BAD_PROOF, "its leaf is another node's")
        return Refused(request.request, ErrorCode.NOT_ENTITLED, "no entry was shown")

    async with running() as nursery:
        await connect(nursery, stage.salle, stage.one, right=scripted(answers))
        sources = stage.sources()
        nursery.start_soon(sources.run)
        with trio.fail_after(10):
            while not sources.refusals:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert sources.refusals == {"one": "its leaf is another node's"}
        assert not sources.ready


async def test_two_peers_share_the_work(stage: Stage) -> None:
    stage.one.hold(stage.film)
    stage.two.hold(stage.film)
    async with running() as nursery:
        links = [await connect(nursery, stage.salle, node) for node in (stage.one, stage.two)]
        stage.fetch(nursery)
        await stage.fetched()
        sent = [link.left.traffic.span_bytes_received for link in links]
    stage.assert_whole()
    assert all(sent)
    assert sum(sent) == stage.progress.received_bytes
    assert sum(sent) < LARGE * 3 // 2, "what both are asked for in the end is little"


async def test_a_peer_that_is_lost_in_the_middle_is_replaced_by_the_other(stage: Stage) -> None:
    stage.two.hold(stage.film)
    asked = trio.Event()
    good = honest(stage)

    def silent(request: Request) -> Answer | Refused | list[Answer] | None:
        if isinstance(request, GetSpan):
            asked.set()
            return None
        return good(request)

    async with running() as nursery:
        lost = await connect(nursery, stage.salle, stage.one, right=scripted(silent))

        async def lose_it() -> None:
            await asked.wait()
            lost.right.stream.close()
            await connect(nursery, stage.salle, stage.two)

        nursery.start_soon(lose_it)
        stage.fetch(nursery)
        await stage.fetched()
    stage.assert_whole()


@pytest.mark.parametrize("at", [GetManifest, GetPieces, GetSpan, GetHave, Entitle])
async def test_losing_the_only_peer_at_any_request_is_survived(
    stage: Stage, at: type[Request]
) -> None:
    stage.two.hold(stage.film)
    good = honest(stage)
    link: list[Link] = []
    asked = trio.Event()

    def falling(request: Request) -> Answer | Refused | list[Answer] | None:
        if isinstance(request, at):
            asked.set()
            return None
        return good(request)

    async with running() as nursery:

        async def come_back() -> None:
            await asked.wait()
            link[0].right.stream.close()
            # The same node again, over a new connection, holding everything.
            stage.one.hold(stage.film)
            await connect(nursery, stage.salle, stage.one)

        link.append(await connect(nursery, stage.salle, stage.one, right=scripted(falling)))
        nursery.start_soon(come_back)
        stage.fetch(nursery)
        await stage.fetched()
    stage.assert_whole()


async def test_a_liar_is_dropped_and_reported_and_nothing_wrong_is_written(
    stage: Stage, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("peer_sent_wrong_bytes")
    good = honest(stage)

    def lying(request: Request) -> Answer | Refused | list[Answer] | None:
        answer = good(request)
        if isinstance(answer, SpanAnswer):
            data = bytearray(answer.data)
            data[len(data) // 2] ^= 1
            return SpanAnswer(answer.request, answer.piece, answer.n, bytes(data))
        return answer

    async with stage.salle.events.subscribe() as events, running() as nursery:
        await connect(nursery, stage.salle, stage.one, right=scripted(lying))

        async def help_later() -> None:
            await event(events, "alarm", code="peer_sent_wrong_bytes")
            stage.two.hold(stage.film)
            await connect(nursery, stage.salle, stage.two)

        nursery.start_soon(help_later)
        stage.fetch(nursery)
        await stage.fetched()
    stage.assert_whole()


async def test_a_manifest_of_other_bytes_is_a_lie_and_one_signed_by_others_is_not(
    stage: Stage, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("peer_sent_wrong_bytes")
    other = stage.fleet.publish("other", reel(2))
    good = honest(stage)
    asked = trio.Event()

    def other_manifest(request: Request) -> Answer | Refused | list[Answer] | None:
        if isinstance(request, GetManifest):
            return ManifestAnswer(request.request, stage.fleet.publications[other.manifest])
        return good(request)

    def unsigned(request: Request) -> Answer | Refused | list[Answer] | None:
        if isinstance(request, GetManifest):
            asked.set()
            return ManifestAnswer(request.request, Envelope(stage.film.root.payload, ()).encode())
        return good(request)

    async with stage.salle.events.subscribe(prefixes=["alarm"]) as alarms, running() as nursery:
        await connect(nursery, stage.salle, stage.two, right=scripted(unsigned))
        stage.fetch(nursery)
        await asked.wait()
        await connect(nursery, stage.salle, stage.one, right=scripted(other_manifest))
        alarm = await event(alarms, "alarm")
        assert "one sent bytes" in str(alarm["sentence"])
        assert not stage.salle.documents.has_manifest(stage.film.manifest)
        nursery.cancel_scope.cancel()


async def test_a_job_that_was_stopped_goes_on_where_it_was(stage: Stage) -> None:
    stage.one.hold(stage.film)
    good = honest(stage)
    given: list[GetSpan] = []
    enough = trio.Event()

    def some(request: Request) -> Answer | Refused | list[Answer] | None:
        if isinstance(request, GetSpan):
            if len(given) == 3:
                enough.set()
                return None
            given.append(request)
        return good(request)

    async with running() as nursery:
        await connect(nursery, stage.salle, stage.one, right=scripted(some))
        stage.fetch(nursery)
        await enough.wait()
        await three_spans_written(stage)
        nursery.cancel_scope.cancel()
    held = stage.progress.held_bytes
    assert 0 < held < LARGE
    assert not stage.salle.library.holds(stage.film.manifest)
    async with running() as nursery:
        link = await connect(nursery, stage.salle, stage.one)
        stage.fetch(nursery)
        await stage.fetched()
        received = link.left.traffic.span_bytes_received
    stage.assert_whole()
    assert received <= LARGE - held


async def three_spans_written(stage: Stage) -> None:
    """Three spans that were received are written."""
    while stage.progress.held_bytes < 3 * MIB:
        await trio.testing.wait_all_tasks_blocked()


async def test_what_is_here_already_needs_no_peer(stage: Stage) -> None:
    older = stage.fleet.publish("film", stage.film.tree, version=7)
    stage.salle.hold(older)
    stage.salle.hold_documents(stage.film)
    async with running() as nursery:
        stage.fetch(nursery)
        await stage.fetched()
    stage.assert_whole()
    assert stage.progress.received_bytes == 0


async def test_a_full_disk_is_a_named_failure_that_ends_when_there_is_room(
    stage: Stage, expected_errors: ErrorWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_errors.expect("fetch_failed")
    monkeypatch.setattr(fetcher_module, "FIRST_RETRY_S", 0.02)
    stage.one.hold(stage.film)
    stage.salle.library.keep_free_bytes = 1 << 60
    async with stage.salle.events.subscribe() as events, running() as nursery:
        await connect(nursery, stage.salle, stage.one)
        stage.fetch(nursery)
        failed = await event(events, "fetch.failed")
        assert "full" in str(failed["reason"])
        stage.salle.library.keep_free_bytes = 0
        await stage.fetched()
    stage.assert_whole()


async def test_a_manifest_kept_under_keys_that_no_longer_count_is_fetched_signed_anew(
    stage: Stage,
) -> None:
    stage.one.hold(stage.film)
    stage.salle.documents.put_manifest(Envelope(stage.film.root.payload, ()).encode())
    async with running() as nursery:
        await connect(nursery, stage.salle, stage.one)
        stage.fetch(nursery)
        await stage.fetched()
    stage.assert_whole()
    kept = stage.salle.documents.get_manifest(stage.film.manifest)
    assert kept == stage.fleet.publications[stage.film.manifest]


# Sources


async def test_a_peer_that_is_not_ready_is_asked_until_it_is(stage: Stage) -> None:
    good = honest(stage)
    refusals = [
        ErrorCode.NOT_READY, ErrorCode.UNKNOWN_MANIFEST, ErrorCode.NOT_ENTITLED, ErrorCode.BUSY,
    ]  # fmt: skip

    def at_last(request: Request) -> Answer | Refused | list[Answer] | None:
        if isinstance(request, GetHave) and refusals:
            return Refused(request.request, refusals.pop(), "not yet")
        return good(request)

    sources = stage.sources()
    async with running() as nursery:
        nursery.start_soon(sources.run)
        await connect(nursery, stage.salle, stage.one, right=scripted(at_last))
        await until(lambda: bool(sources.ready), sources.changed)
        assert not refusals
        assert sources.refusals == {}
        nursery.cancel_scope.cancel()


async def test_an_entry_that_holds_no_more_in_mid_fetch_is_shown_anew(stage: Stage) -> None:
    good = honest(stage)
    entitled = [0]

    def forgetful(request: Request) -> Answer | Refused | list[Answer] | None:
        if isinstance(request, Entitle):
            entitled[0] += 1
        if isinstance(request, GetSpan) and entitled[0] == 1:
            return Refused(request.request, ErrorCode.NOT_ENTITLED, "show it again")
        return good(request)

    async with running() as nursery:
        await connect(nursery, stage.salle, stage.one, right=scripted(forgetful))
        stage.fetch(nursery)
        await stage.fetched()
    stage.assert_whole()
    assert entitled[0] == 2


async def test_a_source_leaves_with_its_connection(stage: Stage) -> None:
    stage.one.hold(stage.film)
    sources = stage.sources()
    async with running() as nursery:
        nursery.start_soon(sources.run)
        link = await connect(nursery, stage.salle, stage.one)
        await until(lambda: sources.names() == ("one",), sources.changed)
        link.left.disconnect(ErrorCode.CLOSING, "enough")
        await until(lambda: sources.names() == (), sources.changed)
        assert sources.why_none() == "no peer that holds it is connected"
        nursery.cancel_scope.cancel()


async def test_claims_about_spans_that_do_not_exist_are_passed_over(stage: Stage) -> None:
    good = honest(stage)

    def claiming(request: Request) -> Answer | Refused | list[Answer] | None:
        if isinstance(request, GetHave):
            claims = tuple((index, b"\xff" * 256) for index in range(3000))
            return HaveAnswer(request.request, complete=False, bitmaps=claims)
        return good(request)

    async with running() as nursery:
        await connect(nursery, stage.salle, stage.one, right=scripted(claiming))
        stage.fetch(nursery)
        await stage.fetched()
    stage.assert_whole()


def test_an_unknown_manifest_is_nobodys(stage: Stage) -> None:
    unknown = ManifestId.of(b"unknown")
    assert stage.salle.leaf.proof_for(unknown) == b""
