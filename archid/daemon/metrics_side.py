"""The optional service for Prometheus, which is loaded only where the configuration asks for it.

A room must not go dark for want of figures: an address that cannot be listened on is said in the
log and in `archid status`, and tried again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import trio

from archid.addresses import Address
from archid.control.node_status import NodeStatus, Reason
from archid.log import get_logger

log = get_logger(__name__)

RETRY_S: Final = 30.0
Fleet = Callable[[], Awaitable[Mapping[str, Any]]]


class MetricsSide:
    """Serves the figures of one node at `address`, if any; `fleet` is what central adds."""

    def __init__(self, address: Address | None, fleet: Fleet | None) -> None:
        self._address = address
        self._fleet = fleet
        self._problem = ""

    def reasons(self) -> Sequence[Reason]:
        """What of this service needs attention."""
        if not self._problem:
            return ()
        return (
            Reason(
                "attention",
                "metrics_not_served",
                f"Figures for Prometheus are not served at {self._address}: {self._problem}",
                "Stop what listens there, or choose another address under [metrics] listen",
            ),
        )

    async def run(self, status: NodeStatus) -> None:
        """Serve until cancelled."""
        if self._address is None:
            return
        from archid.control.metrics import metrics_text
        from archid.control.metrics_server import MetricsServer

        async def render() -> bytes:
            fleet = None if self._fleet is None else await self._fleet()
            return metrics_text(await status.status(), fleet)

        if not self._address.is_loopback:
            log.warning(
                "metrics_open_to_others",
                address=str(self._address),
                why="whoever reaches this address can read the figures; there is no password",
            )
        server = MetricsServer(self._address, render)
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(server.serve)
                    self._problem = ""
            except* OSError as group:
                self._problem = _first_words(group)
                log.error("metrics_not_served", address=str(self._address), why=self._problem)
            await trio.sleep(RETRY_S)


def _first_words(group: BaseExceptionGroup[OSError]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return getattr(error, "strerror", None) or str(error)
