"""What a command that cannot do as it is told must look like to its user.

One exit code, one sentence that names what is wrong, what to do about it, and never a traceback
or a word for developers. Every test of bad input asks for it here, so that all of them ask alike.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.fleet.local import FleetNode

MAX_LINES: Final = 14
_FOR_DEVELOPERS: Final = re.compile(
    r"Traceback|unexpected error|Error\(|Exception|errno|Errno|<class|object at 0x|\bNone\b"
    r"|\.py\b|archid-crash"
)


@dataclass(frozen=True)
class Refusal:
    """How a command ended that should not succeed."""

    code: int
    out: str
    err: str

    def check(self, code: int, *says: str) -> None:
        """Raise AssertionError unless it ended with `code` and said all of `says` well."""
        shown = f"exit code {self.code}\n--- out\n{self.out}\n--- err\n{self.err}"
        assert self.code == code, f"exit code {code} was expected\n{shown}"
        assert not self.out, f"something went to standard output\n{shown}"
        # `archid run` logs, in JSON, until it gives up.
        lines = [line for line in self.err.splitlines() if not line.startswith('{"timestamp"')]
        assert 2 <= len(lines) <= MAX_LINES, f"a sentence and a remedy were expected\n{shown}"
        for line in (lines[0], lines[-1]):
            assert line[:1].isupper() or line[:1].isdigit() or line[:1] in "/'a", shown
        assert lines[-1].endswith("."), f"the remedy is not a sentence\n{shown}"
        assert not (found := _FOR_DEVELOPERS.search(self.err)), f"it says {found!r}\n{shown}"
        assert self.err.isprintable() or all(line.isprintable() for line in lines), shown
        for fragment in says:
            assert fragment in self.err, f"it does not say {fragment!r}\n{shown}"


def refused(
    node: FleetNode,
    *args: str | bytes,
    prefix: Sequence[str] = (),
    stdin: str | None = None,
    timeout_s: float = 100.0,
) -> Refusal:
    """Run a command that should not succeed; `prefix` is put before it, as for `setpriv`."""
    done = subprocess.run(
        [*prefix, *node.command(*args)],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=timeout_s,
        check=False,
        env={**os.environ, **node.env},
    )
    return Refusal(done.returncode, done.stdout, done.stderr)


def begun(node: FleetNode, *args: str) -> subprocess.Popen[str]:
    """The same while something happens to it; `ended` says how it ended."""
    return subprocess.Popen(
        node.command(*args),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **node.env},
    )


def ended(process: subprocess.Popen[str], timeout_s: float = 60.0) -> Refusal:
    """Wait for a command that was begun."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the command went on for {timeout_s:g} s\n{out}\n{err}") from None
    return Refusal(process.returncode, out, err)
