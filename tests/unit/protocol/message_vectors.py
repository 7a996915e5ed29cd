"""Writes tests/vectors/messages.json: `python -m tests.unit.protocol.message_vectors`.

The vectors are frozen: a message's bytes may change only with a new protocol version. Adding a
message adds a vector; the test compares what is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tests.unit.protocol.message_examples import EXAMPLES

VECTORS: Final = Path(__file__).parents[2] / "vectors" / "messages.json"


def vectors() -> list[dict[str, str]]:
    """Name, readable value and frame of every example."""
    return [
        {
            "message": type(example).__name__,
            "value": repr(example),
            "frame": b"".join(example.encode()).hex(),
        }
        for example in EXAMPLES
    ]


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(vectors(), indent=1) + "\n")
