"""The client's side of the control socket, blocking, for the command line.

One `Conversation` is one connection with one request: its events and its result come out, further
input goes in. It imports neither trio nor anything of the daemon, so that a command starts fast.
Errors that the daemon names are raised as what they are; a daemon that is not there, or may not
be spoken to, becomes an error that says what to do about it. Printing is `archid.cli`'s business.
"""

from __future__ import annotations

import grp
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from archid.control import wire
from archid.errors import ArchidError, Denied, Unavailable, UsageError, error_from_json

CONNECT_TIMEOUT_S: Final = 10.0
SILENCE_TIMEOUT_S: Final = 60.0  # a daemon that is alive answers a question long before

Event = dict[str, Any]


class Conversation:
    """One request on a connection of its own; a context manager that hangs up at its end."""

    def __init__(self, socket_path: Path, method: str, params: dict[str, Any]) -> None:
        """Connect and send the request. Raises Unavailable, Denied or UsageError."""
        self._path = socket_path
        self._reader = wire.MessageReader(max_bytes=wire.MAX_ANSWER_BYTES)
        self._socket = _connect(socket_path)
        self._result: dict[str, Any] | None = None
        try:
            self._send({"id": 1, "method": method, "params": params}, ())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def limit_silence(self, seconds: float | None) -> None:
        """Give up (Unavailable) if nothing comes for so long; None waits as long as it takes."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """Hang up; a request that still runs is cancelled by the daemon."""
        self._reader.close()
        self._socket.close()

    def send_input(self, body: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """More for the running request; the descriptors stay the caller's to close.

        If the daemon has ended the request meanwhile, its error is raised and not the broken pipe.
        """
        self._send({"id": 1, "input": body}, descriptors)

    def next_event(self) -> Event | None:
        """The next event, or None when the result has come. Raises the daemon's error."""
        if self._result is not None:
            return None
        body = self._receive()
        if "event" in body:
            event: Event = body["event"]
            return event
        if "error" in body:
            raise error_from_json(body["error"])
        self._result = body["result"]
        return None

    def result(self, on_event: Callable[[Event], None] | None = None) -> dict[str, Any]:
        """Wait for the result, passing on the events before it. Raises the daemon's error."""
        while (event := self.next_event()) is not None:
            if on_event is not None:
                on_event(event)
        if self._result is None:
            raise AssertionError("next_event returned None before there was a result")
        return self._result

    def _send(self, body: dict[str, Any], descriptors: Sequence[int]) -> None:
        try:
            data = wire.encode_message(body)
            ancillary = wire.descriptors_to_send(descriptors)
        except wire.WireError as error:
            raise UsageError(f"The request is too large: {error}") from error
        try:
            sent = self._socket.sendmsg([data], ancillary)
            self._socket.sendall(memoryview(data)[sent:])
        except OSError as error:
            # The daemon says why before it hangs up.
            while self.next_event() is not None:
                pass
            raise self._lost() from error

    def _receive(self) -> dict[str, Any]:
        while True:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    self._reader.wanted_bytes, wire.ANCILLARY_BYTES, wire.RECEIVE_FLAGS
                )
                # The daemon never passes descriptors; what comes all the same is closed.
                wire.close_descriptors(wire.received_descriptors(ancillary, flags))
                if not data:
                    raise self._lost()
                message = self._reader.receive(data)
            except TimeoutError as error:
                raise Unavailable(
                    f"The daemon on {self._path} takes requests but does not answer; it may be"
                    " stuck or very busy",
                    remedy="Look at its log (journalctl -u archid), then try again",
                    code="daemon_silent",
                ) from error
            except (OSError, wire.WireError) as error:
                raise self._lost() from error
            if message is not None:
                return self._understood(message.body)

    def _understood(self, body: dict[str, Any]) -> dict[str, Any]:
        for key in ("event", "error", "result"):
            if isinstance(body.get(key), dict):
                return body
        raise Unavailable(
            f"What answers on {self._path} does not speak archid's protocol",
            remedy="Check which program owns that socket",
        )

    def _lost(self) -> ArchidError:
        return Unavailable(
            f"The daemon on {self._path} went away before it answered",
            remedy="Look at its log (journalctl -u archid) and at archid status, then try again",
            code="daemon_lost",
        )


class ControlClient:
    """Where the daemon is; opens one conversation a request."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    def start(self, method: str, params: dict[str, Any] | None = None) -> Conversation:
        """Begin a request whose events or inputs the caller handles. Raises as Conversation."""
        return Conversation(self.socket_path, method, params or {})

    def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
        silence_s: float | None = SILENCE_TIMEOUT_S,
    ) -> dict[str, Any]:
        """One request and its result. Raises ArchidError: the daemon's, or why it has none."""
        with self.start(method, params) as conversation:
            conversation.limit_silence(silence_s)
            return conversation.result(on_event)

    def stream(self, method: str, params: dict[str, Any] | None = None) -> Iterator[Event]:
        """The events of a request until its result. Raises ArchidError."""
        with self.start(method, params) as conversation:
            while (event := conversation.next_event()) is not None:
                yield event


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(CONNECT_TIMEOUT_S)
        connection.connect(os.fspath(path))
        connection.settimeout(None)
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise _unreachable(path, error) from error
        raise
    return connection


def _unreachable(path: Path, error: OSError) -> ArchidError:
    start = "Start it with archid run (systemctl start archid), or name its socket with --socket"
    if isinstance(error, PermissionError):
        group = ""
        with suppress(OSError, KeyError):
            group = grp.getgrgid(path.stat().st_gid).gr_name
        return Denied(
            f"This user may not talk to the daemon on {path}",
            remedy=f"Run the command as root, or join the group {group!r} and log in again"
            if group
            else "Run the command as root, or join the group of the control socket's folder",
            code="socket_denied",
        )
    if isinstance(error, FileNotFoundError):
        return Unavailable(
            f"No archid runs here: there is no control socket {path}",
            remedy=start,
            code="daemon_absent",
        )
    if isinstance(error, ConnectionRefusedError):
        return Unavailable(
            f"No archid runs here: the one that made the control socket {path} is gone",
            remedy=start,
            code="daemon_absent",
        )
    if isinstance(error, TimeoutError):
        return Unavailable(
            f"The daemon on {path} does not accept connections; it may be stuck",
            remedy="Look at its log (journalctl -u archid)",
        )
    return Unavailable(
        f"The control socket {path} cannot be used ({error.strerror or error})", remedy=start
    )
