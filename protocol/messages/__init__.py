"""The messages of the wire protocol, and the table that finds one by its number.

Split by topic: `session` carries a connection, `documents` and `content` fetch things, `joining`
makes members. `wire` holds the base classes and the field codecs, `codes` the error codes.
"""

from __future__ import annotations

from typing import Final

from protocol.messages.codes import MEANINGS, REACTIONS, ErrorCode
from protocol.messages.content import (
    Entitle,
    Entitled,
    GetHave,
    GetManifest,
    GetPieces,
    GetSpan,
    HaveAnswer,
    HaveUpdate,
    ManifestAnswer,
    PeerHint,
    PeerHints,
    PieceAnswer,
    PieceBitmap,
    SpanAnswer,
)
from protocol.messages.deltas import GetPieceDeltas, PieceDelta
from protocol.messages.documents import (
    GetGrants,
    GetHead,
    GetLeaf,
    GetList,
    GetPage,
    GetRoot,
    GrantsAnswer,
    HeadAnswer,
    LeafAnswer,
    ListAnswer,
    PageAnswer,
    RootDocument,
)
from protocol.messages.gossip import HeadDigest, SentState, StateDigest, StateRow, States
from protocol.messages.holders import GetHolders, Holder, HoldersAnswer
from protocol.messages.joining import (
    JOIN_PROOF_TYPE,
    RENEWAL_TOKEN_ID,
    JoinAccepted,
    JoinBegin,
    JoinOffer,
    JoinReady,
    JoinRequest,
    join_proof_payload,
)
from protocol.messages.lanes import LaneOffered, LaneProof, OpenLane, WantLane
from protocol.messages.session import (
    NONCE_BYTES,
    Cancel,
    Goodbye,
    HeadAnnounce,
    Hello,
    Ping,
    Pong,
    Prove,
    Refused,
    Welcome,
)
from protocol.messages.swarm import GetAny, Picked, Unwant
from protocol.messages.wire import Answer, Message, Request, printable

SESSION: Final[tuple[type[Message], ...]] = (
    Hello,
    Goodbye,
    Refused,
    Cancel,
    Ping,
    Pong,
    Prove,
    Welcome,
    HeadAnnounce,
)
DOCUMENTS: Final[tuple[type[Message], ...]] = (
    GetRoot,
    RootDocument,
    GetHead,
    HeadAnswer,
    GetGrants,
    GrantsAnswer,
    GetLeaf,
    LeafAnswer,
    GetList,
    ListAnswer,
    GetPage,
    PageAnswer,
)
CONTENT: Final[tuple[type[Message], ...]] = (
    Entitle,
    Entitled,
    GetManifest,
    ManifestAnswer,
    GetPieces,
    PieceAnswer,
    GetHave,
    HaveAnswer,
    GetSpan,
    SpanAnswer,
    HaveUpdate,
    PeerHints,
)
SWARM: Final[tuple[type[Message], ...]] = (GetAny, Picked, Unwant)
LANES: Final[tuple[type[Message], ...]] = (WantLane, OpenLane, LaneOffered, LaneProof)
HOLDERS: Final[tuple[type[Message], ...]] = (GetHolders, HoldersAnswer)
DELTAS: Final[tuple[type[Message], ...]] = (GetPieceDeltas, PieceDelta)
GOSSIP: Final[tuple[type[Message], ...]] = (States, StateDigest, HeadDigest)
JOINING: Final[tuple[type[Message], ...]] = (
    JoinBegin,
    JoinOffer,
    JoinRequest,
    JoinAccepted,
    JoinReady,
)
MESSAGE_TYPES: Final[dict[int, type[Message]]] = {
    kind.TYPE: kind
    for kind in (
        *SESSION,
        *DOCUMENTS,
        *CONTENT,
        *SWARM,
        *GOSSIP,
        *LANES,
        *HOLDERS,
        *DELTAS,
        *JOINING,
    )
}

__all__ = [
    "CONTENT",
    "DELTAS",
    "DOCUMENTS",
    "GOSSIP",
    "HOLDERS",
    "JOINING",
    "JOIN_PROOF_TYPE",
    "LANES",
    "MEANINGS",
    "MESSAGE_TYPES",
    "NONCE_BYTES",
    "REACTIONS",
    "RENEWAL_TOKEN_ID",
    "SESSION",
    "SWARM",
    "Answer",
    "Cancel",
    "Entitle",
    "Entitled",
    "ErrorCode",
    "GetAny",
    "GetGrants",
    "GetHave",
    "GetHead",
    "GetHolders",
    "GetLeaf",
    "GetList",
    "GetManifest",
    "GetPage",
    "GetPieceDeltas",
    "GetPieces",
    "GetRoot",
    "GetSpan",
    "Goodbye",
    "GrantsAnswer",
    "HaveAnswer",
    "HaveUpdate",
    "HeadAnnounce",
    "HeadAnswer",
    "HeadDigest",
    "Hello",
    "Holder",
    "HoldersAnswer",
    "JoinAccepted",
    "JoinBegin",
    "JoinOffer",
    "JoinReady",
    "JoinRequest",
    "LaneOffered",
    "LaneProof",
    "LeafAnswer",
    "ListAnswer",
    "ManifestAnswer",
    "Message",
    "OpenLane",
    "PageAnswer",
    "PeerHint",
    "PeerHints",
    "Picked",
    "PieceAnswer",
    "PieceBitmap",
    "PieceDelta",
    "Ping",
    "Pong",
    "Prove",
    "Refused",
    "Request",
    "RootDocument",
    "SentState",
    "SpanAnswer",
    "StateDigest",
    "StateRow",
    "States",
    "Unwant",
    "WantLane",
    "Welcome",
    "join_proof_payload",
    "printable",
]
