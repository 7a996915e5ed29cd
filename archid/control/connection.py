"""One client of the control socket: its requests one after another, and what may go wrong.

A reader task takes messages from the socket for as long as the client is there; a request runs
beside it, so that a client that goes away cancels its request at once. A handler talks to its
client through an `Exchange` only. Who is admitted at all is `archid.control.server`'s business.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import trio

from archid.control import wire
from archid.control.credentials import Caller, refusal
from archid.control.method import Method
from archid.control.schema import METHODS
from archid.control.validation import Invalid, check
from archid.errors import ArchidError, Unavailable, UsageError
from archid.log import get_logger

MESSAGE_TIMEOUT_S: Final = 10.0
IDLE_TIMEOUT_S: Final = 60.0
INPUT_TIMEOUT_S: Final = 600.0
SEND_TIMEOUT_S: Final = 30.0
LAST_WORDS_S: Final = 2.0
QUEUED_INPUTS: Final = 2

log = get_logger(__name__)


@dataclass(frozen=True)
class Input:
    """Something more that the client sent to its running request; the handler closes these."""

    body: dict[str, Any]
    descriptors: tuple[int, ...]


class Exchange:
    """What a handler has of its client: events to it, further input from it."""

    def __init__(self, connection: Connection, request: Any) -> None:
        self._connection = connection
        self.request = request
        self.give, self._take = trio.open_memory_channel[wire.Message](QUEUED_INPUTS)

    async def event(self, event: dict[str, Any]) -> None:
        """Tell the client something before the result; waits while it does not read."""
        await self._connection.send({"id": self.request, "event": event})

    async def receive(self) -> Input:
        """The next input; the caller then owns, and closes, its descriptors.

        Raises Unavailable if the client is there but sends nothing for ten minutes.
        """
        with trio.move_on_after(INPUT_TIMEOUT_S):
            message = await self._take.receive()
            return Input(message.body["input"], message.take_descriptors())
        raise Unavailable("The client sent nothing for ten minutes, so the request was given up")

    def close(self) -> None:
        """Close what came and was never received."""
        self.give.close()
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                self._take.receive_nowait().close()
        self._take.close()


Handler = Callable[[Caller, dict[str, Any], Exchange], Awaitable[dict[str, Any]]]


class Connection:
    """Serves one connected client until it leaves, is idle for long or breaks the format."""

    def __init__(
        self,
        connected: trio.socket.SocketType,
        caller: Caller,
        handlers: Mapping[str, Handler],
        *,
        role: str,
        admin_group: str,
    ) -> None:
        self._socket = connected
        self._caller = caller
        self._handlers = handlers
        self._role = role
        self._admin_group = admin_group
        self._reader = wire.MessageReader()
        self._sending = trio.Lock()
        self._scope = trio.CancelScope()
        self._exchange: Exchange | None = None
        self._last_request: Any = None

    async def turn_away(self, error: ArchidError) -> None:
        """Tell the client why it is not served."""
        with trio.move_on_after(LAST_WORDS_S):
            await self.send({"id": None, "error": error.to_json()})

    async def serve(self) -> None:
        """Run until the client is gone; raises only what cancels everything."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    try:
                        while (message := await self._next_message()) is not None:
                            await self._take(message, nursery)
                    except wire.WireError as error:
                        log.info(
                            "control_client_malformed",
                            user=self._caller.user_name,
                            reason=str(error),
                        )
                        await self.turn_away(_malformed(error))
                    self._scope.cancel()
        finally:
            self._reader.close()

    async def send(self, body: dict[str, Any]) -> None:
        """Send one message whole. A client that does not take it is given up, and its request."""
        data = wire.encode_message(body, max_bytes=wire.MAX_ANSWER_BYTES)
        async with self._sending:
            left = memoryview(data)
            can_follow = False
            try:
                with trio.move_on_after(SEND_TIMEOUT_S), contextlib.suppress(OSError):
                    while left:
                        left = left[await self._socket.send(left) :]
                can_follow = not left
            except trio.Cancelled:
                can_follow = len(left) == len(data)
                raise
            finally:
                if not can_follow:  # half a message, or nobody there
                    self._scope.cancel()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _next_message(self) -> wire.Message | None:
        """The next whole message, or None when the client is gone or long idle."""
        while True:
            with trio.move_on_after(IDLE_TIMEOUT_S):
                message, at_end = await self._receive_part()
                break
            if self._exchange is None:
                return None
        with trio.move_on_after(MESSAGE_TIMEOUT_S):
            while message is None and not at_end:
                message, at_end = await self._receive_part()
            return message
        raise wire.WireError(f"the message did not arrive within {MESSAGE_TIMEOUT_S:.0f} seconds")

    async def _receive_part(self) -> tuple[wire.Message | None, bool]:
        """What one read yields: perhaps a message, and whether the stream ended."""
        try:
            data, ancillary, flags, _ = await self._socket.recvmsg(
                self._reader.wanted_bytes, wire.ANCILLARY_BYTES, wire.RECEIVE_FLAGS
            )
        except ConnectionError:
            return None, True
        descriptors = wire.received_descriptors(ancillary, flags)
        if not data:
            wire.close_descriptors(descriptors)
            return None, True
        return self._reader.receive(data, descriptors), False

    async def _take(self, message: wire.Message, nursery: trio.Nursery) -> None:
        """Start a request or hand input to the one that runs."""
        body = message.body
        try:
            if "input" in body:
                await self._take_input(message)
                return
            if not isinstance(body.get("method"), str):
                raise wire.WireError("the message has neither a method nor an input")
            if message.descriptors:
                raise wire.WireError("descriptors came with a request that takes none")
            if self._exchange is not None:
                raise wire.WireError("a request came while another one was running")
        except BaseException:
            message.close()
            raise
        request = body.get("id")
        if not isinstance(request, int | str) or isinstance(request, bool):
            raise wire.WireError("the request has no id")
        self._exchange = Exchange(self, request)
        nursery.start_soon(self._run, body, self._exchange)

    async def _take_input(self, message: wire.Message) -> None:
        request = message.body.get("id")
        if not isinstance(message.body["input"], dict):
            raise wire.WireError("the input is not an object")
        exchange = self._exchange
        if exchange is None and request is not None and request == self._last_request:
            message.close()  # it was on its way when the request ended
            return
        if exchange is None or request != exchange.request:
            raise wire.WireError("input came for a request that does not run")
        try:
            await exchange.give.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            message.close()

    async def _run(self, body: dict[str, Any], exchange: Exchange) -> None:
        """One request, from its check to its answer."""
        method = METHODS.get(body["method"])
        started = time.monotonic()
        try:
            answer, outcome = await self._answer(method, body, exchange)
        finally:
            exchange.close()
            self._exchange = None
            self._last_request = exchange.request
        if method is not None and (method.changes or outcome != "ok"):
            log.info(
                "control_request",
                method=method.name,
                user=self._caller.user_name,
                outcome=outcome,
                duration_s=round(time.monotonic() - started, 3),
            )
        answer = {"id": exchange.request, **answer}
        if method is not None and method.changes:
            # What was changed may be the daemon's own life: the answer goes out all the same.
            with trio.move_on_after(LAST_WORDS_S, shield=True):
                await self.send(answer)
        else:
            await self.send(answer)

    async def _answer(
        self, method: Method | None, body: dict[str, Any], exchange: Exchange
    ) -> tuple[dict[str, Any], str]:
        try:
            result = await self._result(method, body, exchange)
            wire.encode_message({"result": result}, max_bytes=wire.MAX_ANSWER_BYTES - 1024)
        except Exception as error:
            known = _named(error)
            if known is not None:
                return {"error": known.to_json()}, known.code
            log.error("control_handler_failed", method=body["method"], exc_info=error)
            return {"error": _internal(body["method"]).to_json()}, "internal"
        except BaseExceptionGroup as group:
            # The client is gone and the handler was cancelled; what failed on the way out, in a
            # thread that was told to stop, is nobody's answer and must not end the daemon.
            failed, cancelled = group.split(Exception)
            if cancelled is None:
                raise AssertionError("a group of exceptions only is an Exception") from group
            if failed is not None and _named(failed) is None:
                log.error("control_handler_failed", method=body["method"], exc_info=failed)
            raise cancelled from None
        return {"result": result}, "ok"

    async def _result(
        self, method: Method | None, body: dict[str, Any], exchange: Exchange
    ) -> dict[str, Any]:
        if method is None:
            raise UsageError(
                f"This daemon does not know the request {body['method'][:80]!r}",
                remedy="The command and the daemon may be of different versions: compare"
                " archid --version with archid status",
                code="unknown_method",
            )
        params = body.get("params", {})
        try:
            check(params, method.params)
        except Invalid as error:
            raise UsageError(
                f"The request {method.name} is wrong: {error}", code="invalid_params"
            ) from error
        handler = self._handlers.get(method.name)
        if handler is None:
            raise method.of_another_role(self._role)
        if method.changes and not self._caller.may_change:
            # Group look-ups may ask a directory server on the network.
            raise await trio.to_thread.run_sync(
                lambda: refusal(self._caller, admin_group=self._admin_group)
            )
        result = await handler(self._caller, params, exchange)
        try:
            check(result, method.result)
        except Invalid as error:
            log.error("control_answer_off_schema", method=method.name, reason=str(error))
        return result


def _named(error: BaseException) -> ArchidError | None:
    """The error that a person should read, out of the groups that nurseries wrap around it."""
    if isinstance(error, ArchidError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_named, error.exceptions)), None)
    return None


def _malformed(error: wire.WireError) -> ArchidError:
    return UsageError(
        f"The connection was closed because {error}",
        remedy="Use the archid command of this daemon's version",
        code="malformed_request",
    )


def _internal(method: str) -> ArchidError:
    return ArchidError(
        f"The daemon hit an unexpected error while it answered {method}",
        remedy="Its log has the details under control_handler_failed",
    )
