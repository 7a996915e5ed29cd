"""What a program under test can do, and what one round gave."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from bench.measuring import Usage
from bench.network import Network


class TransferFailed(Exception):
    """The program under test did not bring the files."""


@dataclass(frozen=True)
class Transfer:
    """Seconds from when the destination knew what to get until it had it."""

    seconds: float
    source: Usage
    destination: Usage
    wire_bytes: int | None = None
    """All that went over the wire meanwhile, both ways, with headers; None if it is not counted."""


class Contender(Protocol):
    """A program that can bring a folder from here to there, again and again."""

    name: str
    publish_s: float
    """How long it took to take in the source."""
    network: Network

    def ready(self) -> AbstractContextManager[Any]:
        """An empty destination."""

    def transfer(self, destination: Any) -> Transfer:
        """Bring it what is offered. Raises TransferFailed."""

    def tree(self, destination: Any) -> Path:
        """The folder that the files came to."""

    def pid(self, destination: Any) -> int:
        """The destination's process."""

    def change(self, source: Path) -> float:
        """Offer this folder from now on, as the next version; seconds that taking it in took."""


Open = Callable[[Path, Path, Network], AbstractContextManager[Contender]]
"""Given an empty place for its files, the source and where both ends are to run."""


def counted_transfer(contender: Contender, destination: Any) -> Transfer:
    """Bring what is offered, and count what went over the wire for it."""
    before = contender.network.passed()
    done = contender.transfer(destination)
    after = contender.network.passed()
    if before is None or after is None:
        return done
    return replace(done, wire_bytes=after - before)
