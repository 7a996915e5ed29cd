"""Messages of the feature `lanes`: a second connection, for the bytes of spans alone.

The keys that protect it are agreed on here, inside TLS; what goes through it, and how, is in
`protocol.lane`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from protocol.features import LANES
from protocol.messages.session import SMALL
from protocol.messages.wire import REQUEST, Answer, Codec, Message, Request, blob

LANE_ID_BYTES: Final = 16
LANE_RANDOM_BYTES: Final = 32

_LANE = blob(LANE_ID_BYTES, min_bytes=LANE_ID_BYTES)
_RANDOM = blob(LANE_RANDOM_BYTES, min_bytes=LANE_RANDOM_BYTES)


@dataclass(frozen=True, slots=True)
class WantLane(Message):
    """The side that was dialled wants a lane; only the side that dialled can open one."""

    TYPE: ClassVar[int] = 56
    MAX_BYTES: ClassVar[int] = SMALL
    FEATURE: ClassVar[str] = LANES


@dataclass(frozen=True, slots=True)
class LaneOffered(Answer):
    """The lane may be dialled now; the server's share of its keys."""

    TYPE: ClassVar[int] = 58
    MAX_BYTES: ClassVar[int] = SMALL
    FEATURE: ClassVar[str] = LANES
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST, "random": _RANDOM}

    request: int
    random: bytes


@dataclass(frozen=True, slots=True)
class OpenLane(Request):
    """The client is about to dial a lane: the name it will give, and its share of the keys."""

    TYPE: ClassVar[int] = 57
    MAX_BYTES: ClassVar[int] = SMALL
    FEATURE: ClassVar[str] = LANES
    WIRE: ClassVar[Mapping[str, Codec]] = {"request": REQUEST, "lane": _LANE, "random": _RANDOM}
    ANSWER = LaneOffered

    request: int
    lane: bytes
    random: bytes


@dataclass(frozen=True, slots=True)
class LaneProof(Message):
    """The first record of each side on a lane: it has the keys. Sent on lanes only."""

    TYPE: ClassVar[int] = 59
    MAX_BYTES: ClassVar[int] = SMALL
    FEATURE: ClassVar[str] = LANES
