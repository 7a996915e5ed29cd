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
NEEDED_SMALL_BYTES: Final = 200_000_000


@dataclass(frozen=True)
class Member:
    """A node that joins by token."""

    name: str
    role: str
    site: str
    room: str = ""
    kind: str = ""


REPO: Final = Member("repo-1", "repo", "paris")
ROOM: Final = (
    Member("lyon-1-salle", "ice", "lyon", "1", "salle"),
    Member("lyon-1-sas", "ice", "lyon", "1", "sas"),
)
"""The two servers of the cinema that the release is for."""
OTHER: Final = Member("lille-1-salle", "ice", "lille", "1", "salle")
"""A server of the other cinema."""
MEMBERS: Final = (REPO, *ROOM, OTHER)
NAMES: Final = (CENTRAL, *(member.name for member in MEMBERS))

SHAPES: Final = {"feature": FEATURE, "sas": SAS, "loop": LOOP}
SMALL_SHAPES: Final = {
    "feature": ScriptShape(reels=2, panel_bytes=300_000, cues=6),
    "sas": ScriptShape(reels=1, panel_bytes=60_000, cues=3),
    "loop": ScriptShape(reels=1, panel_bytes=20_000, cues=2),
}


class Fault(Enum):
    """What DEMO_BREAK injects, each of which must make the demo fail."""

    BYTES = "bytes"
    FILE = "file"
    MODE = "mode"
    LINK = "link"
    FOLDER = "folder"
    REFUSAL = "refusal"
    ACTIVATION = "activation"

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
    """Of free disk; twice what the demo takes at its fullest."""

    @property
    def shapes(self) -> dict[str, ScriptShape]:
        return SMALL_SHAPES if self.small else SHAPES

    @property
    def addresses(self) -> tuple[str, ...]:
        """The hosts of the nodes, central's first."""
        return tuple(f"{self.subnet}.{2 + number}" for number in range(len(NAMES)))


def script_name(kind: str) -> str:
    """What a script of the film is published as."""
    return f"{TITLE}-{kind}"
