"""The daemon's side of the control socket: admits clients and runs the handlers it was given.

It knows the format, who may do what and how many may do it at once, and nothing about what a
request means: each method of `archid.control.schema` is a handler that the daemon passes in. A
handler sees only requests whose parameters fit their schema and whose caller is allowed; it is
cancelled the moment its client goes away, so that Ctrl-C at the terminal ends the work as well.

Clients are strangers until proven otherwise: they are counted, a message must arrive whole within
seconds, and whatever breaks the format is told so once and disconnected. The last few places are
kept for those who may change things, so that a pile of readers cannot lock the operator out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Final

import trio

from archid.config import ControlSettings
from archid.control.connection import Connection, Exchange, Handler
from archid.control.credentials import Caller, judge, peer_ids
from archid.control.listening import open_listener
from archid.control.schema import METHODS
from archid.errors import Unavailable
from archid.events import EventHub
from archid.log import get_logger

__all__ = ["Caller", "ControlServer", "Exchange", "Handler"]

MAX_CLIENTS: Final = 64
RESERVED_FOR_ADMINS: Final = 8
ACCEPT_PAUSE_S: Final = 0.5

log = get_logger(__name__)


class ControlServer:
    """Serves one control socket for as long as `serve` runs."""

    def __init__(
        self,
        settings: ControlSettings,
        handlers: Mapping[str, Handler],
        events: EventHub,
        *,
        role: str,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        unknown = handlers.keys() - METHODS.keys()
        if unknown:
            raise ValueError(f"there is no schema for the method {min(unknown)}")
        self._settings = settings
        self._handlers = {**handlers, "events.subscribe": _subscriptions(events)}
        self._role = role
        self._max_clients = max_clients
        self._clients = 0

    def set_admin_group(self, name: str) -> None:
        """Let this group change things, for clients that connect from now on."""
        self._settings = self._settings.model_copy(update={"admin_group": name})

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept clients until cancelled; `started` once the socket answers.

        Raises what `open_listener` raises. A handler's failure never ends the server.
        """
        listener = open_listener(self._settings)
        try:
            accepting = trio.socket.from_stdlib_socket(listener.socket)
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    try:
                        connected, _ = await accepting.accept()
                    except OSError as error:
                        # Out of descriptors or memory: those who are connected go on.
                        log.error("control_accept_failed", error=str(error))
                        await trio.sleep(ACCEPT_PAUSE_S)
                    else:
                        nursery.start_soon(self._attend, connected)
        finally:
            listener.close()

    async def _attend(self, connected: trio.socket.SocketType) -> None:
        """One client, from its first byte to its last; whatever it does stays in here."""
        with connected:
            self._clients += 1
            try:
                await self._admit(connected)
            except OSError as error:
                log.info("control_client_lost", error=str(error))
            except Exception:  # one client must not end the daemon
                log.exception("control_client_failed")
            finally:
                self._clients -= 1

    async def _admit(self, connected: trio.socket.SocketType) -> None:
        if self._clients > 2 * self._max_clients:
            return  # not even worth asking who it is
        pid, uid, gid = peer_ids(connected)
        # The user database may be a directory server on the network.
        caller = await trio.to_thread.run_sync(
            lambda: judge(
                pid,
                uid,
                gid,
                admin_group=self._settings.admin_group,
                daemon_uid=os.geteuid(),
            ),
            abandon_on_cancel=True,
        )
        connection = Connection(
            connected,
            caller,
            self._handlers,
            role=self._role,
            admin_group=self._settings.admin_group,
        )
        reserved = 0 if caller.may_change else min(RESERVED_FOR_ADMINS, self._max_clients // 2)
        if self._clients > self._max_clients - reserved:
            log.warning("control_client_turned_away", user=caller.user_name)
            await connection.turn_away(
                Unavailable(
                    "The daemon has as many clients on its control socket as it takes",
                    remedy="Try again in a moment; look for commands that were left running",
                    code="busy",
                )
            )
        else:
            await connection.serve()


def _subscriptions(events: EventHub) -> Handler:
    """The one method that needs no daemon: events as they happen, until the client leaves."""

    async def subscribe(
        caller: Caller, params: dict[str, Any], exchange: Exchange
    ) -> dict[str, Any]:
        del caller
        async with events.subscribe(prefixes=params["prefixes"]) as subscription:
            await exchange.event({"event": "events.subscribed", "at_s": time.time()})
            async for event in subscription:
                await exchange.event(event)
        return {}

    return subscribe
