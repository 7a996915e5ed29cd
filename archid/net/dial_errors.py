"""Why an address could not be reached, in words for whoever has to look into it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Final

from archid.addresses import Address

_NO_WAY: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})


def why_unreachable(error: OSError, address: Address) -> str:
    """One sentence without a full stop, from what the system said."""
    if isinstance(error, socket.gaierror):
        return f"the name {address.host} is not known here: check it and this machine's DNS"
    causes = list(_causes(error))
    if any(isinstance(one, ConnectionRefusedError) for one in causes):
        return f"nothing listens on {address}: archid is not running there, or a firewall refuses"
    if any(one.errno in _NO_WAY for one in causes):
        return f"there is no way from here to {address.host}: check the network and its routes"
    if any(isinstance(one, TimeoutError) for one in causes):
        return f"{address} does not answer: the machine is off, or a firewall drops what is sent"
    said = next((one.strerror for one in causes if one.strerror), str(error))
    return f"{address} cannot be reached ({said})"


def _causes(error: BaseException) -> Iterator[OSError]:
    """The system's own errors: several addresses of one name are tried side by side."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    elif isinstance(error, OSError) and error.errno is not None:
        yield error
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)
