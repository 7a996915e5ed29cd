"""Writes down what fetch plans decide, for whoever looks for a defect; off unless configured.

One file for each run of a job, in the form of `protocol.fetch_log`; ``archid replay`` goes through
it again. A log that cannot be written is given up: fetching goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TextIO

from archid.log import get_logger
from protocol.fetch import FetchPlan
from protocol.fetch_log import LogEntry, entry_line, recipe_line
from protocol.ids import ManifestId

log = get_logger(__name__)

KEPT: Final = 16
"""Files that are kept; the oldest go."""
BUFFER_BYTES: Final = 1 << 20


class PlanLog:
    """The log of one run; does nothing without a file."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file

    def follow(self, plan: FetchPlan) -> None:
        """Write what the plan was made from, and from now on what it is told and does."""
        if self._file is not None:
            self._write(recipe_line(plan.recipe))
            plan.listener = self._step

    def _step(self, entry: LogEntry) -> None:
        if self._file is not None:
            self._write(entry_line(entry))

    def _write(self, line: str) -> None:
        try:
            if self._file is not None:
                self._file.write(line)
        except OSError as error:
            log.warning("plan_log_given_up", why=str(error))
            self._file = None


class PlanLogs:
    """All of them, in one folder; None writes nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @contextmanager
    def of(self, manifest: ManifestId) -> Iterator[PlanLog]:
        """The log of a run that begins now."""
        file = self._open(manifest) if self._folder is not None else None
        try:
            yield PlanLog(file)
        finally:
            if file is not None:
                with suppress(OSError):
                    file.close()

    def _open(self, manifest: ManifestId) -> TextIO | None:
        folder = self._folder
        if folder is None:
            return None
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            there = sorted(folder.glob("*.jsonl"))
            for old in there[: max(0, len(there) - KEPT + 1)]:
                old.unlink(missing_ok=True)
            number = 1 + max((_number(path) for path in there), default=0)
            path = folder / f"{number:08}-{manifest.short}.jsonl"
            return path.open("x", buffering=BUFFER_BYTES)
        except OSError as error:
            log.warning("plan_log_not_opened", folder=str(folder), why=str(error))
            return None


def _number(path: Path) -> int:
    digits = path.name.partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0
