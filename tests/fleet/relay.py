"""A line between two nodes that a test can hold up, count and cut, byte by byte.

A node advertises the relay's address and listens on its own, so whoever dials it goes through
here. Nothing is simulated: the bytes are those of real TLS connections, passed on by threads.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

READ_BYTES = 16 * 1024
WAKE = b"w"


class Relay:
    """Passes connections to `address` on to `target`, while it is open; a context manager.

    `down_bytes` counts what went from the target to those who dialled, since `count_again`. With
    `rate_bytes_per_s` set, that is how fast all of them together get it.
    """

    def __init__(self, address: str, *, is_open: bool = True) -> None:
        self.address = address
        self.target = ""
        self.down_bytes = 0
        self.rate_bytes_per_s: float | None = None
        self._free_at = 0.0
        self._ended = threading.Event()
        self._open = threading.Event()
        if is_open:
            self._open.set()
        self._lock = threading.Lock()
        self._mark: tuple[int, Callable[[], None]] | None = None
        self._sockets: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._listener = socket.create_server(_pair(address))
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._waker.send(WAKE)
        self._ended.set()
        self.open()
        self.cut()
        for thread in self._threads:
            thread.join()
        for each in (self._waker, self._woken, self._listener):
            each.close()
        self._selector.close()

    def open(self) -> None:
        """Let bytes pass."""
        self._open.set()

    def hold(self) -> None:
        """Let none pass, without ending any connection."""
        self._open.clear()

    def cut(self) -> None:
        """End every connection."""
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def count_again(self) -> None:
        with self._lock:
            self.down_bytes = 0

    def at(self, down_bytes: int, action: Callable[[], None]) -> threading.Event:
        """Run `action` once so many bytes went down, in mid-stream; the event says it was done."""
        done = threading.Event()

        def act() -> None:
            try:
                action()
            finally:
                done.set()

        with self._lock:
            self._mark = (down_bytes, act)
        return done

    def _accept(self) -> None:
        while True:
            ready = {key.fileobj for key, _ in self._selector.select()}
            if self._woken in ready:
                return
            dialler, _ = self._listener.accept()
            try:
                target = socket.create_connection(_pair(self.target))
            except OSError:
                dialler.close()
                continue
            with self._lock:
                self._sockets |= {dialler, target}
            ended = threading.Barrier(2, action=lambda d=dialler, t=target: self._end(d, t))  # type: ignore[misc]
            self._start(self._pass, dialler, target, False, ended)
            self._start(self._pass, target, dialler, True, ended)

    def _pass(
        self, source: socket.socket, sink: socket.socket, down: bool, ended: threading.Barrier
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(READ_BYTES):
                self._open.wait()
                if down:
                    self._take_turn(len(data))
                sink.sendall(data)
                if down:
                    self._count(len(data))
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        ended.wait()

    def _take_turn(self, size: int) -> None:
        """Wait until the line has carried what is ahead of this, if it has a rate."""
        if self.rate_bytes_per_s is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self.rate_bytes_per_s
            wait_s = self._free_at - now
        self._ended.wait(wait_s)

    def _end(self, *pair: socket.socket) -> None:
        with self._lock:
            self._sockets.difference_update(pair)
        for each in pair:
            each.close()

    def _count(self, size: int) -> None:
        with self._lock:
            self.down_bytes += size
            mark = self._mark
            if mark is None or self.down_bytes < mark[0]:
                return
            self._mark = None
        mark[1]()

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()


def _pair(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)
