"""The history of runs: one line of JSON for each benchmark that ran, never rewritten.

It is the machine's own (``.bench/history.jsonl``, not in git): figures of different machines say
nothing about one another, and it has to survive checking out the commits that are compared.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
DEFAULT: Final = ROOT / ".bench" / "history.jsonl"
UNKNOWN: Final = "unknown"
CHANGED: Final = "+"
"""Follows the id of a commit when files differed from it."""


@dataclass(frozen=True)
class Entry:
    """One benchmark, run once on one commit."""

    commit: str
    at: str
    machine: str
    benchmark: str
    figures: dict[str, Any]


def commit_id(root: Path = ROOT) -> str:
    """The commit that is checked out, with a "+" when its files were changed."""
    try:
        found = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "diff", "--name-only", "HEAD", "--", ".", ":!bench/results")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return found + (CHANGED if changed else "")


def resolve_commit(name: str, root: Path = ROOT) -> str | None:
    """The short id of a branch, a tag or any other name of a commit; None where git knows none."""
    try:
        return _git(root, "rev-parse", "--short=12", "--verify", "--quiet", name + "^{commit}")
    except (OSError, subprocess.CalledProcessError):
        return None


def append(
    path: Path, machine: str, commit: str, benchmark: str, figures: Mapping[str, Any]
) -> None:
    """Add one run, in one write."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    entry = Entry(commit, at, machine, benchmark, dict(figures))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(entry), separators=(",", ":")) + "\n")


def read(path: Path) -> Iterator[Entry]:
    """Every run, oldest first; a last line that a crash cut short is left out."""
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield Entry(**json.loads(line))


def of_commit(path: Path, commit: str) -> dict[str, list[Entry]]:
    """The runs of a commit by benchmark, oldest first.

    `commit` may be shortened; with a "+" at its end it names the runs of changed files.
    """
    found: dict[str, list[Entry]] = {}
    for entry in read(path):
        same_state = entry.commit.endswith(CHANGED) == commit.endswith(CHANGED)
        if same_state and entry.commit.rstrip(CHANGED).startswith(commit.rstrip(CHANGED)):
            found.setdefault(entry.benchmark, []).append(entry)
    return found


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
