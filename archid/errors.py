"""The errors that reach a person, sorted by who must act.

Every error is a sentence that names the input and, where there is one, a remedy. `code` is for
programs and stays stable; `exit_code` is what a command ends with. Nothing here formats for a
terminal: the command line and the control socket do that from `sentence` and `to_json`. What is
wrong with bytes from a peer is a `protocol.errors.ProtocolError`; whoever holds the connection
turns it into one of these if a person has to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

EXIT_OK: Final = 0


def _without_stop(text: str) -> str:
    """`text` without the space and the full stop at its end, so that sentences join in one way."""
    return text.strip().removesuffix(".")


def with_full_stop(text: str) -> str:
    """`text` as a sentence ends, unless it ends like one already."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


class ArchidError(Exception):
    """Something went wrong that archid did not foresee; the log has the details."""

    code: str = "internal"
    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "an error that archid did not foresee; the log has the details"

    def __init__(self, message: str, *, remedy: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = _without_stop(message)
        self.remedy = None if remedy is None else _without_stop(remedy)
        if code is not None:
            self.code = code

    @property
    def sentence(self) -> str:
        """What a person reads: the message and the remedy, each a sentence with its full stop."""
        if self.remedy is None:
            return with_full_stop(self.message)
        remedy = f"{self.remedy[:1].upper()}{self.remedy[1:]}"
        return f"{with_full_stop(self.message)} {with_full_stop(remedy)}"

    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, object]:
        """What a program reads, on the control socket and with ``--json``."""
        return {
            "code": self.code,
            "message": self.message,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
        }


class UsageError(ArchidError):
    """The caller asked wrongly: an argument, a configuration or a definition file."""

    code = "usage"
    exit_code = 2
    meaning = "the command, the configuration or a file given to it is wrong"


class NotFound(ArchidError):
    """What was named does not exist."""

    code = "not_found"
    exit_code = 3
    meaning = "what was named does not exist"


class Denied(ArchidError):
    """The caller may not do this, or may not read what it takes."""

    code = "denied"
    exit_code = 4
    meaning = "the caller may not do that"


class Unavailable(ArchidError):
    """The daemon or a peer does not answer; the same request may work later."""

    code = "unavailable"
    exit_code = 5
    meaning = "the daemon, a peer or an address cannot be reached or used now"


class Conflict(ArchidError):
    """It contradicts what is there: a second daemon, a newer format, a changed generation."""

    code = "conflict"
    exit_code = 6
    meaning = "it contradicts what is there already"


class StorageError(ArchidError):
    """A disk is full, read-only, slow to die or holds something else than what was written."""

    code = "storage"
    exit_code = 7
    meaning = "a disk is full, read-only or holds damaged files"


class TrustFailure(ArchidError):
    """A signature, a certificate, a proof or an order of versions does not hold."""

    code = "trust"
    exit_code = 8
    meaning = "a signature, a certificate or a proof does not hold"


class Interrupted(ArchidError):
    """A person stopped it (Ctrl-C); what was done so far is kept and can be resumed."""

    code = "interrupted"
    exit_code = 130
    meaning = "stopped by Ctrl-C; the same command resumes"


ERROR_CLASSES: Final[tuple[type[ArchidError], ...]] = (
    ArchidError,
    UsageError,
    NotFound,
    Denied,
    Unavailable,
    Conflict,
    StorageError,
    TrustFailure,
    Interrupted,
)

_CLASS_BY_EXIT_CODE: Final = {each.exit_code: each for each in ERROR_CLASSES}


def exit_codes() -> dict[int, str]:
    """Every exit code and its meaning, as the documentation prints them."""
    table = {EXIT_OK: "it worked"}
    return table | {each.exit_code: each.meaning for each in ERROR_CLASSES}


def error_from_json(fields: Mapping[str, object]) -> ArchidError:
    """The error that the other end of the control socket described with `to_json`.

    Fields that are missing or of another type do not raise: the other end may be newer or older,
    and the person should still read what it had to say. An unknown exit code becomes 1.
    """
    exit_code = fields.get("exit_code")
    error_class = _CLASS_BY_EXIT_CODE.get(exit_code) if isinstance(exit_code, int) else None
    message = fields.get("message")
    remedy = fields.get("remedy")
    code = fields.get("code")
    return (error_class or ArchidError)(
        message if isinstance(message, str) and message else "The daemon reported an error",
        remedy=remedy if isinstance(remedy, str) else None,
        code=code if isinstance(code, str) else None,
    )
