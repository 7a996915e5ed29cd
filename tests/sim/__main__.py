"""Prints what simulated swarms and cinemas cost: `python -m tests.sim`."""

from __future__ import annotations

import sys

from tests.sim.swarm import MIB, Swarm, simulate


def cinemas() -> None:
    """Four servers behind ten megabits a second."""
    sys.stdout.write("size, holders: over the line / size, time / that of one copy\n")
    for size_mib in (8, 32, 64, 128, 256):
        for holders in (1, 2, 3):
            swarm = Swarm(4, size_mib, seeds=holders, window=4, offers=4, site_size=4)
            result = simulate(swarm)
            slower = result.seconds * swarm.line_rate / (size_mib * MIB)
            sys.stdout.write(
                f"{size_mib:4} MiB, {holders}: {result.line_copies:.2f}, {slower:.2f}\n"
            )


def duplicates() -> None:
    """Receivers of small versions from two holders, where a message takes as long as a span."""
    sys.stdout.write("receivers, size: received twice, mean of five runs\n")
    for receivers in (1, 2, 4):
        for size_mib in (8, 32, 128):
            twice = 0
            for seed in range(5):
                swarm = Swarm(
                    receivers, size_mib, 2, rate=300e6, delay_s=0.003, seed=seed, window=4, offers=4
                )
                twice += simulate(swarm).duplicate_bytes
            share = twice / (5 * receivers * size_mib * MIB)
            sys.stdout.write(f"{receivers}, {size_mib:4} MiB: {share:.1%}\n")


if __name__ == "__main__":
    cinemas()
    duplicates()
