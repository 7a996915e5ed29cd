"""Who and what is in the demo: the nodes, the scripts and how large they are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from tests.fleet.scripts import FEATURE, LOOP, SAS, ScriptShape

TITLE: Final = "aurora"
"""The film, and the name of the release."""
CENTRAL: Final = "central"
PORT: Final = 4777
SUBNET: Final = "127.77.42"
KINDS: Final = ("feature", "sas", "loop")
NEEDED_BYTES: Final = 3_000_000_000
NEEDED_SMALL_BYTES: Final = 1_200_000_000


@dataclass(frozen=True)
class Member:
    """A node that joins by token."""

    name: str
    role: str
    site: str
    room: str = ""
    kind: str = ""


REPOS: Final = (
    Member("repo-1", "repo", "paris"),
    Member("repo-2", "repo", "brussels"),
)
ROOMS: Final = (
    Member("lyon-1-salle", "ice", "lyon", "1", "salle"),
    Member("lyon-1-sas", "ice", "lyon", "1", "sas"),
    Member("nice-1-salle", "ice", "nice", "1", "salle"),
)
"""Servers of the two cinemas that the release is for."""
LATE: Final = Member("nice-1-sas", "ice", "nice", "1", "sas")
"""One more of them, enrolled with the others and started after central's death."""
OTHERS: Final = (
    Member("lille-1-salle", "ice", "lille", "1", "salle"),
    Member("lille-1-sas", "ice", "lille", "1", "sas"),
)
"""The servers of the third cinema; the second asks for what it may not have."""
ROTTEN: Final = REPOS[0]
"""In whose tree a byte is flipped."""
REVOKED: Final = ROOMS[2]
"""Put out of the fleet in mid-transfer."""
MEMBERS: Final = (*REPOS, *ROOMS, LATE, *OTHERS)
NAMES: Final = (CENTRAL, *(member.name for member in MEMBERS))
SITES: Final = tuple(dict.fromkeys(member.site for member in (*ROOMS, LATE)))

SHAPES: Final = {
    "feature": FEATURE,
    "sas": SAS,
    "loop": LOOP,
}
SMALL_SHAPES: Final = {
    "feature": ScriptShape(reels=2, panel_bytes=4_000_000, cues=6),
    "sas": ScriptShape(reels=1, panel_bytes=60_000, cues=3),
    "loop": ScriptShape(reels=1, panel_bytes=20_000, cues=2),
}
NEXT: Final = "borealis"
"""The film that is on its way to a server when that is revoked."""
NEXT_SHAPE: Final = ScriptShape(reels=1, panel_bytes=5_000_000, cues=20)
SMALL_NEXT_SHAPE: Final = ScriptShape(reels=1, panel_bytes=5_000_000, cues=4)


class Fault(Enum):
    """What DEMO_BREAK injects, each of which must make the demo fail."""

    BYTES = "bytes"
    FILE = "file"
    MODE = "mode"
    LINK = "link"
    FOLDER = "folder"
    REFUSAL = "refusal"
    ACTIVATION = "activation"
    SHARING = "sharing"
    DELTA = "delta"
    MIX = "mix"
    ROT = "rot"
    REPAIR = "repair"
    CENTRAL = "central"
    LATE = "late"
    REVOKE = "revoke"

    @property
    def meaning(self) -> str:
        """For whoever asks what there is."""
        return _MEANINGS[self]


_MEANINGS: Final = {
    Fault.BYTES: "flip one byte of a file at the room before looking",
    Fault.FILE: "remove a file at the room before looking",
    Fault.MODE: "make a program at the room unexecutable before looking",
    Fault.LINK: "point a link at the room elsewhere before looking",
    Fault.FOLDER: "remove an empty folder at the room before looking",
    Fault.REFUSAL: "grant the release to the other cinema too",
    Fault.ACTIVATION: "let the release start in many years",
    Fault.SHARING: "give every server a site of its own, and an address at which it is not",
    Fault.DELTA: "write the second version anew instead of changing a little",
    Fault.MIX: "let one server play the second feature with the first SAS for a moment",
    Fault.ROT: "flip no byte at the REPO",
    Fault.REPAIR: "flip the byte at the REPO again once it was repaired",
    Fault.CENTRAL: "do not kill central",
    Fault.LATE: "flip one byte at the server that was started last",
    Fault.REVOKE: "do not revoke the server",
}


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    folder: Path
    subnet: str = SUBNET
    small: bool = False
    keep: bool = False
    json: bool = False
    picture: Path | None = None
    faults: frozenset[Fault] = frozenset()
    needed_bytes: int = NEEDED_BYTES
    """Of free disk; well over what the demo takes at its fullest."""

    @property
    def shapes(self) -> dict[str, ScriptShape]:
        return SMALL_SHAPES if self.small else SHAPES

    @property
    def next_shape(self) -> ScriptShape:
        return SMALL_NEXT_SHAPE if self.small else NEXT_SHAPE

    @property
    def addresses(self) -> tuple[str, ...]:
        """The hosts of the nodes, central's first."""
        return tuple(f"{self.subnet}.{2 + number}" for number in range(len(NAMES)))


def script_name(kind: str, title: str = TITLE) -> str:
    """What a script of a film is published as."""
    return f"{title}-{kind}"
