"""Entries of the journal as sentences for people, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from archid.journal import Entry, Scalar
from archid.rates import RATE_KEYS, UNLIMITED, format_rate

Plain = str | int | bool | None
Fields = Mapping[str, Plain]

OPERATION: Final = "operation"
NAMED: Final = ("script", "kind", "release", "node", "role", "name", "site", "room")
"""The parameters that say what a change was about, in reading order; never is one a secret."""
NUMBERED: Final = ("generation", "version", "epoch")
_SHOWN_ID: Final = 12


def entry_json(entry: Entry) -> dict[str, Any]:
    """One line of ``archid log --json``."""
    fields = {name: _plain(value) for name, value in entry.fields.items()}
    return {
        "seq": entry.seq,
        "at_s": entry.at_s,
        "kind": entry.kind,
        "sentence": sentence(entry.kind, fields),
        "fields": fields,
        "hash": entry.hash.hex(),
    }


def sentence(kind: str, fields: Fields) -> str:
    """What the entry tells; of a kind that is not known here, its fields."""
    words = SENTENCES.get(kind)
    if words is not None:
        try:
            return words(fields)
        except KeyError:
            pass  # written by another version
    told = ", ".join(f"{name} {value}" for name, value in fields.items())
    return kind.replace("_", " ") + (f": {told}" if told else "")


def _release(words: str) -> Callable[[Fields], str]:
    return lambda fields: f"{fields['name']} generation {fields['generation']} {words}"


def _rolled_back(fields: Fields) -> str:
    said = f": {fields['reason']}" if fields.get("reason") else ""
    return f"{fields['name']} generation {fields['generation']} was rolled back{said}"


def _script(words: str) -> Callable[[Fields], str]:
    def say(fields: Fields) -> str:
        name = fields.get("name") or fields.get("script") or _short(fields)
        version = f" version {fields['version']}" if "version" in fields else ""
        return f"{name}{version} {words}"

    return say


def _pinned(fields: Fields) -> str:
    return f"{fields['by']} pinned version {_short(fields)} as {fields['name']}"


def _unpinned(fields: Fields) -> str:
    named = f", pinned as {fields['name']}," if fields.get("name") else ""
    return f"version {_short(fields)}{named} was unpinned"


def _short(fields: Fields) -> str:
    return str(fields["manifest"])[:_SHOWN_ID]


def _operation(fields: Fields) -> str:
    about = " ".join(str(fields[name]) for name in NAMED if name in fields)
    for number in NUMBERED:
        about += f" {number} {fields[number]}" if number in fields else ""
    about = about.strip() or str(fields.get("filename", ""))
    what = str(fields["method"]).replace(".", " ").replace("_", " ")
    outcome = "" if fields["outcome"] == "ok" else f" failed ({fields['outcome']})"
    return f"{fields['user']}: {what}{' ' + about if about else ''}{outcome}"


def _limits_set(fields: Fields) -> str:
    said = [f"{key} to {_rate(fields[key])}" for key in RATE_KEYS if key in fields]
    until_s = fields.get("until_s")
    end = ""
    if isinstance(until_s, int):
        end = f" until {datetime.fromtimestamp(until_s).astimezone():%Y-%m-%d %H:%M %Z}"
    return f"{fields['by']} limited {', '.join(said)}{end}"


def _rate(value: Plain) -> str:
    return format_rate(value) if isinstance(value, int) else UNLIMITED


SENTENCES: Final[dict[str, Callable[[Fields], str]]] = {
    OPERATION: _operation,
    "limits_set": _limits_set,
    "limits_cleared": lambda fields: (
        f"{fields['by']} let the configuration limit {fields['limits']} again"
    ),
    "release_activated": _release("was switched to"),
    "release_withdrawn": _release("was taken away, since it was withdrawn"),
    "release_rolled_back": _rolled_back,
    "release_rollback_ended": _release("is no longer held back"),
    "pinned": _pinned,
    "unpinned": _unpinned,
    "tree_placed": _script("is here, whole and verified"),
    "tree_damaged": _script("was found damaged on this disk"),
    "tree_repaired": _script("was repaired"),
    "tree_removed": _script("was removed, as nothing needs it any more"),
}


def _plain(value: Scalar) -> Plain:
    return value.hex() if isinstance(value, bytes) else value
