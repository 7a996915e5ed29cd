"""Answers ``GET /metrics`` on a local address, and nothing else.

One request a connection, then it is closed; heads are small and must arrive at once; few clients
are served at a time. That is all that a scrape needs, and little enough to be read in one go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from archid.addresses import Address
from archid.control.metrics import CONTENT_TYPE
from archid.log import SparingLog, get_logger

MAX_HEAD_BYTES: Final = 8 * 1024
MAX_CLIENTS: Final = 8
REQUEST_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 30.0

log = get_logger(__name__)
_sparing = SparingLog(log)

Render = Callable[[], Awaitable[bytes]]
REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class MetricsServer:
    """Serves what `render` makes, for as long as `serve` runs."""

    def __init__(self, address: Address, render: Render) -> None:
        self._address = address
        self._render = render
        self._clients = 0

    async def serve(
        self, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled; `started` with the address. Raises OSError if it cannot."""
        listeners = await trio.open_tcp_listeners(self._address.port, host=self._address.host)
        name = listeners[0].socket.getsockname()
        address = Address(name[0], name[1])
        log.info("metrics_served", address=str(address))
        task_status.started(address)
        await trio.serve_listeners(self._attend, listeners)

    async def _attend(self, stream: trio.SocketStream) -> None:
        self._clients += 1
        try:
            with trio.move_on_after(REQUEST_TIMEOUT_S + ANSWER_TIMEOUT_S):
                await self._answer(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # it went away, which is its own affair
        finally:
            self._clients -= 1
            await trio.aclose_forcefully(stream)

    async def _answer(self, stream: trio.SocketStream) -> None:
        head: bytes | None = None
        if self._clients <= MAX_CLIENTS:
            with trio.move_on_after(REQUEST_TIMEOUT_S):
                head = await _read_head(stream)
            if head is None:
                return  # too slow to be told
            status, body = await self._judge(head)
        else:
            status, body = 503, b""
        headers = [
            f"HTTP/1.1 {status} {REASONS[status]}",
            f"Content-Type: {CONTENT_TYPE if status == 200 else 'text/plain; charset=utf-8'}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            "Cache-Control: no-store",
            *(["Allow: GET, HEAD"] if status == 405 else []),
        ]
        told = "\r\n".join(headers).encode() + b"\r\n\r\n"
        only_head = head is not None and head.startswith(b"HEAD ")
        await stream.send_all(told if only_head else told + body)
        with trio.move_on_after(1):
            # Closed with something unread, the system would throw our answer away.
            await stream.send_eof()
            while await stream.receive_some(MAX_HEAD_BYTES):
                pass

    async def _judge(self, head: bytes) -> tuple[int, bytes]:
        if b"\r\n\r\n" not in head:
            return (431 if len(head) >= MAX_HEAD_BYTES else 400), b"This is no HTTP request.\n"
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
            return 400, b"This is no HTTP request.\n"
        if words[0] not in (b"GET", b"HEAD"):
            return 405, b"Only GET and HEAD are answered here.\n"
        if words[1].split(b"?", 1)[0] != b"/metrics":
            return 404, b"There is only /metrics here.\n"
        try:
            return 200, await self._render()
        except Exception:  # noqa: BLE001 - a scrape must not end the daemon
            _sparing.error("metrics_failed", exc_info=True)
            return 500, b"The figures could not be read; see the log.\n"


async def _read_head(stream: trio.SocketStream) -> bytes:
    """The bytes up to the empty line; fewer when the client ends, or too many, without it."""
    head = bytearray()
    while b"\r\n\r\n" not in head and len(head) < MAX_HEAD_BYTES:
        data = await stream.receive_some(MAX_HEAD_BYTES - len(head))
        if not data:
            break
        head += data
    return bytes(head)
