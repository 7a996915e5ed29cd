"""Prints what simulated swarms and cinemas cost: `python -m tests.sim`."""

from __future__ import annotations

import sys

from tests.sim.swarm import MIB, Swarm, simulate


def cinemas() -> None:
    """Four servers behind ten megabits a second."""
    sys.stdout.write("size, holders: over the line / size, time / that of one copy\n")
    for size_mib in (8, 32, 64, 128, 256):
        for holders in (1, 2, 3):
            swarm = Swarm(4, size_mib, seeds=holders, site_size=4)
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
                swarm = Swarm(receivers, size_mib, 2, rate=300e6, delay_s=0.003, seed=seed)
                twice += simulate(swarm).duplicate_bytes
            share = twice / (5 * receivers * size_mib * MIB)
            sys.stdout.write(f"{receivers}, {size_mib:4} MiB: {share:.1%}\n")


def swarms() -> None:
    """One seed and receivers with equal lines, at sites of their own and at one site."""
    sys.stdout.write("receivers, size: time / lower bound, copies of the seed, received twice\n")
    for receivers, size_mib in ((8, 32), (8, 64), (8, 128), (16, 64), (16, 128)):
        for site_size in (0, receivers):
            swarm = Swarm(receivers, size_mib, site_size=site_size, line_rate=1e12)
            result = simulate(swarm)
            ratio = result.seconds / swarm.lower_bound_s
            twice = result.duplicate_bytes / (receivers * size_mib * MIB)
            sys.stdout.write(
                f"{receivers:2}, {size_mib:3} MiB, {'one site' if site_size else 'apart'}: "
                f"{ratio:.3f}, {result.seed_copies:.3f}, {twice:.1%}\n"
            )


def long_lines() -> None:
    """One receiver, 100 ms there and back."""
    sys.stdout.write("rate, size: part of the rate, servers that pick, asked by name\n")
    for rate, size_mib in ((12.5e6, 256), (125e6, 256), (125e6, 1024)):
        parts = []
        for picks in (True, False):
            swarm = Swarm(1, size_mib, picks=picks, rate=rate, delay_s=0.05, jitter=0)
            parts.append(swarm.lower_bound_s / simulate(swarm).seconds)
        sys.stdout.write(
            f"{rate * 8 / 1e6:4.0f} Mbit/s, {size_mib:4} MiB: {parts[0]:.1%}, {parts[1]:.1%}\n"
        )


if __name__ == "__main__":
    swarms()
    long_lines()
    cinemas()
    duplicates()
