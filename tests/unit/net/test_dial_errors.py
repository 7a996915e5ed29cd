"""Why an address cannot be reached, as the real system says it."""

from __future__ import annotations

import errno
import socket

import pytest
import trio

from archid.addresses import Address
from archid.net.dial_errors import why_unreachable


async def test_a_closed_port_is_told_from_a_name_that_nobody_knows() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(OSError, match="failed") as caught:
            await trio.open_tcp_stream("127.0.0.1", port)
    said = why_unreachable(caught.value, Address("127.0.0.1", port))
    assert said.startswith(f"nothing listens on 127.0.0.1:{port}: archid is not running there")
    said = why_unreachable(socket.gaierror(-2, "?"), Address("repo.invalid", 4777))
    assert "the name repo.invalid is not known here" in said


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENETUNREACH, "there is no way from here to far.example"),
        (errno.ETIMEDOUT, "does not answer"),
        (errno.EACCES, "cannot be reached (Permission denied)"),
    ],
)
def test_each_error_has_its_words(number: int, words: str) -> None:
    error = OSError("all attempts failed")
    error.__cause__ = ExceptionGroup("?", [OSError(number, "Permission denied")])
    assert words in why_unreachable(error, Address("far.example", 4777))
