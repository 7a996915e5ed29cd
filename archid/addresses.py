"""Where a node listens or is reached: host and port, with IPv6 in brackets as in a URL.

Text in, a frozen `Address` out, and back again. Resolving names and opening sockets is left to
`archid.net`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import Final

DEFAULT_PORT: Final = 4777
MAX_HOST_CHARACTERS: Final = 253  # RFC 1035

_HOST_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_LOOKS_LIKE_IPV4: Final = re.compile(r"[0-9.]+")


@dataclass(frozen=True, order=True)
class Address:
    """A host (name, IPv4 or IPv6 without brackets) and a port."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_wildcard(self) -> bool:
        """Whether it means every interface of a machine, so that nobody could dial it."""
        try:
            return ip_address(self.host).is_unspecified
        except ValueError:
            return False

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(text: str, *, any_port: bool = False) -> Address:
    """Read ``host``, ``host:port``, ``[v6]`` or ``[v6]:port``; the port defaults to 4777.

    Port 0, "whichever is free", is allowed with `any_port` only. Raises ValueError with a
    sentence that says what is wrong.
    """
    host, port_text = _split(text)
    if ":" in host:
        host = _checked_ipv6(host, text)
    else:
        _check_name_or_ipv4(host, text)
    if port_text is None:
        return Address(host)
    lowest = 0 if any_port else 1
    if not (port_text.isascii() and port_text.isdigit() and lowest <= int(port_text[:6]) <= 65535):
        raise ValueError(
            f"{text!r} has the port {port_text!r}, which is not a number from {lowest} to 65535"
        )
    return Address(host, int(port_text))


def _split(text: str) -> tuple[str, str | None]:
    """The host without brackets, and the text of the port if there is one."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(
                f"{text!r} is not an address; write IPv6 as '[2001:db8::1]:{DEFAULT_PORT}'"
            )
        if ":" not in host:
            raise ValueError(f"{text!r} has brackets around {host!r}, which is not an IPv6 address")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:
        raise ValueError(
            f"{text!r} is not an address; IPv6 needs brackets, as in '[2001:db8::1]:{DEFAULT_PORT}'"
        )
    host, colon, port_text = text.partition(":")
    return host, port_text if colon else None


def _checked_ipv6(host: str, text: str) -> str:
    try:
        return str(IPv6Address(host))
    except AddressValueError as error:
        raise ValueError(f"{text!r} does not hold a valid IPv6 address") from error


def _check_name_or_ipv4(host: str, text: str) -> None:
    if not host:
        raise ValueError(
            f"{text!r} names no host; write 'host:{DEFAULT_PORT}', or '[::]' to mean every"
            " interface when listening"
        )
    if _LOOKS_LIKE_IPV4.fullmatch(host):
        try:
            IPv4Address(host)
        except AddressValueError as error:
            raise ValueError(f"{text!r} does not hold a valid IPv4 address") from error
        return
    labels = host.removesuffix(".").split(".")
    if len(host) > MAX_HOST_CHARACTERS or not all(map(_HOST_LABEL.fullmatch, labels)):
        raise ValueError(f"{text!r} does not hold a valid host name")
