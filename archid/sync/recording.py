"""Entries in the node's journal about what services did.

What was done has been done: a journal that does not take the entry is said in the log and ends
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from archid.errors import ArchidError
from archid.journal import Entry, Journal, Scalar
from archid.log import get_logger

log = get_logger(__name__)


async def record(
    journal: Journal,
    kind: str,
    insist: Callable[[Callable[[], Entry]], Entry] = lambda write: write(),
    /,
    **fields: Scalar,
) -> None:
    """Append an entry; shielded, since what it tells of has happened."""
    with trio.CancelScope(shield=True):
        try:
            await trio.to_thread.run_sync(insist, partial(journal.append, kind, fields))
        except ArchidError as error:
            log.error("journal_not_written", kind=kind, why=error.sentence)
