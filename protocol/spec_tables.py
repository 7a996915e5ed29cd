"""Keeps the tables and diagrams of SPEC.md equal to the code: `python -m protocol.spec_tables`.

`--write` puts them into the marked blocks, `--check` says which differ and exits with 1. It is a
tool beside the protocol, the only module here that touches a file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from protocol.connection_states import (
    ALLOWED,
    CROSSING,
    JOIN_ORDER,
    TRANSITIONS,
    UNPROVEN_LIMITS,
    State,
    Trigger,
)
from protocol.frames import FLAG_OPTIONAL, HEADER_BYTES
from protocol.messages import (
    CONTENT,
    DELTAS,
    DOCUMENTS,
    GOSSIP,
    HOLDERS,
    JOINING,
    LANES,
    MEANINGS,
    REACTIONS,
    SESSION,
    SWARM,
    Message,
    Request,
    SpanAnswer,
)

SPEC: Final = Path(__file__).with_name("SPEC.md")
BLOCK: Final = re.compile(r"<!-- generated: (?P<name>[a-z-]+) -->\n.*?<!-- end -->", re.DOTALL)


def _name(kind: type[Message]) -> str:
    return f"`{kind.__name__}`"


def _names(kinds: Iterable[type[Message]]) -> str:
    return ", ".join(_name(kind) for kind in sorted(kinds, key=lambda kind: kind.TYPE))


def _meaning(kind: type[Message]) -> str:
    """The first paragraph of the docstring, as one line."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def _fields(kind: type[Message]) -> str:
    if kind is SpanAnswer:
        return "not an array: see chapter 6"
    return "; ".join(f"`{name}`: {codec.text}" for name, codec in kind.WIRE.items()) or "none"


def message_table(kinds: Iterable[type[Message]]) -> str:
    """One row a message: number, name, meaning, fields, largest payload."""
    rows = [
        "| type | message | meaning | fields, in order | payload at most |",
        "|--:|---|---|---|--:|",
    ]
    for kind in kinds:
        meaning = _meaning(kind)
        if issubclass(kind, Request):
            answers = ", then ".join(_name(answer) for answer in kind.answer_kinds())
            meaning += f" Answer: {answers}."
        if kind.OPTIONAL:
            meaning += " *Optional.*"
        rows.append(
            f"| {kind.TYPE} | {_name(kind)} | {meaning} | {_fields(kind)} | {kind.MAX_BYTES} |"
        )
    return "\n".join(rows)


def state_diagram() -> str:
    """The transitions as a mermaid diagram."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.HELLO.name}"]
    lines += [
        f"    {before.name} --> {after.name}: {trigger.name}"
        for (before, trigger), after in TRANSITIONS.items()
    ]
    return "\n".join([*lines, f"    {State.CLOSED.name} --> [*]", "```"])


def state_table() -> str:
    """Triggers, then what each state allows."""
    rows = ["| trigger | what it is |", "|---|---|"]
    rows += [f"| `{trigger.name}` | {trigger.value} |" for trigger in Trigger]
    rows += ["", "| state | meaning | messages, either way |", "|---|---|---|"]
    rows += [
        f"| `{state.name}` | {state.value} | {_names(ALLOWED[state]) or 'none'} |"
        for state in State
    ]
    rows += ["", "| state | may still arrive, and is ignored |", "|---|---|"]
    rows += [f"| `{state.name}` | {_names(kinds)} |" for state, kinds in CROSSING.items()]
    rows += ["", "| before `ADMITTED` | payload at most |", "|---|--:|"]
    rows += [f"| {_name(kind)} | {limit} |" for kind, limit in UNPROVEN_LIMITS.items()]
    return "\n".join(rows)


def join_diagram() -> str:
    """The order of the JOIN messages as a mermaid diagram."""
    lines = ["```mermaid", "sequenceDiagram"]
    for side, kind in JOIN_ORDER:
        lines.append(f"    {side.value}->>{side.other.value}: {kind.__name__}")
    return "\n".join([*lines, "```"])


def error_table() -> str:
    """Number, name and meaning of every error code, and what a node does that gets it."""
    rows = ["| number | code | meaning | a node that gets it |", "|--:|---|---|---|"]
    rows += [
        f"| {code.value} | `{code.name_text}` | {text} | {REACTIONS[code]} |"
        for code, text in MEANINGS.items()
    ]
    return "\n".join(rows)


def frame_table() -> str:
    """The header of a frame."""
    return "\n".join(
        [
            "| offset | size | field |",
            "|--:|--:|---|",
            f"| 0 | 4 | length of the payload, which follows the {HEADER_BYTES} bytes |",
            "| 4 | 1 | type |",
            f"| 5 | 1 | flags: {FLAG_OPTIONAL:#04x} is OPTIONAL; others 0, ignored by a reader |",
            "| 6 | 2 | reserved: 0, ignored by a reader |",
        ]
    )


TABLES: Final[dict[str, Callable[[], str]]] = {
    "frame": frame_table,
    "messages-session": lambda: message_table(SESSION),
    "messages-documents": lambda: message_table(DOCUMENTS),
    "messages-content": lambda: message_table(CONTENT),
    "messages-swarm": lambda: message_table(SWARM),
    "messages-lanes": lambda: message_table(LANES),
    "messages-holders": lambda: message_table(HOLDERS),
    "messages-deltas": lambda: message_table(DELTAS),
    "messages-gossip": lambda: message_table(GOSSIP),
    "messages-joining": lambda: message_table(JOINING),
    "state-diagram": state_diagram,
    "states": state_table,
    "join-diagram": join_diagram,
    "errors": error_table,
}


def regenerate(text: str) -> str:
    """SPEC.md's text with every block made anew. Raises ValueError for unknown or absent ones."""
    found: list[str] = []

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"SPEC.md has a block {name!r} that nothing makes")
        found.append(name)
        return f"<!-- generated: {name} -->\n\n{TABLES[name]()}\n\n<!-- end -->"

    text = BLOCK.sub(block, text)
    missing = set(TABLES) - set(found)
    if missing or len(found) != len(set(found)):
        raise ValueError(f"SPEC.md lacks blocks, or has them twice: {sorted(missing) or found}")
    return text


def main(arguments: list[str]) -> int:
    """`--check` or `--write`."""
    if arguments not in (["--check"], ["--write"]):
        sys.stderr.write("usage: python -m protocol.spec_tables --check|--write\n")
        return 2
    before = SPEC.read_text(encoding="utf-8")
    after = regenerate(before)
    if after == before:
        return 0
    if arguments == ["--write"]:
        SPEC.write_text(after, encoding="utf-8")
        return 0
    sys.stderr.write("SPEC.md differs from the code: run python -m protocol.spec_tables --write\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
