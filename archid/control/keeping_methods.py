"""The control methods about what stays on the disk: collecting, and pins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import trio

from archid.control.connection import Exchange, Handler
from archid.control.credentials import Caller
from archid.errors import NotFound, UsageError
from archid.log import get_logger
from archid.store.collecting import Garbage
from archid.store.library import Library
from archid.sync.collector import Collected, Collector
from archid.sync.pins import Pin
from protocol.ids import ManifestId

log = get_logger(__name__)

SHORTEST_ID: Final = 8
"""So many digits of an id name a version, if only one here begins with them."""


class KeepingMethods:
    """Handlers for `gc`, `pin`, `unpin` and `pins`."""

    def __init__(self, library: Library, collector: Collector) -> None:
        self._library = library
        self._collector = collector

    def handlers(self) -> Mapping[str, Handler]:
        """By method name, as `ControlServer` takes them."""
        return {"gc": self.gc, "pin": self.pin, "unpin": self.unpin, "pins": self.pins}

    async def gc(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        """Remove what nothing needs, or say what that would be."""
        if params["dry_run"]:
            found = await self._collector.survey()
            done = Collected(found.going, found.waiting)
        else:
            log.info("gc_asked_for", by=caller.user_name)
            done = await self._collector.collect()
        return {
            "dry_run": params["dry_run"],
            "size_bytes": done.size_bytes,
            "gone": [_garbage(one) for one in done.gone],
            "waiting": [_garbage(one) for one in done.waiting],
            "failed": list(done.failed),
        }

    async def pin(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        """Keep a version, or all that a release plays now, whatever happens."""
        name = params["name"]
        found = await trio.to_thread.run_sync(self._named, name)
        pins = await trio.to_thread.run_sync(
            lambda: self._collector.pins.pin(found, name=name, by=caller.user_name)
        )
        return {"pins": await trio.to_thread.run_sync(self._shown, pins)}

    async def unpin(
        self, _caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        """Let the collector judge it as anything else again."""
        name = params["name"]
        found = await trio.to_thread.run_sync(self._pinned_as, name)
        if not found:
            raise NotFound(
                f"Nothing is pinned as '{name}'",
                remedy="archid pin --list shows what is",
                code="not_pinned",
            )
        gone = await trio.to_thread.run_sync(self._collector.pins.unpin, found)
        return {"pins": await trio.to_thread.run_sync(self._shown, gone)}

    async def pins(
        self, _caller: Caller, _params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        """Every pin."""
        return {"pins": await trio.to_thread.run_sync(self.all_pins)}

    def all_pins(self) -> list[dict[str, Any]]:
        """Every pin as `status` shows it; blocks."""
        return self._shown(self._collector.pins.pins())

    def _named(self, name: str) -> list[ManifestId]:
        """The versions that a release plays, that a script's name leads to, or of this id."""
        bundles, library = self._library.bundles, self._library
        try:
            active = bundles.active(name)
            linked = bundles.linked_script(name)
        except UsageError:
            active = linked = None
        if active is not None:
            return sorted(set(bundles.inspect(active).trees.values()))
        if linked is not None:
            return [linked]
        if len(name) >= SHORTEST_ID:
            matching = [one for one in library.held() if one.hex().startswith(name.lower())]
            if len(matching) == 1:
                return matching
        raise NotFound(
            f"No release that plays here, no script and no version here is called '{name}'",
            remedy="archid scripts -v lists the versions with their ids",
            code="unknown_version",
        )

    def _pinned_as(self, name: str) -> list[ManifestId]:
        pins = self._collector.pins.pins()
        by_name = [pin.manifest for pin in pins if name in (pin.name, self._script(pin.manifest))]
        if by_name or len(name) < SHORTEST_ID:
            return by_name
        return [pin.manifest for pin in pins if pin.manifest.hex().startswith(name.lower())]

    def _script(self, manifest: ManifestId) -> str:
        about = self._library.about(manifest)
        return about.name if about is not None else ""

    def _shown(self, pins: list[Pin]) -> list[dict[str, Any]]:
        shown = []
        for pin in pins:
            about = self._library.about(pin.manifest)
            shown.append(
                {
                    "manifest": pin.manifest.hex(),
                    "script": about.name if about is not None else "",
                    "version": about.version if about is not None else None,
                    "size_bytes": about.size_bytes if about is not None else None,
                    "held": self._library.holds(pin.manifest),
                    "name": pin.name,
                    "by": pin.by,
                    "at_s": pin.at_s,
                }
            )
        return shown


def _garbage(one: Garbage) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "id": one.id,
        "name": one.name,
        "size_bytes": one.size_bytes,
        "why": one.why,
    }
