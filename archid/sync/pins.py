"""What a person wants to keep whatever happens: versions that the collector never removes.

A pin is an entry in the node's journal, and another one takes it away again; so it survives
everything that the journal survives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from archid.journal import Journal
from protocol.errors import FormatError
from protocol.ids import ManifestId

PINNED: Final = "pinned"
UNPINNED: Final = "unpinned"


@dataclass(frozen=True)
class Pin:
    """One version that stays; `name` is what it was pinned as, `by` who did it."""

    manifest: ManifestId
    name: str
    by: str
    at_s: int


class Pins:
    """The pins of this node. Methods that change block and raise StorageError."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._pins: dict[ManifestId, Pin] | None = None

    def load(self) -> None:
        """Read the journal; blocks. Raises StorageError, and until it worked nothing is known."""
        found: dict[ManifestId, Pin] = {}
        for entry in self._journal.entries():
            if entry.kind not in (PINNED, UNPINNED):
                continue
            text = entry.fields.get("manifest")
            try:
                manifest = ManifestId.from_hex(text if isinstance(text, str) else "")
            except FormatError:
                continue
            found.pop(manifest, None)
            if entry.kind == PINNED:
                name, by = entry.fields.get("name"), entry.fields.get("by")
                found[manifest] = Pin(manifest, str(name or ""), str(by or ""), entry.at_s)
        self._pins = found

    @property
    def is_known(self) -> bool:
        """Whether the journal could be read; otherwise anything may be pinned."""
        return self._pins is not None

    def pins(self) -> list[Pin]:
        """Every pin, by name."""
        return sorted((self._pins or {}).values(), key=lambda pin: (pin.name, pin.manifest))

    def manifests(self) -> frozenset[ManifestId]:
        """What is pinned."""
        return frozenset(self._pins or ())

    def pin(self, manifests: Iterable[ManifestId], *, name: str, by: str) -> list[Pin]:
        """Pin these; returns the pins of all of them, old ones included."""
        pins = self._known()
        found = []
        for manifest in manifests:
            if manifest not in pins:
                fields = {"manifest": manifest.hex(), "name": name, "by": by}
                entry = self._journal.append(PINNED, fields)
                pins[manifest] = Pin(manifest, name, by, entry.at_s)
            found.append(pins[manifest])
        return found

    def unpin(self, manifests: Iterable[ManifestId]) -> list[Pin]:
        """Take these pins away; returns those that there were."""
        pins = self._known()
        gone = []
        for manifest in manifests:
            if manifest in pins:
                pin = pins[manifest]
                fields = {"manifest": manifest.hex(), "name": pin.name}
                self._journal.append(UNPINNED, fields)
                gone.append(pins.pop(manifest))
        return gone

    def _known(self) -> dict[ManifestId, Pin]:
        if self._pins is None:
            self.load()
        return self._pins if self._pins is not None else {}
