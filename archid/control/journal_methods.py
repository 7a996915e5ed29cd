"""The journal over the control socket: what was done here, and an entry for each change asked for.

Reading verifies the whole chain each time: a journal is read when somebody wants to know what
happened, and then it must be said if a part of it cannot be believed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import trio

from archid.control.connection import Exchange, Handler
from archid.control.credentials import Caller
from archid.control.journal_words import NAMED, OPERATION, entry_json
from archid.control.schema import METHODS
from archid.errors import ArchidError
from archid.journal import Entry, Journal, JournalDamaged, Scalar
from archid.sync.recording import record

LOOK_EVERY_S: Final = 0.5
ONLY_SHOWS: Final = (("sign", False), ("confirm", False), ("dry_run", True))
"""With such a parameter a request says what it would do, and does nothing."""
NOT_RECORDED: Final = frozenset({"leave"})
"""It takes the journal's own node out of the fleet, and the journal with it if told to."""
NAMED_BY_RESULT: Final = {
    "release.apply": ("name", "generation"),
    "root.install": ("version", "epoch"),
}
"""What such a change was about is only known once what it was given has been read."""


def with_journal(handlers: Mapping[str, Handler], journal: Journal) -> dict[str, Handler]:
    """The same handlers, the changing ones leaving an entry, and `log`."""
    found = {
        name: _recorded(name, handler, journal)
        if METHODS[name].changes and name not in NOT_RECORDED
        else handler
        for name, handler in handlers.items()
    }
    return {**found, "log": JournalReader(journal).log}


def _recorded(name: str, handler: Handler, journal: Journal) -> Handler:
    async def run(caller: Caller, params: dict[str, Any], exchange: Exchange) -> dict[str, Any]:
        if any(params.get(key) is value for key, value in ONLY_SHOWS):
            return await handler(caller, params, exchange)
        outcome = "cancelled"
        about: dict[str, Scalar] = {
            key: params[key] for key in (*NAMED, "filename") if isinstance(params.get(key), str)
        }
        try:
            result = await handler(caller, params, exchange)
            outcome = "ok"
            about |= {key: result[key] for key in NAMED_BY_RESULT.get(name, ())}
        except ArchidError as error:
            outcome = error.code
            raise
        except Exception:
            outcome = "internal"
            raise
        else:
            return result
        finally:
            user = caller.user_name
            await record(
                journal, OPERATION, method=name, user=user, outcome=outcome, **_worth(about)
            )

    return run


def _worth(about: dict[str, Scalar]) -> dict[str, Scalar]:
    return {key: value for key, value in about.items() if value}


class JournalReader:
    """Answers ``log``."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def log(
        self, _caller: Caller, params: dict[str, Any], exchange: Exchange
    ) -> dict[str, Any]:
        """The newest entries that fit; with `follow`, those and each new one as events."""
        entries, total, damage = await trio.to_thread.run_sync(self._read, params)
        if not params["follow"]:
            return {"entries": entries, "total": total, "damage": damage}
        for entry in entries:
            await exchange.event({"event": "log.entry", **entry})
        if damage is not None:
            await exchange.event({"event": "log.damage", **damage})
        while True:
            # Whoever follows is a person at a terminal; the writers need not know of them.
            await trio.sleep(LOOK_EVERY_S)
            fresh, total = await trio.to_thread.run_sync(self._after, params, total)
            for entry in fresh:
                await exchange.event({"event": "log.entry", **entry})

    def _read(
        self, params: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], int, dict[str, Any] | None]:
        kept: deque[Entry] = deque(maxlen=params["limit"])
        last = 0
        for entry in self._journal.readable():
            last = entry.seq
            if _fits(entry, params):
                kept.append(entry)
        damage = None
        try:
            self._journal.verify()
        except JournalDamaged as error:
            damage = {"seq": error.seq, "sentence": error.message, "remedy": error.remedy}
        return [entry_json(entry) for entry in kept], last, damage

    def _after(self, params: dict[str, Any], last: int) -> tuple[list[dict[str, Any]], int]:
        fresh = list(self._journal.readable(last + 1))
        return (
            [entry_json(entry) for entry in fresh if _fits(entry, params)],
            fresh[-1].seq if fresh else last,
        )


def _fits(entry: Entry, params: dict[str, Any]) -> bool:
    since_s, kinds = params["since_s"], tuple(params["kinds"])
    return (since_s is None or entry.at_s >= since_s) and (
        not kinds or entry.kind.startswith(kinds)
    )
