"""What a program under test can do, and what one round of `pair` or `small` gave."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.measuring import Usage


class TransferFailed(Exception):
    """The program under test did not bring the files."""


@dataclass(frozen=True)
class Transfer:
    """Seconds from when the destination knew what to get until it had it, verified and synced."""

    seconds: float
    source: Usage
    destination: Usage


class Contender(Protocol):
    """A program that can bring a folder from here to there, again and again."""

    name: str
    publish_s: float
    """How long it took to take in the source."""

    def ready(self) -> AbstractContextManager[Any]:
        """An empty destination."""

    def transfer(self, destination: Any) -> Transfer:
        """Bring everything to it. Raises TransferFailed."""

    def tree(self, destination: Any) -> Path:
        """The folder that the files came to."""

    def pid(self, destination: Any) -> int:
        """The destination's process."""
