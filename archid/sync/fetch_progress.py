"""How far one fetch is, for people and for events; measured, never estimated from the plan."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from protocol.ids import ManifestId

RATE_WINDOW_S: Final = 5.0
FLOW_S: Final = 10.0
"""A span of a slow line may take so long."""


class FetchState(enum.Enum):
    """What a fetch is doing; the values appear in `status`."""

    WAITING = "waiting"
    FETCHING = "fetching"
    PLACING = "placing"
    HELD = "held"
    FAILED = "failed"


@dataclass
class FetchProgress:
    """One manifest on its way. `name` and `size_bytes` are known once its root is here."""

    manifest: ManifestId
    state: FetchState = FetchState.WAITING
    name: str = ""
    version: int = 0
    size_bytes: int | None = None
    held_bytes: int = 0
    received_bytes: int = 0
    """Payload that came over the network for it, in this process's life."""
    reason: str | None = None
    sources: tuple[str, ...] = ()
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def waiting(self, reason: str) -> None:
        """Nobody can be asked now."""
        self.state, self.reason, self.sources = FetchState.WAITING, reason, ()

    def fetching(self, sources: tuple[str, ...]) -> None:
        """Peers of these names can be asked."""
        self.state, self.reason, self.sources = FetchState.FETCHING, None, sources

    def placed(self, size_bytes: int) -> None:
        """The tree is in its place."""
        self.state, self.reason, self.sources = FetchState.HELD, None, ()
        self.size_bytes = self.held_bytes = size_bytes

    def failed(self, reason: str) -> None:
        """It is tried again after a while."""
        self.state, self.reason, self.sources = FetchState.FAILED, reason, ()

    def received(self, size_bytes: int, *, now: float) -> None:
        """Count payload that came in."""
        self.received_bytes += size_bytes
        self._marks.append((now, self.received_bytes))
        while self._marks and self._marks[0][0] < now - RATE_WINDOW_S:
            self._marks.popleft()

    def flows(self, *, now: float) -> bool:
        """Whether content has come in lately, and more is to."""
        return (
            self.state is FetchState.FETCHING
            and bool(self._marks)
            and self._marks[-1][0] >= now - FLOW_S
        )

    def rate_bytes_per_s(self, *, now: float) -> float | None:
        """Over the last seconds; None when nothing came in."""
        if self.state is not FetchState.FETCHING or len(self._marks) < 2:
            return None
        (then, before), (_, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(now - then, 1e-3)

    def remaining_s(self, *, now: float) -> float | None:
        """At the present rate; None when it is not known."""
        rate = self.rate_bytes_per_s(now=now)
        if not rate or self.size_bytes is None:
            return None
        return max(0, self.size_bytes - self.held_bytes) / rate
