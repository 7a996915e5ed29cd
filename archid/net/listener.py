"""Accepts connections on the configured addresses, and bounds those that have proven nothing.

Who connects and proves nothing costs a place for as long as the admission time-out; places are
counted over all and for each remote host. ``[::]`` takes IPv4 too, unless an IPv4 address with
the same port is configured beside it.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from typing import Final, TypeAlias

import trio

from archid.addresses import Address
from archid.errors import ArchidError, Conflict
from archid.log import SparingLog, get_logger
from archid.net.settings import ListenerSettings
from archid.net.switchboard import Switchboard

_log = get_logger(__name__)
_strangers = SparingLog(_log)

_OUT_OF_RESOURCES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_RETRY_ACCEPT_S: Final = 0.1
_Place: TypeAlias = "tuple[str | int | bytes, ...]"
_EVERY_IPV4: Final = "0.0.0.0"  # noqa: S104 - only where every address was configured
_REMEDIES: Final = {
    errno.EADDRINUSE: "stop the program that listens there ('ss -ltnp' names it), or set another"
    " port under [network] listen",
    errno.EACCES: "choose a port from 1024 up under [network] listen",
    errno.EADDRNOTAVAIL: "set an address of this machine, or '[::]' for all of them, under"
    " [network] listen",
}


class CannotListen(Conflict):
    """An address cannot be listened on."""

    code = "cannot_listen"


class Listener:
    """Sockets that are bound; `run` serves them. Made by `open_listener`."""

    def __init__(self, listeners: Sequence[trio.SocketListener]) -> None:
        self._listeners = tuple(listeners)
        names = [listener.socket.getsockname() for listener in self._listeners]
        self.addresses = tuple(Address(name[0], name[1]) for name in names)
        """Where this node listens, with the real port where 0 was configured. Read here once: a
        status that is asked for while the node stops comes after its sockets have closed."""
        self.unproven: Counter[str] = Counter()
        """How many connections of each remote host have not proven who they are."""
        self.turned_away = 0

    async def run(self, switchboard: Switchboard, settings: ListenerSettings) -> None:
        """Accept and serve until cancelled; then every connection says goodbye."""
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(self._accept, listener, switchboard, settings, nursery)

    def close(self) -> None:
        """Give the addresses back; for when `run` was never called, or is over."""
        for listener in self._listeners:
            listener.socket.close()

    async def _accept(
        self,
        listener: trio.SocketListener,
        switchboard: Switchboard,
        settings: ListenerSettings,
        nursery: trio.Nursery,
    ) -> None:
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in _OUT_OF_RESOURCES:
                        raise
                    _strangers.error("accept_failed", reason=error.strerror)
                    await trio.sleep(_RETRY_ACCEPT_S)
                    continue
                host = _host_of(stream)
                if host is None or not self._has_place(host, settings):
                    self.turned_away += 1
                    stream.socket.close()
                    continue
                self.unproven[host] += 1
                nursery.start_soon(self._serve, stream, host, switchboard)

    def _has_place(self, host: str, settings: ListenerSettings) -> bool:
        return (
            self.unproven.total() < settings.max_unproven
            and self.unproven[host] < settings.max_unproven_per_host
        )

    async def _serve(self, stream: trio.SocketStream, host: str, switchboard: Switchboard) -> None:
        proven = False

        def release() -> None:
            nonlocal proven
            if not proven:
                proven = True
                self.unproven[host] -= 1
                if not self.unproven[host]:
                    del self.unproven[host]

        try:
            await switchboard.accept(stream, release)
        except ArchidError as error:
            if not proven:
                reason = str(error)
                _strangers.info("connection_refused", remote=host, code=error.code, reason=reason)
        finally:
            release()


async def open_listener(
    addresses: Sequence[Address], settings: ListenerSettings | None = None
) -> Listener:
    """Bind every address. Raises CannotListen, which names the address and what to do."""
    backlog = (settings or ListenerSettings()).backlog
    opened: list[trio.SocketListener] = []
    try:
        for address in addresses:
            for family, place in await _places(address):
                both = family == socket.AF_INET6 and _takes_ipv4(address, addresses)
                opened.append(await _bind(address, family, place, backlog, both=both))
    except BaseException:
        Listener(opened).close()
        raise
    return Listener(opened)


async def _places(address: Address) -> list[tuple[int, _Place]]:
    """What the address means: a name may stand for several."""
    try:
        found = await trio.socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise CannotListen(
            f"The address {address} to listen on cannot be resolved: {error.strerror}",
            remedy=_REMEDIES[errno.EADDRNOTAVAIL],
        ) from error
    return [(int(family), place) for family, _, _, _, place in found]


def _takes_ipv4(address: Address, addresses: Sequence[Address]) -> bool:
    """Whether ``[::]`` serves IPv4 as well: not if somebody else wants that port."""
    others = (other for other in addresses if other != address and other.port == address.port)
    return address.host == "::" and not any(":" not in other.host for other in others)


async def _bind(
    address: Address, family: int, place: _Place, backlog: int, *, both: bool
) -> trio.SocketListener:
    try:
        bound = trio.socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT and both:
            _log.warning("no_ipv6", address=str(address), instead=_EVERY_IPV4)
            place = (_EVERY_IPV4, address.port)
            return await _bind(address, socket.AF_INET, place, backlog, both=False)
        raise _cannot_listen(address, error) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        await bound.bind(place)
        bound.listen(backlog)
    except OSError as error:
        bound.close()
        raise _cannot_listen(address, error) from error
    return trio.SocketListener(bound)


def _cannot_listen(address: Address, error: OSError) -> CannotListen:
    return CannotListen(
        f"This node cannot listen on {address}: {error.strerror}",
        remedy=_REMEDIES.get(error.errno or 0, "check [network] listen in the configuration"),
    )


def _host_of(stream: trio.SocketStream) -> str | None:
    """The remote host in one form, None when it is gone already."""
    try:
        text: str = stream.socket.getpeername()[0]
    except OSError:
        return None
    host = ip_address(text.partition("%")[0])
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    return str(mapped or host)
