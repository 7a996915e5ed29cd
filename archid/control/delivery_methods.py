"""The control methods with which a person moves a node's releases: fetch, activate, roll back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from archid.control.connection import Exchange, Handler
from archid.control.credentials import Caller
from archid.log import get_logger
from archid.store.about import About
from archid.store.bundles import BundleId
from archid.store.library import Library
from archid.sync.fetcher import Fetcher
from archid.sync.switching import Switcher
from protocol.ids import ManifestId

log = get_logger(__name__)


class FetchMethods:
    """The handler that fetches before the date."""

    def __init__(
        self,
        *,
        library: Library,
        fetcher: Fetcher,
        fetch_now: Callable[[str], Sequence[ManifestId]],
    ) -> None:
        self._library = library
        self._fetcher = fetcher
        self._fetch_now = fetch_now

    def handlers(self) -> Mapping[str, Handler]:
        """By method name, as `ControlServer` takes them."""
        return {"fetch": self.fetch}

    async def fetch(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        """Start fetching at once; how far it is shows in `status`."""
        found = self._fetch_now(params["name"])
        log.info("fetch_asked_for", name=params["name"], by=caller.user_name)
        return {"versions": [await self._version(manifest) for manifest in found]}

    async def _version(self, manifest: ManifestId) -> dict[str, Any]:
        about = await trio.to_thread.run_sync(self._library.about, manifest)
        progress = self._fetcher.progress.get(manifest)
        held = self._library.holds(manifest)
        size_bytes = about.size_bytes if about is not None else None
        held_bytes = progress.held_bytes if progress is not None else 0
        return {
            "manifest": manifest.hex(),
            "script": about.name if about is not None else "",
            "held": held,
            "size_bytes": size_bytes,
            "held_bytes": (size_bytes or 0) if held else held_bytes,
        }


class SwitchMethods:
    """Handlers that move releases by hand, where releases play."""

    def __init__(self, library: Library, switcher: Switcher) -> None:
        self._library = library
        self._switcher = switcher

    def handlers(self) -> Mapping[str, Handler]:
        """By method name, as `ControlServer` takes them."""
        return {"activate": self.activate, "rollback": self.roll_back}

    async def activate(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        """Switch to what is granted, at once."""
        header, changed = await self._switcher.activate(params["release"], early=params["early"])
        log.info("activation_asked_for", release=header.name, by=caller.user_name)
        return {
            "release": header.release.hex(),
            "name": header.name,
            "generation": header.generation,
            "start_s": header.start_s,
            "changed": changed,
        }

    async def roll_back(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        """Switch to what was there before, and hold it."""
        hold = await self._switcher.roll_back(params["release"], params["reason"])
        log.info("rollback_asked_for", release=hold.name, by=caller.user_name)
        return {
            "release": hold.release.hex(),
            "name": hold.name,
            "held_generation": hold.generation,
            "scripts": [
                {
                    "kind": kind,
                    "manifest": manifest.hex(),
                    "script": about.name if about is not None else "",
                    "version": about.version if about is not None else None,
                }
                for kind, manifest, about in await trio.to_thread.run_sync(self._trees, hold.bundle)
            ],
        }

    def _trees(self, bundle: BundleId) -> list[tuple[str, ManifestId, About | None]]:
        trees = self._library.bundles.inspect(bundle).trees
        return [(kind, one, self._library.about(one)) for kind, one in sorted(trees.items())]
