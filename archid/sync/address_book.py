"""Where central and the REPOs can be reached, so that nothing needs central to be found.

Nodes learn it from central and from REPOs, keep it on disk, and dial what they have learnt.
An address proves nothing: whoever answers there must prove who it is, and a hint that never led
to such a node gives its place to a newer one when the book is full. The file is a convenience;
losing it costs a node only what its configuration and its membership do not say.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from archid.addresses import Address, parse_address
from archid.log import get_logger
from archid.sync.signal import Signal
from protocol.errors import FormatError
from protocol.facts import ROLE_CENTRAL, ROLE_REPO
from protocol.ids import NodeId
from protocol.limits import MAX_ADDRESS_BYTES, MAX_ADDRESSES
from protocol.messages import PeerHint

log = get_logger(__name__)

MAX_NODES: Final = 64
_MAX_FILE_BYTES: Final = 1 << 20
_ROLES: Final = (ROLE_CENTRAL, ROLE_REPO)


class AddressBook:
    """Addresses of central and REPOs by node; `changed` fires when there is something new."""

    def __init__(self, path: Path, own: NodeId, role: str, advertised: Sequence[Address]) -> None:
        self.changed = Signal()
        self._path = path
        self._own = own
        self._own_hint: PeerHint | None = None
        if role in _ROLES and advertised:
            texts = tuple(str(address) for address in advertised[:MAX_ADDRESSES])
            self._own_hint = PeerHint(own, role, texts)
        self._known: dict[NodeId, PeerHint] = {}
        """Of the other nodes, in the order in which they were first heard of."""
        self._confirmed: set[NodeId] = set()
        self._load()

    def hints(self) -> tuple[PeerHint, ...]:
        """What to tell others, this node included."""
        own = () if self._own_hint is None else (self._own_hint,)
        return (*own, *(self._known[node] for node in sorted(self._known)))

    def addresses(self) -> tuple[Address, ...]:
        """Where the others can be dialled."""
        return tuple(
            parse_address(text)
            for node in sorted(self._known)
            for text in self._known[node].addresses
        )

    def learn(self, hints: Iterable[PeerHint]) -> None:
        """Take hints from central or a REPO; what is malformed is passed over."""
        news = False
        for hint in hints:
            cleaned = self._cleaned(hint)
            if cleaned is None or self._known.get(hint.node) == cleaned:
                continue
            if hint.node in self._known or self._make_room():
                self._known[hint.node] = cleaned
                news = True
        if news:
            self._save()
            self.changed.fire()

    def confirm(self, node: NodeId) -> None:
        """A node that is listed has proven who it is: it keeps its place."""
        if node in self._known:
            self._confirmed.add(node)

    def forget(self, nodes: Iterable[NodeId]) -> None:
        """Drop nodes that are no longer part of the fleet."""
        gone = [node for node in nodes if node in self._known]
        for node in gone:
            del self._known[node]
            self._confirmed.discard(node)
        if gone:
            self._save()
            self.changed.fire()

    def _make_room(self) -> bool:
        """Whether one more node has a place, if need be that of the oldest unconfirmed one."""
        if len(self._known) < MAX_NODES:
            return True
        oldest = next((node for node in self._known if node not in self._confirmed), None)
        if oldest is None:
            return False
        del self._known[oldest]
        return True

    def _cleaned(self, hint: PeerHint) -> PeerHint | None:
        addresses = tuple(text for text in hint.addresses if _is_address(text))[:MAX_ADDRESSES]
        if hint.node == self._own or hint.role not in _ROLES or not addresses:
            return None
        return PeerHint(hint.node, hint.role, addresses)

    def _load(self) -> None:
        try:
            with self._path.open("rb") as file:
                rows = json.loads(file.read(_MAX_FILE_BYTES))
            for row in rows[:MAX_NODES]:
                node = NodeId.from_hex(row["node"])
                hint = self._cleaned(PeerHint(node, row["role"], tuple(row["addresses"])))
                if hint is not None:
                    self._known[node] = hint
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, RecursionError, FormatError) as error:
            log.warning("address_book_unreadable", path=str(self._path), why=str(error))

    def _save(self) -> None:
        rows = [
            {"node": hint.node.hex(), "role": hint.role, "addresses": list(hint.addresses)}
            for hint in self._known.values()
        ]
        temporary = self._path.with_name(self._path.name + ".new")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(json.dumps(rows, indent=1))
            os.replace(temporary, self._path)
        except OSError as error:
            log.warning("address_book_not_saved", path=str(self._path), why=str(error))
            with contextlib.suppress(OSError):
                temporary.unlink()


def _is_address(text: object) -> bool:
    try:
        return (
            isinstance(text, str)
            and len(text.encode()) <= MAX_ADDRESS_BYTES
            and not parse_address(text).is_wildcard
        )
    except ValueError:
        return False
