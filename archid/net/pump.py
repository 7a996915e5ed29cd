"""Pumps bytes between a TLS stream and a `protocol.connection.Connection`, and ends both well.

Three tasks, owned by `pumping`: one reads, one writes, one watches that the other end is alive.
What the events mean is for subclasses: `archid.net.peer` for members of the fleet,
`archid.net.joining` for newcomers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

import trio

from archid.errors import ArchidError
from archid.net.errors import PeerLost, PeerRefused, TlsRefused
from archid.net.outbox import Outbox
from archid.net.pacing import Pacer
from archid.net.settings import PeerSettings
from archid.net.tls import TLSStream
from protocol.connection import Connection
from protocol.connection_events import ConnectionEnded, Event
from protocol.connection_states import State
from protocol.messages import ErrorCode, Goodbye, Message, Ping

_PAUSE_READING_AT: Final = 8
"""Times the outbox: more than requests can fill, so it stops who pings and never reads."""


class Pump:
    """One connection and its tasks. Subclasses take what comes in by overriding `handle`."""

    def __init__(self, stream: TLSStream, connection: Connection, settings: PeerSettings) -> None:
        self.closed = trio.Event()
        """Set when the connection has ended; `error` says why."""
        self.error: ArchidError | None = None
        self.stream = stream
        self.connection = connection
        self.settings = settings
        self.outbox = Outbox(stream, settings.outbox_bytes)
        self.pacer_out, self.pacer_in = stream.pacer_out, stream.pacer_in
        self._taken_in_bytes = 0
        self._reader_done = trio.Event()
        self._waits_since: float | None = None
        self._trusted = False
        self._pings = 0

    @property
    def remote(self) -> str:
        """Address and port of the other end."""
        return self.stream.remote

    async def handle(self, event: Event) -> None:
        """Take an event other than the end; waiting here stops the reading."""
        raise NotImplementedError

    def on_end(self) -> None:
        """The connection has ended: wake everybody who waits for something from it."""

    def pace(self, out: Pacer, into: Pacer) -> None:
        """Keep to these limits from now on."""
        self.pacer_out = self.stream.pacer_out = out
        self.pacer_in = self.stream.pacer_in = into
        self._taken_in_bytes = self.stream.wire_bytes_received

    # Sending

    def push(self, message: Message) -> None:
        """Queue a message at once. Raises PeerLost when the connection has ended."""
        # A connection that broke has ended, though its machine was never told goodbye.
        if self.connection.state is State.CLOSED or self.closed.is_set():
            raise self.gone()
        try:
            self.connection.send(message)
        finally:
            self.flush()

    def flush(self) -> None:
        """Queue what the machine wants to send."""
        self.outbox.put(self.connection.bytes_to_send())

    def disconnect(self, code: ErrorCode, text: str) -> None:
        """Say goodbye and end the connection: a denial arrived, or a better one stands.

        Returns at once; whoever waits for something from the other end gets PeerLost.
        """
        if self.connection.state is not State.CLOSED and not self.closed.is_set():
            self.push(Goodbye(code, text))
        self.end(PeerLost(f"The connection to {self.remote} was ended here: {text}", code))

    def gone(self) -> PeerLost:
        """A new error that says why the connection is no more."""
        if isinstance(self.error, PeerLost):
            return PeerLost(self.error.message, self.error.reason)
        return PeerLost(str(self.error or f"The connection to {self.remote} has ended"))

    def end(self, error: ArchidError) -> None:
        """Nothing will come any more; the first reason counts. What is queued still goes out."""
        if self.error is None:
            self.error = error
            self.outbox.finish()
            self.closed.set()
            self.on_end()

    # The tasks

    async def read(self) -> None:
        """Read until the connection has ended."""
        try:
            while self.connection.state is not State.CLOSED:
                await self.outbox.wait_until_below(self._pause_bytes)
                await self._wait_for_turn()
                self._waits_since = trio.current_time()
                data = await self.stream.receive()
                self._waits_since = None
                await self._take(
                    self.connection.receive_bytes(data) if data else self.connection.receive_eof()
                )
            if not self.stream.ended:
                # Read on and throw away: closed now, our Goodbye could be lost on its way.
                with trio.move_on_after(self.settings.goodbye_timeout_s):
                    while await self.stream.receive_some():
                        pass
        except (PeerLost, TlsRefused) as error:
            self.end(error)
        finally:
            self._reader_done.set()
            self.outbox.drop()
            self.stream.close()

    async def _wait_for_turn(self) -> None:
        """What was read counts now; TCP slows the other end down meanwhile."""
        received = self.stream.wire_bytes_received
        size_bytes, self._taken_in_bytes = received - self._taken_in_bytes, received
        if not self.pacer_in.unlimited:
            await self.pacer_in.take(size_bytes)

    @property
    def _pause_bytes(self) -> int:
        if self._trusted:
            return _PAUSE_READING_AT * self.settings.outbox_bytes
        return self.settings.unproven_outbox_bytes

    async def _take(self, events: Iterable[Event]) -> None:
        self.flush()
        for event in events:
            if isinstance(event, ConnectionEnded):
                self.end(self._why(event))
                if event.by_peer:
                    self.outbox.drop()
                    self.stream.close()
            else:
                await self.handle(event)

    def _why(self, event: ConnectionEnded) -> ArchidError:
        if event.code is ErrorCode.CONNECTION_LOST:
            return PeerLost(f"{self.remote} was lost: {event.text}")
        if not event.by_peer:
            return PeerLost(f"{self.remote} broke the protocol: {event.text}", event.code)
        if self._trusted or event.code is ErrorCode.CLOSING:
            return PeerLost(f"{self.remote} ended the connection: {event.text}", event.code)
        return PeerRefused(self.remote, event.code, event.text)

    async def write(self) -> None:
        """Send what is queued until the connection has ended."""
        self.flush()
        try:
            await self.outbox.run()
        except (PeerLost, TlsRefused) as error:
            self.outbox.drop()
            # An alert or a Goodbye that came before the end may still tell why.
            with trio.move_on_after(self.settings.goodbye_timeout_s):
                await self._reader_done.wait()
            self.end(error)
            self.stream.close()

    async def watch(self) -> None:
        """Ask for a sign of life when there is none, and give up when none comes."""
        settings = self.settings
        alive_at = moved_at = trio.current_time()
        sent_bytes = self.stream.wire_bytes_sent
        asked = False
        while not self.closed.is_set():
            now = trio.current_time()
            heard_at = now if self._waits_since is None else self._waits_since
            # Who waits for its turn under a limit of this node is not stuck.
            moved = self.stream.wire_bytes_sent > sent_bytes or bool(self.pacer_out.waiting)
            sent_bytes = self.stream.wire_bytes_sent
            if moved or not self.outbox.queued_bytes:
                moved_at = now
            # On a slow line the answer to a Ping queues behind what is being sent either way.
            if moved and self.outbox.queued_bytes:
                heard_at = now
            if heard_at > alive_at:
                alive_at, asked = heard_at, False
            silent_s = max(now - alive_at, now - moved_at)
            if silent_s >= settings.dead_after_s:
                self.end(PeerLost(f"{self.remote} did not answer for {silent_s:.0f} seconds"))
                self.stream.close()
                return
            if now - alive_at >= settings.keepalive_s and not asked:
                asked = True
                if self.connection.state not in (State.HELLO, State.CLOSED):
                    self._pings += 1
                    self.push(Ping(self._pings))
            look_at = (now if asked else alive_at) + settings.keepalive_s
            give_up_at = min(alive_at, moved_at) + settings.dead_after_s
            with trio.move_on_at(min(look_at, give_up_at)):
                await self.closed.wait()

    async def finish(self) -> None:
        """Say goodbye if nobody has, and wait a little until the other end has taken it."""
        with trio.move_on_after(self.settings.goodbye_timeout_s, shield=True):
            self.disconnect(ErrorCode.CLOSING, "it is no longer needed")
            await self._reader_done.wait()
        self.stream.close()


@asynccontextmanager
async def pumping(pump: Pump) -> AsyncIterator[trio.Nursery]:
    """Run the pump's tasks during the body, whose own error comes out as it is, in no group."""
    # Shielded, so that a cancelled body can still say goodbye; `finish` is bounded in time.
    scopes = [trio.CancelScope(shield=True) for _ in range(3)]

    async def run(task: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        with scope:
            await task()

    try:
        async with trio.open_nursery() as nursery:
            for task, scope in zip((pump.read, pump.write, pump.watch), scopes, strict=True):
                nursery.start_soon(run, task, scope)
            try:
                yield nursery
            finally:
                await pump.finish()
                for scope in scopes:
                    scope.cancel()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        only = _only_error(group)
        if only is None:
            raise
        raise only from only.__cause__


def _only_error(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The one error in the group besides cancellations, None if there are none or several."""
    found: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        error = todo.pop()
        if isinstance(error, BaseExceptionGroup):
            todo.extend(error.exceptions)
        elif not isinstance(error, trio.Cancelled):
            found.append(error)
    return found[0] if len(found) == 1 else None
