"""Who sent wrong bytes of which version, and for how long it is not asked for that version again.

Asking costs whatever the wrong bytes cost to move and to hash, and each time is an alarm, so the
pauses grow; they outlive the connection and the fetch, since both begin anew by themselves. A node
is never given up for good: it may have been its memory, and it may be the only one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocol.ids import ManifestId, NodeId

FIRST_S: Final = 30.0
LONGEST_S: Final = 3600.0


@dataclass(frozen=True)
class _Pause:
    until: float
    length_s: float


class Distrust:
    """Times are the caller's, in seconds of one clock."""

    def __init__(self) -> None:
        self._pauses: dict[tuple[ManifestId, NodeId], _Pause] = {}

    def lied(self, manifest: ManifestId, node: NodeId, *, now: float) -> None:
        """It sent wrong bytes: twice as long a pause as the last time."""
        self._forget_old(now)
        before = self._pauses.get((manifest, node))
        length_s = min(before.length_s * 2, LONGEST_S) if before else FIRST_S
        self._pauses[manifest, node] = _Pause(now + length_s, length_s)

    def wait_s(self, manifest: ManifestId, node: NodeId, *, now: float) -> float:
        """For how long it is not to be asked, 0 when it may be."""
        pause = self._pauses.get((manifest, node))
        return 0.0 if pause is None else max(0.0, pause.until - now)

    def _forget_old(self, now: float) -> None:
        for key, pause in list(self._pauses.items()):
            if now - pause.until > 2 * LONGEST_S:
                del self._pauses[key]
