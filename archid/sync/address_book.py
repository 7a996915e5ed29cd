"""Where central and the REPOs can be reached, so that nothing needs central to be found.

Nodes learn it from central and from REPOs, keep it on disk, and dial what they have learnt.
An address proves nothing: whoever answers there must prove who it is, and a hint that never led
to such a node gives its place to a newer one when the book is full. A node that has shown no sign
of life for long, neither by a connection nor by a state that it signed, is at first no longer told
to others and then forgotten, so that no address goes round for ever. The file is a convenience;
losing it costs a node only what its configuration and its membership do not say.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
NEW_FOR_S: Final = 24 * 3600.0
"""What was just heard of is told to others for this long, whether it is alive or not."""
TOLD_FOR_S: Final = 7 * 24 * 3600.0
"""Others are told of a node for this long after its last sign of life."""
FORGOTTEN_AFTER_S: Final = 2 * TOLD_FOR_S
"""Later than everybody has stopped telling of it, so that it does not come back."""
_MAX_FILE_BYTES: Final = 1 << 20
_ROLES: Final = (ROLE_CENTRAL, ROLE_REPO)


@dataclass
class _Listed:
    hint: PeerHint
    heard_s: float
    alive_s: float
    """The last sign of life, 0 for none."""
    by_itself: bool = False
    """The addresses are those in a state that the node has signed."""
    confirmed: bool = False
    """It has proven who it is, since this node started."""


class AddressBook:
    """Addresses of central and REPOs by node; `changed` fires when there is something new."""

    def __init__(
        self,
        path: Path,
        own: NodeId,
        role: str,
        advertised: Sequence[Address],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.changed = Signal()
        self._path = path
        self._own = own
        self._clock = clock
        self._own_hint: PeerHint | None = None
        if role in _ROLES and advertised:
            texts = tuple(str(address) for address in advertised[:MAX_ADDRESSES])
            self._own_hint = PeerHint(own, role, texts)
        self._known: dict[NodeId, _Listed] = {}
        """Of the other nodes, in the order in which they were first heard of."""
        self._load()

    def hints(self) -> tuple[PeerHint, ...]:
        """What to tell others, this node included."""
        own = () if self._own_hint is None else (self._own_hint,)
        now = self._clock()
        told = (
            listed.hint
            for _, listed in sorted(self._known.items())
            if now - listed.heard_s < NEW_FOR_S or now - listed.alive_s < TOLD_FOR_S
        )
        return (*own, *told)

    def known(self) -> tuple[PeerHint, ...]:
        """Everybody who is listed, without this node."""
        return tuple(listed.hint for _, listed in sorted(self._known.items()))

    def addresses(self) -> tuple[Address, ...]:
        """Where the others can be dialled."""
        return tuple(parse_address(text) for hint in self.known() for text in hint.addresses)

    def learn(self, hints: Iterable[PeerHint]) -> None:
        """Take hints from central or a REPO; what is malformed is passed over."""
        news = False
        for hint in hints:
            listed = self._known.get(hint.node)
            if listed is None or not listed.by_itself:
                news = self._take(hint, listed) or news
        if news:
            self._save()
            self.changed.fire()

    def learn_state(self, hint: PeerHint, issued_s: float) -> None:
        """Take what a node says of itself in a state that it signed."""
        listed = self._known.get(hint.node)
        news = self._take(hint, listed)
        listed = self._known.get(hint.node)
        if listed is not None and listed.hint.addresses == hint.addresses:
            listed.by_itself = True
            listed.alive_s = max(listed.alive_s, min(issued_s, self._clock()))
        if news:
            self._save()
            self.changed.fire()

    def confirm(self, node: NodeId) -> None:
        """A node that is listed has proven who it is: it keeps its place."""
        listed = self._known.get(node)
        if listed is not None:
            listed.confirmed = True
            listed.alive_s = max(listed.alive_s, self._clock())

    def forget(self, nodes: Iterable[NodeId]) -> None:
        """Drop nodes that are no longer part of the fleet."""
        gone = [node for node in nodes if node in self._known]
        for node in gone:
            del self._known[node]
        if gone:
            self._save()
            self.changed.fire()

    def age(self, connected: Iterable[NodeId]) -> None:
        """Forget who was silent for too long; call it now and then. `connected` are alive."""
        now = self._clock()
        for node in connected:
            self.confirm(node)
        silent = [
            node
            for node, listed in self._known.items()
            if now - max(listed.heard_s, listed.alive_s) >= FORGOTTEN_AFTER_S
        ]
        for node in silent:
            log.info("address_forgotten", node=node.short, days=int(FORGOTTEN_AFTER_S // 86400))
        self.forget(silent)
        if self._known and not silent:
            self._save()

    def _take(self, hint: PeerHint, listed: _Listed | None) -> bool:
        cleaned = self._cleaned(hint)
        if cleaned is None or (listed is not None and listed.hint == cleaned):
            return False
        if listed is not None:
            listed.hint, listed.by_itself = cleaned, False
            return True
        if not self._make_room():
            return False
        self._known[hint.node] = _Listed(cleaned, self._clock(), 0.0)
        return True

    def _make_room(self) -> bool:
        """Whether one more node has a place, if need be that of the oldest unconfirmed one."""
        if len(self._known) < MAX_NODES:
            return True
        unmet = (node for node, listed in self._known.items() if not listed.confirmed)
        oldest = next(unmet, None)
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
                    now = self._clock()
                    heard_s, alive_s = row.get("heard_s", now), row.get("alive_s", 0)
                    # A clock that was wrong must not keep anybody for ever.
                    self._known[node] = _Listed(hint, min(heard_s, now), min(alive_s, now))
        except FileNotFoundError:
            return
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            FormatError,
        ) as error:
            log.warning("address_book_unreadable", path=str(self._path), why=str(error))

    def _save(self) -> None:
        rows = [
            {
                "node": node.hex(),
                "role": listed.hint.role,
                "addresses": list(listed.hint.addresses),
                "heard_s": int(listed.heard_s),
                "alive_s": int(listed.alive_s),
            }
            for node, listed in self._known.items()
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
