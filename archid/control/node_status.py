"""How a node stands, in the words and numbers of the control socket's schema.

Everything here reads; nothing decides. Sentences are for the person who must act, so each says
what is wrong for the room and not which part of archid noticed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from archid import __version__
from archid.addresses import Address
from archid.control.connections import connections, traffic_by_node
from archid.control.limits_methods import in_force_json, upload_slots_json
from archid.errors import StorageError
from archid.membership import Membership
from archid.net.dialer import Dialer
from archid.net.switchboard import Switchboard
from archid.store.about import UNKNOWN
from archid.store.damage import TreeDamage
from archid.store.documents import DocumentStore
from archid.store.library import Library
from archid.sync.deliveries import Deliveries, Delivery, DeliveryState
from archid.sync.fetch_progress import FetchProgress, FetchState
from archid.sync.fetcher import Fetcher
from archid.sync.healing import Healing
from archid.sync.limits import Limits
from archid.sync.own_leaf import OwnLeaf
from archid.sync.trust_keeper import TrustKeeper
from protocol.facts import Entry

CLOCK_TOLERANCE_S: Final = 60
MAX_FETCHES_NAMED: Final = 5
LEVELS: Final = ("ok", "attention", "alarm")


@dataclass(frozen=True)
class Reason:
    """Why a node needs somebody's attention."""

    level: str
    code: str
    sentence: str
    remedy: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "code": self.code,
            "sentence": self.sentence,
            "remedy": self.remedy,
        }


@dataclass(frozen=True)
class NodeStatus:
    """Reads the services of one node; `extra_reasons` are those that only its role knows."""

    role: str
    node: str
    membership: Membership
    listen: Callable[[], Sequence[Address]]
    advertise: Sequence[Address]
    keeper: TrustKeeper
    leaf: OwnLeaf
    switchboard: Switchboard
    dialer: Dialer
    fetcher: Fetcher
    library: Library
    healing: Healing
    documents: DocumentStore
    limits: Limits
    started_s: int
    deliveries: Deliveries | None = None
    extra_reasons: Callable[[], Sequence[Reason]] = lambda: ()
    pins: Callable[[], list[dict[str, Any]]] = list
    clock: Callable[[], float] = time.time

    async def status(self) -> dict[str, Any]:
        """The whole Status object."""
        now = self.clock()
        facts = self.leaf.facts
        free, total, _ = self.space()
        held_bytes = await trio.to_thread.run_sync(self.library.held_bytes)
        traffic = self.switchboard.traffic
        level, reasons, deliveries = self.health()
        paths = self.library.paths
        return {
            "software": f"archid {__version__}",
            "role": self.role,
            "node": self.node,
            "name": facts.name if facts else "",
            "site": facts.site if facts else "",
            "room": facts.room if facts else "",
            "server_kind": facts.server_kind if facts else "",
            "fleet": self.membership.fleet.hex(),
            "fleet_name": self.membership.fleet_name,
            "pid": os.getpid(),
            "started_s": self.started_s,
            "now_s": int(now),
            "health": {"level": level, "reasons": [reason.to_json() for reason in reasons]},
            "trust": self._trust(now),
            "listen": [str(address) for address in self.listen()],
            "advertise": [str(address) for address in self.advertise],
            "peers": self.peers(),
            "deliveries": [await self._delivery(one) for one in deliveries],
            "storage": {
                "state": str(paths.state),
                "scripts": str(paths.scripts),
                "free_bytes": free,
                "total_bytes": total,
                "held_bytes": held_bytes,
                "trees": len(self.library.held()),
            },
            "scrub": self._scrub(),
            "traffic": {
                "received_bytes": traffic.received_bytes,
                "sent_bytes": traffic.sent_bytes,
                "span_bytes_received": traffic.span_bytes_received,
                "span_bytes_sent": traffic.span_bytes_sent,
                "content_received_bytes": traffic.span_bytes_received,
                "content_sent_bytes": traffic.span_bytes_sent,
                "gossip_received_bytes": traffic.gossip_bytes_received,
                "gossip_sent_bytes": traffic.gossip_bytes_sent,
                "nodes": self.nodes_met(),
            },
            "limits": in_force_json(self.limits.held()),
            "upload_slots": upload_slots_json(self.limits.slots),
            "pins": await trio.to_thread.run_sync(self.pins),
        }

    def health(self) -> tuple[str, list[Reason], list[Delivery]]:
        """How the node is in one word, why, and the deliveries that were looked at."""
        deliveries = self.deliveries.deliveries() if self.deliveries is not None else []
        reasons = self._reasons(self.clock(), deliveries)
        level = max((reason.level for reason in reasons), key=LEVELS.index, default="ok")
        return level, reasons, deliveries

    def peers(self) -> list[dict[str, Any]]:
        """Every admitted peer, and every address that is being dialled without success."""
        return connections(self.switchboard, self.dialer)

    def nodes_met(self) -> list[dict[str, Any]]:
        """What went to and came from each node since the start."""
        return traffic_by_node(self.switchboard)

    def _trust(self, now: float) -> dict[str, Any] | None:
        trust = self.keeper.trust
        if trust.head is None or trust.root is None:
            return None
        epoch, serial = trust.head.order
        return {
            "root_version": trust.root.version,
            "epoch": epoch,
            "serial": serial,
            "issued_s": trust.head.issued_s,
            "expires_s": trust.head.expires_s,
            "expired": trust.head_expired(now),
            "clock_offset_s": trust.clock_offset_s(now),
        }

    def space(self) -> tuple[int, int, Reason | None]:
        """Free and all bytes where the scripts are, and what a person must know of it."""
        try:
            free, total = self.library.available_bytes()
        except StorageError as error:
            return 0, 0, Reason("alarm", "storage_failing", error.message, error.remedy)
        if free >= self.library.keep_free_bytes:
            return free, total, None
        sentence = f"Only {free / 1e9:.1f} GB are free where the scripts are"
        remedy = "Free some space, or lower [storage] keep_free"
        return free, total, Reason("attention", "disk_nearly_full", sentence, remedy)

    def _reasons(self, now: float, deliveries: Sequence[Delivery]) -> list[Reason]:
        found = list(self.extra_reasons())
        trust = self.keeper.trust
        if trust.head is None:
            found.append(
                Reason("alarm", "no_head", "This node does not know the state of its fleet",
                       "Check that it reaches central or a REPO (archid status shows peers)")
            )  # fmt: skip
        elif trust.head_expired(now):
            found.append(
                Reason("alarm", "head_expired",
                       "Central has signed nothing for longer than it should; what is granted"
                       " goes on", "Check that central runs and that this node reaches a REPO")
            )  # fmt: skip
        if self.keeper.forked:
            found.append(
                Reason("alarm", "head_forked",
                       "Two different states of the fleet carry the same number: two centrals"
                       " sign, or somebody has the head key",
                       "Stop all centrals but one; if none is yours, make a new epoch")
            )  # fmt: skip
        if self.keeper.unsaved is not None:
            found.append(
                Reason("alarm", "trust_not_saved",
                       f"What the fleet said last could not be saved: {self.keeper.unsaved}")
            )  # fmt: skip
        found += self._clock(trust.clock_offset_s(now) or 0.0)
        if not self.switchboard.peers and self.dialer.dialled:
            reason = next((d.reason for d in self.dialer.dialled if d.reason), None)
            found.append(
                Reason("attention", "no_peers",
                       "No other node is connected" + (f": {reason}" if reason else ""),
                       "Check the network and [network] peers in the configuration")
            )  # fmt: skip
        found += [
            Reason("alarm", "delivery_failed", f"{one.header.name}: {one.reason}")
            for one in deliveries
            if one.state is DeliveryState.FAILED
        ]
        if self.deliveries is None:
            found += [
                Reason(
                    "attention", "fetch_failed", f"{one.name or one.manifest.short}: {one.reason}"
                )
                for one in self.fetcher.progress.values()
                if one.state is FetchState.FAILED
            ][:MAX_FETCHES_NAMED]
        found += [self._damaged(one) for one in self.library.damage.all()]
        _, _, space = self.space()
        if space is not None:
            found.append(space)
        if damaged := self.documents.damaged():
            found.append(
                Reason("attention", "documents_damaged",
                       f"{len(damaged)} documents were found damaged and set aside",
                       "Check the disk; they are fetched again by themselves. When that is done,"
                       f" empty {self.documents.path / 'damaged'}")
            )  # fmt: skip
        return found

    def _scrub(self) -> dict[str, Any]:
        """How the background reading stands, and what came of it."""
        report, scrub = self.healing.scrub.report(), self.healing.scrub
        state = "running" if report.running else "waiting" if scrub.bytes_per_s else "off"
        return {
            "state": state,
            "rate_bytes_per_s": scrub.bytes_per_s,
            "begun_s": report.begun_s,
            "checked_bytes": report.checked_bytes,
            "found_damaged": report.damaged,
            "finished_s": report.finished_s,
            "next_s": report.next_s,
            "damaged": len(self.library.damage.all()),
            "repaired": self.healing.repaired,
        }

    def _damaged(self, damage: TreeDamage) -> Reason:
        """What a person must know of a tree that is damaged and not repaired yet."""
        name = (self.library.about(damage.manifest) or UNKNOWN).words
        if damage.manifest not in self.fetcher.progress:
            return Reason(
                "attention",
                "tree_damaged",
                f"{name} is damaged on this disk, and no release here wants it any more",
                "Check the disk; nothing is fetched for it",
            )
        progress = self.fetcher.progress[damage.manifest]
        why = f": {progress.reason}" if progress.reason else ""
        return Reason(
            "alarm",
            "tree_damaged",
            f"{name} is damaged on this disk and is being repaired{why}",
            "It is fetched again from whoever holds it; if it comes back, check the disk (dmesg)",
        )

    def _clock(self, behind_s: float) -> list[Reason]:
        """How far this clock is off, by the newest signature and by what all peers say.

        `behind_s` is by how much it is behind a signature, which is at least how much it is.
        """
        ahead_s = [
            peer.since_s - peer.hello.now_s
            for peer in self.switchboard.peers.values()
            if peer.facts.reads_everything
        ]
        remedy = "Set it by NTP; releases switch by this clock"
        if ahead_s and min(ahead_s) > CLOCK_TOLERANCE_S:
            sentence = f"This machine's clock is {min(ahead_s) / 60:.0f} minutes ahead of its peers"
            return [Reason("attention", "clock_ahead", sentence, remedy)]
        behind_s = max(behind_s, -max(ahead_s, default=0.0))
        if behind_s > CLOCK_TOLERANCE_S:
            sentence = f"This machine's clock is at least {behind_s / 60:.0f} minutes behind"
            return [Reason("attention", "clock_behind", sentence, remedy)]
        return []

    async def _delivery(self, one: Delivery) -> dict[str, Any]:
        header = one.header
        return {
            "release": header.release.hex(),
            "name": header.name,
            "generation": header.generation,
            "state": one.state.value,
            "prefetch_s": header.prefetch_s,
            "start_s": header.start_s,
            "end_s": header.end_s,
            "activated_s": one.activated_s,
            "reason": one.reason,
            "scripts": [self._delivery_script(entry) for entry in one.entries],
        }

    def _delivery_script(self, entry: Entry) -> dict[str, Any]:
        now = trio.current_time()
        progress = self.fetcher.progress.get(entry.manifest) or FetchProgress(entry.manifest)
        about = self.library.about(entry.manifest)
        size_bytes = about.size_bytes if about is not None else progress.size_bytes
        state, held_bytes = progress.state.value, progress.held_bytes
        if self.library.holds(entry.manifest):
            damaged = self.library.damage.of(entry.manifest) is not None
            state, held_bytes = "damaged" if damaged else "held", size_bytes or 0
        elif progress.state is FetchState.HELD:
            state = FetchState.WAITING.value
        return {
            "kind": entry.kind,
            "script": about.name if about is not None else progress.name,
            "version": about.version if about is not None else None,
            "manifest": entry.manifest.hex(),
            "state": state,
            "size_bytes": size_bytes,
            "held_bytes": held_bytes,
            "rate_bytes_per_s": progress.rate_bytes_per_s(now=now),
            "remaining_s": progress.remaining_s(now=now),
            "reason": progress.reason,
        }
