"""Keeps a connection to every wanted address, and never gives up.

Each address has a task. What fails is tried again after a wait that doubles to a limit, less a
random part so that a fleet does not come back all at once. When the node behind an address is
connected by another way, the task waits until that ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random, SystemRandom
from typing import Literal

import trio

from archid.addresses import Address
from archid.errors import ArchidError
from archid.log import get_logger
from archid.net.dial_errors import why_unreachable
from archid.net.errors import AlreadyConnected, ConnectedToSelf, PeerLost, PeerRefused
from archid.net.settings import DialerSettings
from archid.net.switchboard import Switchboard
from protocol.messages import ErrorCode

_log = get_logger(__name__)

DialState = Literal["connecting", "proving", "admitted", "waiting"]


@dataclass(frozen=True)
class Dialled:
    """What became of one address, for ``status``."""

    address: Address
    state: DialState
    since_s: float
    reason: str | None = None
    """Why the last attempt failed."""


class Dialer:
    """Dials what `want` says, while `run` runs."""

    def __init__(
        self,
        switchboard: Switchboard,
        settings: DialerSettings,
        *,
        random: Random | None = None,
        now: Callable[[], float] = time.time,
        on_failed: Callable[[Address, ErrorCode | None], None] = lambda _address, _code: None,
    ) -> None:
        """`on_failed` is told of every attempt that came to nothing, with what the peer said."""
        self._switchboard = switchboard
        self._settings = settings
        self._random = random or SystemRandom()
        self._now = now
        self._on_failed = on_failed
        self._wanted: dict[Address, trio.CancelScope] = {}
        self._states: dict[Address, Dialled] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def dialled(self) -> tuple[Dialled, ...]:
        """Every wanted address and how it stands."""
        return tuple(self._states[address] for address in sorted(self._states))

    def want(self, addresses: Iterable[Address]) -> None:
        """Dial these from now on; connections to addresses no longer wanted are ended."""
        wanted = set(addresses)
        for address in self._wanted.keys() - wanted:
            self._wanted.pop(address).cancel()
            self._states.pop(address, None)
        for address in sorted(wanted - self._wanted.keys()):
            self._wanted[address] = trio.CancelScope()
            self._note(address, "waiting", None)
            if self._nursery is not None:
                self._nursery.start_soon(self._keep, address, self._wanted[address])

    async def run(self) -> None:
        """Dial until cancelled; connections then say goodbye."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for address, scope in self._wanted.items():
                    nursery.start_soon(self._keep, address, scope)
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def _keep(self, address: Address, scope: trio.CancelScope) -> None:
        settings = self._settings
        wait_s = settings.first_wait_s
        told = ""
        with scope:
            while True:
                admitted_at: float | None = None

                def on_proven() -> None:
                    nonlocal admitted_at
                    admitted_at = trio.current_time()
                    self._note(address, "admitted", None)

                reason = "the connection ended"
                code: ErrorCode | None = None
                try:
                    await self._dial(address, on_proven)
                except AlreadyConnected as error:
                    self._note(address, "admitted", "connected by another way")
                    met_at = trio.current_time()
                    await self._switchboard.wait_until_gone(error.node)
                    if trio.current_time() - met_at >= settings.first_wait_s:
                        wait_s = settings.first_wait_s
                except ConnectedToSelf as error:
                    reason, wait_s = str(error), settings.longest_wait_s
                except (ArchidError, OSError) as error:
                    reason = str(error)
                    code = error.reason if isinstance(error, PeerRefused | PeerLost) else None
                self._note(address, "waiting", reason)
                if admitted_at is not None:
                    lasted_s = trio.current_time() - admitted_at
                    # A connection that is cut again at once must not be hammered either.
                    if lasted_s >= settings.first_wait_s:
                        wait_s = settings.first_wait_s
                    told = ""
                elif reason != told:
                    # Said once, not at every attempt: an address may be away for weeks.
                    _log.info("dial_failed", address=str(address), reason=reason)
                    told = reason
                if admitted_at is None or code is ErrorCode.BUSY:
                    self._on_failed(address, code)
                await trio.sleep(wait_s * self._random.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, settings.longest_wait_s)

    async def _dial(self, address: Address, on_proven: Callable[[], None]) -> None:
        self._note(address, "connecting", self._states[address].reason)
        with trio.move_on_after(self._settings.connect_timeout_s) as scope:
            try:
                tcp = await trio.open_tcp_stream(address.host, address.port)
            except OSError as error:
                raise OSError(why_unreachable(error, address)) from error
        if scope.cancelled_caught:
            raise OSError(
                f"{address} did not answer within {self._settings.connect_timeout_s:g} seconds: the"
                " machine is off, or a firewall in between drops what is sent to it"
            )
        self._note(address, "proving", None)
        await self._switchboard.dialled(tcp, on_proven)

    def _note(self, address: Address, state: DialState, reason: str | None) -> None:
        if address in self._wanted:
            self._states[address] = Dialled(address, state, self._now(), reason)
