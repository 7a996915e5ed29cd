"""How a command that fails says so: one red sentence and what to do, never a traceback.

A foreseen error is an `ArchidError` and brings its own words. Anything else is a bug: what only a
developer can read goes to a file in the temporary folder, and the person is told which. This
module imports nothing that could itself fail to import.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import tempfile
import traceback
from typing import Final

from archid import __version__
from archid.errors import ArchidError, with_full_stop

BROKEN_PIPE_EXIT_CODE: Final = 141  # what a shell reports for SIGPIPE

_TOKEN: Final = re.compile(r"archid-join-\w+", re.IGNORECASE)
_RED: Final = "\x1b[1;31m"
_RESET: Final = "\x1b[0m"


def report(error: ArchidError, *, as_json: bool) -> int:
    """Tell of a foreseen error; returns the exit code."""
    if as_json:
        text = json.dumps({"error": error.to_json()}, ensure_ascii=False, indent=2)
        print(_printable(text, sys.stdout.encoding), flush=True)  # noqa: T201
        return error.exit_code
    # A message may begin with a name, such as that of the file it is about: it stays as it is.
    lines = [error.message, *([_capitalised(error.remedy)] if error.remedy else [])]
    lines = [_printable(with_full_stop(line), sys.stderr.encoding) for line in lines]
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        lines[0] = f"{_RED}{lines[0]}{_RESET}"
    print("\n".join(lines), file=sys.stderr)  # noqa: T201
    return error.exit_code


def crash(error: BaseException, *, as_json: bool, verbose: bool) -> int:
    """Tell of a bug and keep what a developer needs; returns the exit code."""
    details = "".join(traceback.format_exception(error))
    path = _keep(details)
    where = f"The details are in {path}" if path else "Run it again with -v to see the details"
    if verbose:
        print(_TOKEN.sub("archid-join-...", details), file=sys.stderr)  # noqa: T201
    return report(
        ArchidError(
            f"archid hit an unexpected error ({type(error).__name__})",
            remedy=f"{where}; please send them to whoever maintains archid here",
        ),
        as_json=as_json,
    )


def first_cause(error: BaseException) -> BaseException:
    """The error that a person can act on, out of the groups that nurseries wrap around it."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [first_cause(each) for each in error.exceptions]
    foreseen = (cause for cause in causes if isinstance(cause, ArchidError | KeyboardInterrupt))
    return next(foreseen, causes[0])


def leave_pipe() -> int:
    """Whoever read the output has gone: say nothing, also not at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE_EXIT_CODE


def _keep(details: str) -> str | None:
    words = " ".join(sys.argv)
    head = f"archid {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
    try:
        descriptor, path = tempfile.mkstemp(prefix="archid-crash-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(_TOKEN.sub("archid-join-...", f"{head}{words}\n\n{details}"))
    except OSError:
        return None
    return path


def _capitalised(line: str) -> str:
    return line if line.startswith("archid") else line[:1].upper() + line[1:]


def _printable(text: str, encoding: str | None) -> str:
    """Names of files may hold what the terminal's encoding cannot say, or control characters."""
    shown = "".join(
        each if each == "\n" or each.isprintable() else each.encode("unicode_escape").decode()
        for each in text
    )
    encoding = encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
