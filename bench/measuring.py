"""What every benchmark needs to say a figure: processes' CPU and memory, medians, warm memory.

Figures of one run may be compared with one another and with nothing else: a shared machine drifts
by a factor of two within minutes. What is measured is left to the benchmarks.
"""

from __future__ import annotations

import mmap
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_RESET_PEAK: Final = "5"
"""Written to clear_refs, see proc(5): forget the peak of the resident set."""


@dataclass(frozen=True)
class Spread:
    """A figure that was measured several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))

    def text(self, digits: int = 1) -> str:
        """`8.1 (7.9 to 8.4)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True)
class Usage:
    """What one program used between two moments."""

    cpu_s: float
    peak_mb: float


class ProcessMeter:
    """CPU seconds and peak memory of a process and its children from now on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._begin_s = self._cpu_s()
        for member in _family(pid):
            with suppress(OSError):
                Path(f"/proc/{member}/clear_refs").write_text(_RESET_PEAK)

    def read(self) -> Usage:
        """Used since this meter was made; the process must still run."""
        peak = sum(_status_kib(member, "VmHWM") for member in _family(self._pid))
        return Usage(self._cpu_s() - self._begin_s, peak * 1024 / 1e6)

    def _cpu_s(self) -> float:
        total = 0
        for member in _family(self._pid):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS_PER_S


def resident_mb(pid: int) -> float:
    """What the process and its children have in memory now."""
    return sum(_status_kib(member, "VmRSS") for member in _family(pid)) * 1024 / 1e6


def family_switches(pid: int) -> int:
    """How often threads of the process and its children went to sleep, to be woken again.

    Threads that have ended are not counted, so it may seem to go backwards while they do.
    """
    total = 0
    for member in _family(pid):
        for task in Path(f"/proc/{member}/task").iterdir():
            with suppress(OSError):
                for line in (task / "status").read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches"):
                        total += int(line.split()[1])
    return total


def warm_memory(size_bytes: int) -> None:
    """Touch this much free memory and give it back at once.

    A virtual machine returns freed memory to its host, and getting a GiB of it again takes
    seconds of system time, which would be counted to whichever program comes first.
    """
    with mmap.mmap(-1, max(size_bytes, PAGE)) as area:
        for offset in range(0, len(area), PAGE):
            area[offset] = 1


def warm_files(folder: Path) -> None:
    """Bring every file below the folder into the page cache."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass


def describe_machine() -> str:
    """One line for tables: when and on what a figure was measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PHYS_PAGES") * PAGE / 2**30
    return (
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {os.cpu_count()} cores {model},"
        f" {memory:.0f} GiB, Linux {platform.release()}, CPython {platform.python_version()}"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _family(pid: int) -> list[int]:
    """The process and everything below it that still runs."""
    found = [pid]
    for member in found:
        with suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _status_kib(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0
