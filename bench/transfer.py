"""What one program did in one round of `pair` or `small`."""

from __future__ import annotations

from dataclasses import dataclass

from bench.measuring import Usage


class TransferFailed(Exception):
    """The program under test did not bring the files."""


@dataclass(frozen=True)
class Transfer:
    """Seconds from when the destination knew what to get until it had it, verified and synced."""

    seconds: float
    source: Usage
    destination: Usage
