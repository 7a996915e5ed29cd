"""Makes `lane.json`: golden vectors of bulk lanes, chapter 6.1 of SPEC.md.

Frozen: `python -m tests.vectors.make_lane` prints the vectors, `--write` makes the file where
there is none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final, TypeAlias

from protocol.connection_states import Side
from protocol.ids import NodeId, PieceId
from protocol.lane import SPAN_ROOM_BYTES, LaneOutput, LaneSecret, preamble
from protocol.messages import ErrorCode, LaneProof, Picked, Refused, SpanAnswer

Json: TypeAlias = "str | list[str] | dict[str, str] | dict[str, Json]"

PATH: Final = Path(__file__).with_name("lane.json")
SECRET: Final = LaneSecret(
    lane=bytes(range(16)),
    client=NodeId(b"\x01" * 32),
    server=NodeId(b"\x02" * 32),
    client_random=b"c" * 32,
    server_random=b"s" * 32,
)
MESSAGES: Final = (
    LaneProof(),
    Picked(7, 0, 3),
    SpanAnswer(7, PieceId(b"\x04" * 32), 3, b"the bytes of two chunks"),
    Refused(8, ErrorCode.BUSY, "every upload slot of this node is taken"),
    SpanAnswer(9, PieceId(b"\x04" * 32), 4, b""),
    SpanAnswer(10, PieceId(b"\x05" * 32), 0, b"and the next"),
)
REKEY_RECORDS: Final = 3
"""So few that the vectors go over a change of keys."""


def records(side: Side) -> list[str]:
    """What `side` sends, one text for each message."""
    output = LaneOutput(SECRET, side, rekey_records=REKEY_RECORDS)
    room = memoryview(bytearray(SPAN_ROOM_BYTES))
    return [
        (output.span(one, room) if isinstance(one, SpanAnswer) else output.message(one)).hex()
        for one in MESSAGES
    ]


def vectors() -> dict[str, Json]:
    """Everything, as JSON; bytes are hexadecimal."""
    return {
        "about": "Golden vectors of SPEC.md chapter 6.1; bytes are hexadecimal",
        "secret": {name: bytes(value).hex() for name, value in SECRET._asdict().items()},
        "preamble": preamble(SECRET.lane).hex(),
        "keys": {side.value: SECRET.key(side).hex() for side in Side},
        "records to a key": str(REKEY_RECORDS),
        "messages": [repr(one) for one in MESSAGES],
        "records of the client": records(Side.CLIENT),
        "records of the server": records(Side.SERVER),
    }


def main(arguments: list[str]) -> int:
    text = json.dumps(vectors(), indent=1) + "\n"
    if arguments == ["--write"] and not PATH.exists():
        PATH.write_text(text, encoding="utf-8")
        return 0
    sys.stdout.write(text)
    return int(PATH.exists() and PATH.read_text(encoding="utf-8") != text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
