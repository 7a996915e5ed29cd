"""What every benchmark needs to say a figure: processes' CPU and memory, medians, warm memory.

Figures of one run may be compared with one another and with nothing else: a shared machine drifts
by a factor of two within minutes. What is measured is left to the benchmarks.
"""

from __future__ import annotations

import mmap
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
SAMPLE_S: Final = 0.05
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

    def short(self) -> str:
        """The same with three digits that count, and no range where there is none."""
        text = significant(self.median)
        if self.low == self.high:
            return text
        return f"{text} ({significant(self.low)} to {significant(self.high)})"


def significant(value: float) -> str:
    """Three digits that count: `1,234`, `12.3`, `0.0123`."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


@dataclass(frozen=True)
class Usage:
    """What one program used between two moments."""

    cpu_s: float
    peak_mb: float


class ProcessMeter:
    """CPU seconds and peak memory of a process and its children from now on.

    Children that end meanwhile count: their CPU time is their parent's once it has waited for
    them, and memory is looked at twenty times a second.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._begin_s = self._cpu_s()
        self._peak_kib = 0
        for member in family(pid):
            with suppress(OSError):
                Path(f"/proc/{member}/clear_refs").write_text(_RESET_PEAK)
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def read(self) -> Usage:
        """Used since this meter was made; the process must still run, or be waited for after."""
        self._ended.set()
        self._sampler.join()
        self._look()
        return Usage(self._cpu_s() - self._begin_s, self._peak_kib * 1024 / 1e6)

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self._look()

    def _look(self) -> None:
        total = sum(_status_kib(member, "VmHWM") for member in family(self._pid))
        self._peak_kib = max(self._peak_kib, total)

    def _cpu_s(self) -> float:
        total = 0
        for member in family(self._pid):
            with suppress(OSError):
                fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, fields[11:15]))  # own and of children that were waited for
        return total / TICKS_PER_S


def run_metered(words: Sequence[str], *, cwd: Path | None = None) -> tuple[Usage, float]:
    """Run a command to its end: what it used, and the seconds it took.

    Raises subprocess.CalledProcessError, with what it printed, unless it ends with 0.
    """
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(words, cwd=cwd, stdin=subprocess.DEVNULL, stdout=said, stderr=said) as run,
    ):
        meter = ProcessMeter(run.pid)
        os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - began
        peak = meter.read().peak_mb
        _, status, used = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
        if run.returncode:
            said.seek(0)
            raise subprocess.CalledProcessError(run.returncode, list(words), said.read()[-2000:])
    # The kernel's own peak may be that of the process that started it.
    peak = peak or used.ru_maxrss * 1024 / 1e6
    return Usage(used.ru_utime + used.ru_stime, peak), seconds


def resident_mb(pid: int) -> float:
    """What the process and its children have in memory now."""
    return sum(_status_kib(member, "VmRSS") for member in family(pid)) * 1024 / 1e6


def family_switches(pid: int) -> dict[int, int]:
    """How often each thread of the process and its children went to sleep, to be woken again."""
    found = {}
    for member in family(pid):
        for task in Path(f"/proc/{member}/task").iterdir():
            with suppress(OSError):
                for line in (task / "status").read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches"):
                        found[int(task.name)] = int(line.split()[1])
    return found


def switches_between(before: Mapping[int, int], after: Mapping[int, int]) -> int:
    """How often threads were woken between two looks; what ended meanwhile is not known."""
    return sum(count - before.get(thread, 0) for thread, count in after.items())


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
    """One line for tables: on what a figure was measured."""
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
        f"{os.cpu_count()} cores {model}, {memory:.0f} GiB, Linux {platform.release()},"
        f" CPython {platform.python_version()}"
    )


def say(text: str) -> None:
    """Tell whoever waits how far it is; tables go to the other output."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def family(pid: int) -> list[int]:
    """The process and everything below it that still runs."""
    found = [pid]
    for member in found:
        with suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _status_kib(pid: int, key: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1])
    return 0
