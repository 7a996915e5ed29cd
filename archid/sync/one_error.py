"""One named error out of a nursery, which raises groups: callers see what a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from archid.errors import ArchidError
from protocol.errors import ProtocolError


@contextmanager
def one_error() -> Iterator[None]:
    """Let a single error out of the groups raised inside: a defect before what was foreseen.

    Being cancelled is no error: a group of nothing else goes on as it is.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors = [error for error in _errors(group) if not isinstance(error, trio.Cancelled)]
        if not errors:
            raise
        foreseen = (ArchidError, ProtocolError)
        raise min(errors, key=lambda error: isinstance(error, foreseen)) from group


def _errors(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _errors(error)
        else:
            yield error
