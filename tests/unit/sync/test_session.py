"""What one peer gets from another: each kind of request, entitled and not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from archid.net.errors import PeerLost, PeerRefused
from archid.net.peer import Peer
from archid.store.documents import DocumentStore
from archid.store.seeding import Seeding
from archid.sync.trust_restoring import decode_envelope
from protocol import paged
from protocol.facts import Entry
from protocol.head import DENIED_RELEASE, Denial
from protocol.ids import DocumentId, ListId, ManifestId, PageId, PieceId
from protocol.messages import (
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
from tests.expected_errors import ErrorWatch
from tests.unit.store.trees import Version
from tests.unit.sync.sync_nodes import (
    MIB,
    SyncFleet,
    SyncNode,
    entries,
    linked,
    reel,
    release,
)

NOTHING = ManifestId.of(b"nothing")


@dataclass
class Cast:
    """A REPO that serves, one that asks, and two ICE nodes, of which one is granted a film."""

    fleet: SyncFleet
    film: Version
    other: Version
    repo: SyncNode
    second: SyncNode
    salle: SyncNode
    stranger: SyncNode


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    fleet = SyncFleet(tmp_path)
    film = fleet.publish("film", reel(1, 3 * MIB))
    other = fleet.publish("other", reel(2))
    names = ("repo", "repo", ""), ("second", "repo", ""), ("salle", "ice", "lyon")
    repo, second, salle = (fleet.enrol(name, role, site) for name, role, site in names)
    stranger = fleet.enrol("stranger", "ice", "paris")
    fleet.give(salle, entries(release("Dune"), feature=film))
    fleet.give(stranger, entries(release("Other"), feature=other))
    fleet.sign()
    with (
        fleet.node(repo) as one,
        fleet.node(second) as two,
        fleet.node(salle) as three,
        fleet.node(stranger) as four,
    ):
        one.hold_lists()
        one.hold(film)
        one.hold(other)
        yield Cast(fleet, film, other, one, two, three, four)


@pytest.fixture
async def salle(cast: Cast) -> AsyncIterator[Peer]:
    """The REPO as the granted ICE node reaches it; nothing has been shown yet."""
    async with linked(cast.salle, cast.repo) as link:
        yield link.left


@pytest.fixture
async def second(cast: Cast) -> AsyncIterator[Peer]:
    """The REPO as another REPO reaches it."""
    async with linked(cast.second, cast.repo) as link:
        yield link.left


async def refusal(peer: Peer, request: Request) -> ErrorCode:
    with pytest.raises(PeerRefused) as refused:
        await peer.request(request)
    return refused.value.reason


def content_requests(film: Version) -> list[Request]:
    span = film.layout.spans[0]
    return [
        GetManifest(0, film.manifest),
        GetPieces(0, film.manifest, (span.piece,)),
        GetHave(0, film.manifest),
        GetSpan(0, film.manifest, span.piece, span.n, b""),
    ]


async def show(peer: Peer, node: SyncNode, film: Version) -> None:
    await peer.request(Entitle(0, film.manifest, node.leaf.proof_for(film.manifest)), Entitled)


async def test_content_is_for_who_has_shown_an_entry(cast: Cast, salle: Peer) -> None:
    for request in content_requests(cast.film):
        assert await refusal(salle, request) is ErrorCode.NOT_ENTITLED
    await show(salle, cast.salle, cast.film)
    manifest = await salle.request(GetManifest(0, cast.film.manifest), ManifestAnswer)
    assert manifest.envelope == cast.fleet.publications[cast.film.manifest]
    refs = [ref.id for ref in cast.film.root.pieces]
    pieces = await salle.request_all(GetPieces(0, cast.film.manifest, tuple(refs[:16])))
    assert [PieceId.of(one.data) for one in pieces if isinstance(one, PieceAnswer)] == refs[:16]
    have = await salle.request(GetHave(0, cast.film.manifest), HaveAnswer)
    assert have.complete
    for span in cast.film.layout.spans:
        answer = await salle.request(
            GetSpan(0, cast.film.manifest, span.piece, span.n, b""), SpanAnswer
        )
        assert bytes(answer.data) == cast.film.span_bytes(span)


async def test_one_entry_opens_one_manifest_only(cast: Cast, salle: Peer) -> None:
    await show(salle, cast.salle, cast.film)
    for request in content_requests(cast.other):
        assert await refusal(salle, request) is ErrorCode.NOT_ENTITLED
    proof = cast.salle.leaf.proof_for(cast.film.manifest)
    wrong = Entitle(0, cast.other.manifest, proof)
    assert await refusal(salle, wrong) is ErrorCode.NOT_ENTITLED


async def test_pieces_of_another_manifest_are_not_given_under_this_one(
    cast: Cast, salle: Peer
) -> None:
    await show(salle, cast.salle, cast.film)
    [foreign] = [ref.id for ref in cast.other.root.pieces]
    asked = GetPieces(0, cast.film.manifest, (cast.film.root.pieces[0].id, foreign))
    assert await refusal(salle, asked) in (ErrorCode.UNKNOWN_MANIFEST, ErrorCode.UNKNOWN_DOCUMENT)
    span = GetSpan(0, cast.film.manifest, foreign, 0, b"")
    assert await refusal(salle, span) is ErrorCode.UNKNOWN_SPAN


async def test_chunks_that_are_not_wanted_are_left_out(cast: Cast, salle: Peer) -> None:
    await show(salle, cast.salle, cast.film)
    span = cast.film.layout.spans[0]
    skip = bytes([0b101]) + bytes(1)
    answer = await salle.request(
        GetSpan(0, cast.film.manifest, span.piece, span.n, skip), SpanAnswer
    )
    assert bytes(answer.data) == cast.film.span_bytes(span, skip)
    assert len(answer.data) < span.size_bytes


@pytest.mark.parametrize(
    ("proof", "code"),
    [
        (b"", ErrorCode.NOT_ENTITLED),
        (b"garbage", ErrorCode.BAD_PROOF),
        ("facts", ErrorCode.NOT_ENTITLED),
        ("another's", ErrorCode.BAD_PROOF),
        ("unknown grants", ErrorCode.BAD_PROOF),
    ],
)
async def test_a_proof_that_shows_no_entry_of_the_peer_entitles_to_nothing(
    cast: Cast, salle: Peer, proof: bytes | str, code: ErrorCode
) -> None:
    fleet, newest = cast.fleet, cast.fleet.grants_roots[0]
    own = fleet.trees[newest].leaf(cast.salle.id, newest)
    if proof == "facts":
        proof = own.proof().encode()
    elif proof == "another's":
        await cast.stranger.leaf.load()
        proof = cast.stranger.leaf.proof_for(cast.other.manifest)
    elif proof == "unknown grants":
        [(index, _)] = cast.salle.leaf.leaf.entries if cast.salle.leaf.leaf else []
        unknown = fleet.trees[newest].leaf(cast.salle.id, DocumentId.of(b"unknown"))
        proof = unknown.proof(index).encode()
    assert isinstance(proof, bytes)
    manifest = cast.other.manifest if proof.startswith(b"another") else cast.film.manifest
    assert await refusal(salle, Entitle(0, manifest, proof)) is code
    assert await refusal(salle, GetHave(0, cast.film.manifest)) is ErrorCode.NOT_ENTITLED


async def test_repos_read_everything_without_showing_entries(cast: Cast, second: Peer) -> None:
    await second.request(Entitle(0, cast.film.manifest, b""), Entitled)
    for film in (cast.film, cast.other):
        for request in content_requests(film):
            await second.request(request)
    assert await refusal(second, GetHave(0, NOTHING)) is ErrorCode.UNKNOWN_MANIFEST
    assert await refusal(second, GetManifest(0, NOTHING)) is ErrorCode.UNKNOWN_MANIFEST


async def test_lists_are_for_central_and_repos(cast: Cast, salle: Peer, second: Peer) -> None:
    head = cast.fleet.head
    assert head is not None
    index = GetList(0, paged.CATALOGUE, head.catalogue)
    refs = paged.decode_index(cast.fleet.lists[head.catalogue]).pages
    page = GetPage(0, paged.CATALOGUE, head.catalogue, refs[0].id)
    for request in (index, page):
        assert await refusal(salle, request) is ErrorCode.NOT_ENTITLED
    answer = await second.request(index, ListAnswer)
    assert ListId.of(answer.index) == head.catalogue
    got = await second.request(page, PageAnswer)
    assert PageId.of(got.page) == refs[0].id
    unknown = GetList(0, paged.CATALOGUE, ListId.of(b"unknown"))
    assert await refusal(second, unknown) is ErrorCode.UNKNOWN_DOCUMENT


async def test_leaves_stay_within_their_site(cast: Cast, salle: Peer, second: Peer) -> None:
    newest = cast.fleet.grants_roots[0]
    own = await salle.request(GetLeaf(0, cast.salle.id, newest), LeafAnswer)
    assert own.leaf == cast.fleet.leaf(cast.salle.identity)
    foreign = GetLeaf(0, cast.stranger.id, newest)
    assert await refusal(salle, foreign) is ErrorCode.NOT_ENTITLED
    # What is not here looks the same as what is not for this peer.
    nowhere = GetLeaf(0, cast.stranger.id, DocumentId.of(b"nowhere"))
    assert await refusal(salle, nowhere) is ErrorCode.NOT_ENTITLED
    assert (await second.request(foreign, LeafAnswer)).leaf == cast.fleet.leaf(
        cast.stranger.identity
    )
    assert await refusal(second, nowhere) is ErrorCode.UNKNOWN_DOCUMENT


async def test_a_neighbour_of_the_site_gets_the_leaf(cast: Cast) -> None:
    fleet = cast.fleet
    sas = fleet.enrol("sas")
    fleet.sign()
    with fleet.node(sas) as node:
        await cast.salle.take_head()
        newest = fleet.grants_roots[0]
        node.documents.put_leaf(cast.salle.id, newest, fleet.leaf(cast.salle.identity))
        async with linked(cast.salle, node) as link:
            answer = await link.left.request(GetLeaf(0, cast.salle.id, newest), LeafAnswer)
            assert answer.leaf == fleet.leaf(cast.salle.identity)
            theirs = await link.left.request(GetLeaf(0, node.id, newest), LeafAnswer)
            assert theirs.leaf == fleet.leaf(sas)


async def test_what_the_fleet_is_everybody_may_know(cast: Cast, salle: Peer) -> None:
    newest = cast.fleet.grants_roots[0]
    root = await salle.request(GetRoot(0, 1), RootDocument)
    assert root.envelope == cast.fleet.roots[0].encode()
    assert await refusal(salle, GetRoot(0, 2)) is ErrorCode.UNKNOWN_DOCUMENT
    head = await salle.request(GetHead(0), HeadAnswer)
    assert (head.head, head.grants) == (cast.fleet.head_bytes, cast.fleet.grants_bytes)
    grants = await salle.request(GetGrants(0, newest), GrantsAnswer)
    assert grants.envelope == cast.fleet.grants_bytes
    unknown = GetGrants(0, DocumentId.of(b"unknown"))
    assert await refusal(salle, unknown) is ErrorCode.UNKNOWN_DOCUMENT


async def test_rotten_bytes_are_refused_told_and_never_sent(
    cast: Cast, salle: Peer, expected_errors: ErrorWatch
) -> None:
    expected_errors.expect("chunk_rotten")
    await show(salle, cast.salle, cast.film)
    path = cast.repo.library.tree(cast.film.manifest) / "reel.bin"
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"rot")
    first, second = cast.film.layout.spans[:2]
    rotten = GetSpan(0, cast.film.manifest, first.piece, first.n, b"")
    assert await refusal(salle, rotten) is ErrorCode.CHUNK_CORRUPT
    [damage] = cast.repo.library.damage.all()
    assert damage.manifest == cast.film.manifest
    assert set(damage.chunks) == {0}
    whole = GetSpan(0, cast.film.manifest, second.piece, second.n, b"")
    answer = await salle.request(whole, SpanAnswer)
    assert bytes(answer.data) == cast.film.span_bytes(second)


async def test_a_disk_that_fails_refuses_one_request_and_the_connection_lives_on(
    cast: Cast, second: Peer, expected_errors: ErrorWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_errors.expect("request_failed")

    def fail(*_arguments: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(DocumentStore, "get_manifest", fail)
    assert await refusal(second, GetManifest(0, cast.film.manifest)) is ErrorCode.INTERNAL
    monkeypatch.undo()
    await second.request(GetManifest(0, cast.film.manifest), ManifestAnswer)


async def test_requests_that_were_cancelled_do_not_disturb_the_others(
    cast: Cast, salle: Peer
) -> None:
    await show(salle, cast.salle, cast.film)
    span = cast.film.layout.spans[0]
    ask = GetSpan(0, cast.film.manifest, span.piece, span.n, b"")
    pieces = GetPieces(0, cast.film.manifest, tuple(r.id for r in cast.film.root.pieces[:16]))
    async with trio.open_nursery() as nursery:
        for request in [ask, pieces] * 8:
            nursery.start_soon(salle.request_all, request)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    answer = await salle.request(ask, SpanAnswer)
    assert bytes(answer.data) == cast.film.span_bytes(span)


async def test_a_head_counts_from_the_moment_it_is_believed(cast: Cast, salle: Peer) -> None:
    await show(salle, cast.salle, cast.film)
    await salle.request(GetHave(0, cast.film.manifest))
    cast.fleet.sign(denied=(cast.fleet.denial(cast.salle.identity),))
    # Believed, but not announced inside the node: nobody has been told to judge peers again.
    trust = cast.repo.keeper.trust
    trust.accept_head(cast.fleet.signed.sign_head(cast.fleet.head), now=0)  # type: ignore[arg-type]
    with pytest.raises(PeerLost) as lost:
        await salle.request(GetHave(0, cast.film.manifest))
    assert lost.value.reason is ErrorCode.DENIED


async def test_a_revocation_counts_for_what_is_just_being_read(
    cast: Cast, salle: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await show(salle, cast.salle, cast.film)
    trust, read = cast.repo.keeper.trust, Seeding.read_span
    cast.fleet.sign(denied=(cast.fleet.denial(cast.salle.identity),))

    def revoke_meanwhile(*arguments: Any) -> Any:
        trust.accept_head(decode_envelope(cast.fleet.head_bytes), now=0)
        return read(*arguments)

    monkeypatch.setattr(Seeding, "read_span", revoke_meanwhile)
    span = cast.film.layout.spans[0]
    with pytest.raises(PeerLost) as lost:
        await salle.request(GetSpan(0, cast.film.manifest, span.piece, span.n, b""))
    assert lost.value.reason is ErrorCode.DENIED
    assert salle.traffic.span_bytes_received == 0


async def test_nothing_is_read_for_who_may_not_have_it(
    cast: Cast, salle: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(*_arguments: Any) -> Any:
        raise AssertionError("it was read")

    for name in ("read_span", "piece"):
        monkeypatch.setattr(Seeding, name, reading)
    monkeypatch.setattr(DocumentStore, "get_manifest", reading)
    for request in content_requests(cast.film):
        assert await refusal(salle, request) is ErrorCode.NOT_ENTITLED


async def test_a_denied_release_closes_its_content_and_nothing_else(
    cast: Cast, salle: Peer
) -> None:
    await show(salle, cast.salle, cast.film)
    leaf = cast.salle.leaf.leaf
    assert leaf is not None
    [(_, entry)] = leaf.entries
    assert isinstance(entry, Entry)
    newest = cast.fleet.grants_roots[0]
    cast.fleet.sign(denied=(Denial(DENIED_RELEASE, bytes(entry.release), newest),))
    await cast.repo.take_head()
    assert await refusal(salle, GetHave(0, cast.film.manifest)) is ErrorCode.NOT_ENTITLED
    await salle.request(GetHead(0))
