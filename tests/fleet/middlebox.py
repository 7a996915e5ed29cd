"""A box on the way that lets TLS through and nothing else, as some firewalls do.

It passes whole connections on to `target` and closes those whose first byte begins no TLS record.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Final, Self

TLS_HANDSHAKE: Final = 22
READ_BYTES: Final = 256 * 1024
ENOUGH: Final = 64


class Middlebox:
    """Listens at `address` (`host:port`) while the block runs."""

    def __init__(self, address: str) -> None:
        self.target = ""
        self.turned_away = 0
        """Connections that began otherwise."""
        host, _, port = address.rpartition(":")
        self._listener = socket.create_server((host, int(port)), backlog=ENOUGH)
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    def _start(self, work: object, *arguments: object) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with self._lock:
                    self._sockets.append(connection)
                self._start(self._judge, connection)

    def _judge(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            first = connection.recv(1, socket.MSG_PEEK)
            if not first or first[0] != TLS_HANDSHAKE:
                self.turned_away += 1
                connection.shutdown(socket.SHUT_RDWR)
                return
            host, _, port = self.target.rpartition(":")
            onward = socket.create_connection((host, int(port)))
            with self._lock:
                self._sockets.append(onward)
            self._start(_pass_on, onward, connection)
            _pass_on(connection, onward)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(READ_BYTES):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
