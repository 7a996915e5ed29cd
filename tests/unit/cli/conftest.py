"""Runs `python -m archid` as a process of its own against a real control server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.unit.control.conftest import serving as serving  # noqa: PLC0414 - the fixture, re-exported

PROJECT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Its standard output, which must be one JSON document."""
        return json.loads(self.out)


def archid(*words: object, stdin: str = "", env: dict[str, str] | None = None) -> Outcome:
    """Run the command to its end, without a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "archid", *map(str, words)],
        check=False,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=PROJECT,
        env={**os.environ, "TZ": "Europe/Paris", **(env or {})},
    )
    assert "Traceback" not in done.stderr + done.stdout
    return Outcome(done.returncode, done.stdout, done.stderr)


async def archid_beside(*words: object, stdin: str = "", **env: str) -> Outcome:
    """Run the command while this test's server goes on serving."""
    return await trio.to_thread.run_sync(lambda: archid(*words, stdin=stdin, env=env))


async def interrupted(when: trio.Event, *words: object) -> tuple[int, str]:
    """Press Ctrl-C once `when` has happened; returns the exit code and standard error."""

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "archid", *map(str, words)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
        )

    process = await trio.to_thread.run_sync(start)
    try:
        await when.wait()
        process.send_signal(signal.SIGINT)
        _, err = await trio.to_thread.run_sync(process.communicate)
    finally:
        process.kill()
    return process.returncode, err
