"""What a node says of itself to the fleet, taken from its status.

Figures that move all the time are rounded, since every difference is signed and sent.
"""

from __future__ import annotations

from typing import Final

from archid import __version__
from archid.control.node_status import NodeStatus
from archid.sync.deliveries import Delivery, DeliveryState
from archid.sync.states import Account
from protocol.limits import (
    MAX_ADDRESSES,
    MAX_ERROR_TEXT_BYTES,
    MAX_STATE_HOLDINGS,
    MAX_STATE_REASONS,
    MAX_STATE_RELEASES,
)
from protocol.messages import printable
from protocol.state import WHOLE, Holding, ReleaseStanding

FREE_STEP_BYTES: Final = 1_000_000_000
HELD_STEP: Final = 10
"""Thousandths of a version: a transfer is told in hundredths."""


async def account_of(status: NodeStatus) -> Account:
    """The account of a node as it is now."""
    level, reasons, deliveries = status.health()
    free, _, _ = status.space()
    return Account(
        software=__version__,
        addresses=tuple(str(address) for address in status.advertise)[:MAX_ADDRESSES],
        health=level,
        reasons=tuple(
            printable(reason.sentence, MAX_ERROR_TEXT_BYTES)
            for reason in reasons
            if reason.level != "ok"
        )[:MAX_STATE_REASONS],
        free_bytes=free // FREE_STEP_BYTES * FREE_STEP_BYTES,
        releases=tuple(_standing(one) for one in deliveries[:MAX_STATE_RELEASES]),
        holdings=_holdings(status, deliveries),
    )


def _standing(one: Delivery) -> ReleaseStanding:
    reason = printable(one.reason or "", MAX_ERROR_TEXT_BYTES)
    return ReleaseStanding(one.header.release, one.header.generation, one.state.value, reason)


def _holdings(status: NodeStatus, deliveries: list[Delivery]) -> tuple[Holding, ...]:
    """How much is here of what the present releases have; REPOs are asked what they hold."""
    found: dict[bytes, Holding] = {}
    for one in deliveries:
        if one.state in (DeliveryState.WITHDRAWN, DeliveryState.ENDED):
            continue
        for entry in one.entries:
            held = WHOLE
            if not status.library.holds(entry.manifest):
                progress = status.fetcher.progress.get(entry.manifest)
                size_bytes = progress.size_bytes if progress is not None else None
                part = progress.held_bytes / size_bytes if progress and size_bytes else 0.0
                held = min(int(part * WHOLE) // HELD_STEP * HELD_STEP, WHOLE - HELD_STEP)
            found[entry.manifest] = Holding(entry.manifest, held)
    return tuple(found.values())[:MAX_STATE_HOLDINGS]
