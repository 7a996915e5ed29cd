"""Strategies for every message, and one fixed example of each for the frozen vectors."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from protocol.ids import DocumentId, FleetId, ListId, ManifestId, NodeId, PageId, PieceId
from protocol.limits import MAX_FEATURE_BYTES, MAX_SERIAL, MAX_TIME_S
from protocol.messages import (
    MESSAGE_TYPES,
    Cancel,
    Entitle,
    Entitled,
    ErrorCode,
    GetAny,
    GetGrants,
    GetHave,
    GetHead,
    GetHolders,
    GetLeaf,
    GetList,
    GetManifest,
    GetPage,
    GetPieceDeltas,
    GetPieces,
    GetRoot,
    GetSpan,
    Goodbye,
    GrantsAnswer,
    HaveAnswer,
    HaveUpdate,
    HeadAnnounce,
    HeadAnswer,
    HeadDigest,
    Hello,
    Holder,
    HoldersAnswer,
    JoinAccepted,
    JoinBegin,
    JoinOffer,
    JoinReady,
    JoinRequest,
    LaneOffered,
    LaneProof,
    LeafAnswer,
    ListAnswer,
    ManifestAnswer,
    Message,
    OpenLane,
    PageAnswer,
    PeerHint,
    PeerHints,
    Picked,
    PieceAnswer,
    PieceDelta,
    Ping,
    Pong,
    Prove,
    Refused,
    RootDocument,
    SentState,
    SpanAnswer,
    StateDigest,
    StateRow,
    States,
    Unwant,
    WantLane,
    Welcome,
)

REQUEST = st.integers(1, 2**63 - 1)
BLOB = st.binary(max_size=300)
SERIAL = st.integers(0, MAX_SERIAL)
NAME = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)

SHORT = NAME.filter(lambda text: len(text.encode()) <= 32)


def exact(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def ident(kind: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, exact(32))


CODE = st.sampled_from([code for code in ErrorCode if code is not ErrorCode.OTHER])
HINT = st.builds(PeerHint, ident(NodeId), NAME, st.lists(NAME, max_size=8).map(tuple))
ROOTS = st.lists(BLOB, max_size=4).map(tuple)
FEATURES = st.lists(st.text(max_size=MAX_FEATURE_BYTES // 4), max_size=5).map(tuple)
BITMAPS = st.lists(st.tuples(st.integers(0, 32767), st.binary(max_size=256)), max_size=6).map(tuple)
WANTED = st.dictionaries(
    st.integers(0, 32767), st.binary(min_size=1, max_size=256).filter(any), min_size=1, max_size=16
).map(lambda pieces: tuple(sorted(pieces.items())))

STRATEGIES: dict[type[Message], st.SearchStrategy[Any]] = {
    Hello: st.builds(
        Hello,
        st.integers(1, 65535),
        st.integers(1, 65535),
        FEATURES,
        st.none() | ident(FleetId),
        st.none() | ident(NodeId),
        SERIAL,
        st.tuples(SERIAL, SERIAL),
        exact(32),
        NAME,
        st.integers(0, MAX_TIME_S),
    ),
    Goodbye: st.builds(Goodbye, CODE, NAME),
    Refused: st.builds(Refused, REQUEST, CODE, NAME),
    Cancel: st.builds(Cancel, REQUEST),
    Ping: st.builds(Ping, st.integers(0, 2**63 - 1)),
    Pong: st.builds(Pong, st.integers(0, 2**63 - 1)),
    Prove: st.builds(Prove, BLOB, BLOB, BLOB),
    Welcome: st.builds(Welcome),
    HeadAnnounce: st.builds(HeadAnnounce, BLOB, BLOB),
    GetRoot: st.builds(GetRoot, REQUEST, st.integers(1, MAX_SERIAL)),
    RootDocument: st.builds(RootDocument, REQUEST, BLOB),
    GetHead: st.builds(GetHead, REQUEST),
    HeadAnswer: st.builds(HeadAnswer, REQUEST, BLOB, BLOB),
    GetGrants: st.builds(GetGrants, REQUEST, ident(DocumentId)),
    GrantsAnswer: st.builds(GrantsAnswer, REQUEST, BLOB),
    GetLeaf: st.builds(GetLeaf, REQUEST, ident(NodeId), ident(DocumentId)),
    LeafAnswer: st.builds(LeafAnswer, REQUEST, BLOB),
    GetList: st.builds(
        GetList, REQUEST, NAME.filter(lambda t: len(t.encode()) <= 32), ident(ListId)
    ),
    ListAnswer: st.builds(ListAnswer, REQUEST, BLOB),
    GetPage: st.builds(GetPage, REQUEST, st.just("catalogue"), ident(ListId), ident(PageId)),
    PageAnswer: st.builds(PageAnswer, REQUEST, BLOB),
    Entitle: st.builds(Entitle, REQUEST, ident(ManifestId), BLOB),
    Entitled: st.builds(Entitled, REQUEST),
    GetManifest: st.builds(GetManifest, REQUEST, ident(ManifestId)),
    ManifestAnswer: st.builds(ManifestAnswer, REQUEST, BLOB),
    GetPieces: st.builds(
        GetPieces,
        REQUEST,
        ident(ManifestId),
        st.lists(ident(PieceId), min_size=1, max_size=16).map(tuple),
    ),
    GetPieceDeltas: st.builds(
        GetPieceDeltas,
        REQUEST,
        ident(ManifestId),
        st.lists(ident(PieceId), min_size=1, max_size=16).map(tuple),
        st.lists(ident(PieceId), max_size=32).map(tuple),
    ),
    PieceDelta: st.builds(
        PieceDelta,
        REQUEST,
        ident(PieceId),
        st.lists(
            st.tuples(st.integers(0, 32), st.integers(0, 131_071), st.integers(1, 131_072)),
            max_size=20,
        ).map(tuple),
        BLOB,
    ),
    PieceAnswer: st.builds(PieceAnswer, REQUEST, ident(PieceId), BLOB),
    GetHave: st.builds(GetHave, REQUEST, ident(ManifestId)),
    HaveAnswer: st.builds(HaveAnswer, REQUEST, st.booleans(), BITMAPS),
    GetSpan: st.builds(
        GetSpan,
        REQUEST,
        ident(ManifestId),
        ident(PieceId),
        st.integers(0, 65535),
        st.binary(max_size=64),
    ),
    SpanAnswer: st.builds(SpanAnswer, REQUEST, ident(PieceId), st.integers(0, 65535), BLOB),
    HaveUpdate: st.builds(HaveUpdate, ident(ManifestId), ident(PieceId), st.integers(0, 65535)),
    PeerHints: st.builds(
        PeerHints,
        st.lists(HINT.filter(lambda h: len(h.role.encode()) <= 32), max_size=3).map(tuple),
    ),
    GetAny: st.builds(GetAny, REQUEST, ident(ManifestId), WANTED),
    Picked: st.builds(Picked, REQUEST, st.integers(0, 32767), st.integers(0, 65535)),
    Unwant: st.builds(
        Unwant, REQUEST, ident(ManifestId), st.integers(0, 32767), st.integers(0, 65535)
    ),
    States: st.builds(States, st.lists(st.builds(SentState, BLOB, BLOB), max_size=4).map(tuple)),
    StateDigest: st.builds(
        StateDigest,
        st.lists(st.builds(StateRow, ident(NodeId), SERIAL, SERIAL), max_size=4).map(tuple),
        st.booleans(),
    ),
    GetHolders: st.builds(GetHolders, REQUEST, ident(ManifestId)),
    HoldersAnswer: st.builds(
        HoldersAnswer,
        REQUEST,
        st.lists(
            st.builds(Holder, ident(NodeId), st.lists(st.text(max_size=20), max_size=3).map(tuple)),
            max_size=3,
        ).map(tuple),
    ),
    HeadDigest: st.builds(HeadDigest, st.tuples(SERIAL, SERIAL)),
    WantLane: st.builds(WantLane),
    OpenLane: st.builds(OpenLane, REQUEST, exact(16), exact(32)),
    LaneOffered: st.builds(LaneOffered, REQUEST, exact(32)),
    LaneProof: st.builds(LaneProof),
    JoinBegin: st.builds(JoinBegin, exact(16)),
    JoinOffer: st.builds(JoinOffer, ROOTS),
    JoinRequest: st.builds(JoinRequest, exact(16), exact(32), exact(32), exact(64), NAME),
    JoinAccepted: st.builds(JoinAccepted, BLOB, ROOTS, BLOB, BLOB, BLOB),
    JoinReady: st.builds(JoinReady),
}
ANY_MESSAGE: st.SearchStrategy[Message] = st.one_of(*STRATEGIES.values())


def _id(kind: type[Any], byte: int) -> Any:
    return kind(bytes([byte]) * 32)


FLEET, NODE = _id(FleetId, 1), _id(NodeId, 2)
MANIFEST, PIECE = _id(ManifestId, 3), _id(PieceId, 4)
DOCUMENT, LIST, PAGE = _id(DocumentId, 5), _id(ListId, 6), _id(PageId, 7)

EXAMPLES: tuple[Message, ...] = (
    Hello(1, 3, ("any", "pick"), FLEET, NODE, 2, (1, 77), b"n" * 32, "archid 0.1.0", 1_800_000_000),
    Hello(1, 1, (), None, None, 0, (0, 0), b"j" * 32, "archid 0.1.0", 0),
    Goodbye(ErrorCode.WRONG_FLEET, "the two sides belong to different fleets"),
    Refused(9, ErrorCode.NOT_ENTITLED, "no entry shown grants this manifest"),
    Cancel(9),
    Ping(0),
    Pong(2**63 - 1),
    Prove(b"head", b"grants", b"proof"),
    Welcome(),
    HeadAnnounce(b"head", b"grants"),
    GetRoot(1, 2),
    RootDocument(1, b"root"),
    GetHead(2),
    HeadAnswer(2, b"head", b"grants"),
    GetGrants(3, DOCUMENT),
    GrantsAnswer(3, b"grants"),
    GetLeaf(4, NODE, DOCUMENT),
    LeafAnswer(4, b"leaf"),
    GetList(5, "catalogue", LIST),
    ListAnswer(5, b"index"),
    GetPage(6, "roster", LIST, PAGE),
    PageAnswer(6, b"page"),
    Entitle(7, MANIFEST, b"proof"),
    Entitled(7),
    GetManifest(8, MANIFEST),
    ManifestAnswer(8, b"manifest"),
    GetPieces(9, MANIFEST, (PIECE, _id(PieceId, 8))),
    PieceAnswer(9, PIECE, b"piece"),
    GetHave(10, MANIFEST),
    HaveAnswer(10, True, ()),
    HaveAnswer(10, False, ((0, b"\xff\x01"), (70, b"\x80"))),
    GetSpan(300, MANIFEST, PIECE, 258, b"\x05"),
    SpanAnswer(300, PIECE, 258, b"the bytes of two chunks"),
    HaveUpdate(MANIFEST, PIECE, 3),
    PeerHints((PeerHint(NODE, "repo", ("repo-1.example:4777", "[2001:db8::1]:4777")),)),
    GetAny(301, MANIFEST, ((0, b"\xff\x01"), (70, b"\x80"))),
    Picked(301, 70, 7),
    Unwant(301, MANIFEST, 70, 7),
    States((SentState(b"state", b"proof"),)),
    StateDigest((StateRow(NODE, 1, 258),), True),
    HeadDigest((1, 258)),
    WantLane(),
    OpenLane(302, b"l" * 16, b"c" * 32),
    LaneOffered(302, b"s" * 32),
    LaneProof(),
    GetHolders(303, MANIFEST),
    HoldersAnswer(303, (Holder(NODE, ("ice-1.example:4777",)),)),
    GetPieceDeltas(304, MANIFEST, (PIECE, _id(PieceId, 8)), (_id(PieceId, 9),)),
    PieceDelta(304, PIECE, ((1, 0, 300), (0, 0, 5), (1, 305, 1000)), b"bytes"),
    JoinBegin(b"t" * 16),
    JoinOffer((b"root 1", b"root 2")),
    JoinRequest(b"t" * 16, b"s" * 32, b"k" * 32, b"g" * 64, "Salle 4"),
    JoinAccepted(b"certificate", (b"root 1",), b"head", b"grants", b"leaf"),
    JoinReady(),
)
assert {type(example) for example in EXAMPLES} == set(MESSAGE_TYPES.values())
