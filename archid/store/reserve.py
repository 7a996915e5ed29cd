"""Space on the disk that is promised to what is being fetched.

What is admitted has its missing bytes reserved until it stands or is given up, so that two
fetches never count on the same free bytes. What does not fit waits; while room is being made for
it, nothing that starts later gets that room. Methods block shortly and are safe in any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from archid.store.errors import DiskFull
from protocol.ids import ManifestId


class SpaceShort(DiskFull):
    """What is to be fetched does not fit beside what is here and what is reserved."""

    def __init__(self, path: Path, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(path, needed_bytes, available_bytes)
        self.missing_bytes = needed_bytes - available_bytes
        self.message = (
            f"The disk is full: {needed_bytes:,} bytes were to be written to {path}, and"
            f" {available_bytes:,} can be used beside what is reserved and must stay free;"
            f" {self.missing_bytes:,} bytes are missing"
        )
        self.args = (self.message,)


@dataclass(frozen=True)
class _Claim:
    rank: int
    missing_bytes: Callable[[], int]


class Reserve:
    """Who may write how much; `free_bytes` is what the disk has beyond what must stay free."""

    def __init__(self, free_bytes: Callable[[], int]) -> None:
        self._free_bytes = free_bytes
        self._lock = threading.Lock()
        self._admitted: dict[ManifestId, _Claim] = {}
        self._waiting: dict[ManifestId, _Claim] = {}

    def admit(
        self, manifest: ManifestId, rank: int, missing_bytes: Callable[[], int], path: Path
    ) -> None:
        """Reserve what a fetch still has to write; a lower `rank` goes first.

        Raises SpaceShort, and remembers that it waits until `end`.
        """
        claim = _Claim(rank, missing_bytes)
        with self._lock:
            needed = missing_bytes()
            free = self._free_bytes() - self._promised(manifest, rank)
            if needed and needed > free:
                self._waiting[manifest] = claim
                raise SpaceShort(path, needed, max(0, free))
            self._waiting.pop(manifest, None)
            self._admitted[manifest] = claim

    def fits(self, manifest: ManifestId) -> bool:
        """Whether what waits would be admitted now."""
        with self._lock:
            claim = self._waiting.get(manifest)
            if claim is None:
                return True
            free = self._free_bytes() - self._promised(manifest, claim.rank)
            return claim.missing_bytes() <= free

    def end(self, manifest: ManifestId) -> None:
        """It stands, or was given up for now."""
        with self._lock:
            self._admitted.pop(manifest, None)
            self._waiting.pop(manifest, None)

    def _promised(self, manifest: ManifestId, rank: int) -> int:
        others = [claim for one, claim in self._admitted.items() if one != manifest]
        others += [
            claim for one, claim in self._waiting.items() if one != manifest and claim.rank < rank
        ]
        return sum(claim.missing_bytes() for claim in others)
