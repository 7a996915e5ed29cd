"""The methods of the control socket that every node has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import trio

from archid.control.connection import Exchange, Handler
from archid.control.credentials import Caller
from archid.control.node_status import NodeStatus
from archid.errors import NotFound, Unavailable
from archid.store.about import UNKNOWN, About
from archid.store.errors import DocumentMissing
from archid.store.leaving import forget_membership
from archid.store.library import Library
from archid.store.verify import Damage
from archid.sync.fetch_progress import FetchState
from archid.sync.fetcher import Fetcher
from archid.sync.one_error import one_error
from protocol.ids import ManifestId

MAX_VERIFYING: Final = 2

MANIFEST_LOST: Final = "its manifest was damaged on this disk; it is fetched again"


@dataclass(frozen=True)
class Listed:
    """One version that this node holds or should hold."""

    manifest: ManifestId
    name: str
    kind: str
    version: int
    published_s: int | None = None
    releases: tuple[str, ...] = ()


class Listing(Protocol):
    """What versions there are for this node, by its role's own knowledge."""

    async def __call__(self) -> Sequence[Listed]: ...


class NodeMethods:
    """Handlers that read one node's services, and those that end it."""

    def __init__(
        self,
        status: NodeStatus,
        *,
        library: Library,
        fetcher: Fetcher,
        listing: Listing,
        stop: Callable[[], None],
    ) -> None:
        self._status = status
        self._library = library
        self._fetcher = fetcher
        self._listing = listing
        self._end = stop
        self._verifying = 0

    def handlers(self) -> Mapping[str, Handler]:
        """By method name, as `ControlServer` takes them."""
        return {
            "status": self.status,
            "peers": self.peers,
            "scripts": self.scripts,
            "verify": self.verify,
            "leave": self.leave,
            "stop": self.stop,
        }

    async def status(
        self, _caller: Caller, _params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        return await self._status.status()

    async def peers(
        self, _caller: Caller, _params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        return {"peers": self._status.peers(), "nodes": self._status.nodes_met()}

    async def scripts(
        self, _caller: Caller, _params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        listed = list(await self._listing())
        listed += self._kept({one.manifest for one in listed})
        return {"scripts": [self._script(one) for one in listed]}

    def _kept(self, named: set[ManifestId]) -> list[Listed]:
        """What is here although nothing names it now, such as the version before."""
        known = {one: self._library.about(one) for one in self._library.held() if one not in named}
        return [
            Listed(manifest, about.name, about.kind, about.version)
            for manifest, about in known.items()
            if about is not None
        ]

    def _script(self, one: Listed) -> dict[str, Any]:
        about = self._library.about(one.manifest)
        progress = self._fetcher.progress.get(one.manifest)
        held = self._library.holds(one.manifest)
        size_bytes = about.size_bytes if about is not None else 0
        state, held_bytes = "missing", 0
        if held and self._library.damage.of(one.manifest) is not None:
            state, held_bytes = "damaged", size_bytes
        elif held:
            state, held_bytes = "held", size_bytes
        elif progress is not None and progress.state in (FetchState.FETCHING, FetchState.PLACING):
            state, held_bytes = "fetching", progress.held_bytes
        return {
            "name": one.name or (about.name if about is not None else ""),
            "kind": one.kind,
            "version": about.version if about is not None else one.version,
            "manifest": one.manifest.hex(),
            "state": state,
            "files": about.files if about is not None else 0,
            "size_bytes": size_bytes,
            "held_bytes": held_bytes,
            "published_s": one.published_s,
            "path": str(self._library.tree(one.manifest)) if held else None,
            "releases": sorted(one.releases),
        }

    async def verify(
        self, _caller: Caller, params: dict[str, Any], exchange: Exchange
    ) -> dict[str, Any]:
        if self._verifying >= MAX_VERIFYING:
            # Whoever may look may ask for this, and it keeps the disk and a thread busy.
            raise Unavailable(
                f"{self._verifying} commands already verify what this node holds",
                remedy="Wait until they are done",
                code="busy",
            )
        self._verifying += 1
        try:
            return await self._verify_chosen(params, exchange)
        finally:
            self._verifying -= 1

    async def _verify_chosen(self, params: dict[str, Any], exchange: Exchange) -> dict[str, Any]:
        chosen = await self._chosen(params["script"], params["manifest"])
        known = {one: await trio.to_thread.run_sync(self._about, one) for one in chosen}
        known = dict(sorted(known.items(), key=lambda one: (one[1].name, one[1].version)))
        total_bytes = sum(about.size_bytes for about in known.values())
        reports: list[dict[str, Any]] = []
        done_bytes = 0
        for manifest, about in known.items():
            names = {"manifest": manifest.hex(), "name": about.name, "version": about.version}
            told = partial(_progress_event, names, base_bytes=done_bytes, total_bytes=total_bytes)
            checked_bytes = about.size_bytes
            try:
                damages = [
                    {"path": d.path, "reason": d.kind.value, "sentence": d.sentence}
                    for d in await self._verify(manifest, exchange, told)
                ]
            except DocumentMissing:
                checked_bytes = 0
                damages = [{"path": "", "reason": "manifest", "sentence": MANIFEST_LOST}]
            done_bytes += about.size_bytes
            reports.append(
                {
                    **names,
                    "kind": about.kind,
                    "ok": not damages,
                    "checked_bytes": checked_bytes,
                    "damage": damages,
                }
            )
        return {"ok": all(report["ok"] for report in reports), "trees": reports}

    def _about(self, manifest: ManifestId) -> About:
        return self._library.about(manifest) or UNKNOWN

    async def _chosen(self, script: str | None, manifest: str | None) -> list[ManifestId]:
        held = self._library.held()
        if manifest is not None:
            wanted = ManifestId.from_hex(manifest)
            if wanted not in held:
                raise NotFound(
                    f"The version {manifest} is not here",
                    remedy="archid scripts lists what is here",
                )
            return [wanted]
        if script is None:
            return held
        found = []
        for one in held:
            about = await trio.to_thread.run_sync(self._library.about, one)
            if about is not None and about.name == script:
                found.append(one)
        if not found:
            raise NotFound(
                f"No version of the script '{script}' is here",
                remedy="archid scripts lists what is here",
            )
        return found

    async def _verify(
        self, manifest: ManifestId, exchange: Exchange, told: Callable[[int], dict[str, Any]]
    ) -> list[Damage]:
        """Hash one tree in a thread, which stops soon after the client has left."""
        checked = [0]
        stopped = [False]

        def count(size_bytes: int) -> None:
            checked[0] += size_bytes

        async def report() -> None:
            try:
                while True:
                    await exchange.event(told(checked[0]))
                    await trio.sleep(0.25)
            finally:
                stopped[0] = True

        with one_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(report)
                damages = await trio.to_thread.run_sync(
                    partial(
                        self._library.trees.verify,
                        manifest,
                        progress=count,
                        stopped=lambda: stopped[0],
                    )
                )
                nursery.cancel_scope.cancel()
        return damages

    async def leave(
        self, _caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        removed = await trio.to_thread.run_sync(
            partial(forget_membership, self._library.paths, purge=params["purge"])
        )
        self._end()
        membership = self._status.membership
        return {
            "node": self._status.node,
            "fleet": membership.fleet.hex(),
            "fleet_name": membership.fleet_name,
            "removed": [str(path) for path in removed],
        }

    async def stop(
        self, _caller: Caller, _params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        self._end()
        return {"stopping": True}


def _progress_event(
    names: dict[str, Any], checked_bytes: int, *, base_bytes: int, total_bytes: int
) -> dict[str, Any]:
    return {
        "event": "verify.progress",
        **names,
        "checked_bytes": base_bytes + checked_bytes,
        "total_bytes": total_bytes,
    }
