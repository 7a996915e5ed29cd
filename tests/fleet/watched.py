"""A fleet whose logs are read at its end: no ERROR that nobody expected, no traceback at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.expected_errors import ErrorWatch
from tests.fleet.local import FleetNode, LocalFleet, local_fleet


@contextmanager
def watched_fleet(base: Path, *, expect: tuple[str, ...] = (), allow: tuple[str, ...] = ()
                  ) -> Iterator[LocalFleet]:  # fmt: skip
    """As `local_fleet`; `expect` must be logged at ERROR by some node, `allow` may be."""
    watch = ErrorWatch()
    watch.expect(*expect)
    watch.allow(*allow)
    with local_fleet(base) as fleet:
        yield fleet
    for node in fleet.nodes.values():
        watch.watch(node.log)
        no_traceback(node)
    watch.check()


def no_traceback(node: FleetNode) -> None:
    """Raise AssertionError when the daemon's log holds a traceback, at whatever level."""
    if not node.log.exists():
        return
    for line in node.log.read_text(errors="replace").splitlines():
        assert "Traceback (most recent call last)" not in line, f"{node.name}: {line}"
