"""A real control server on a real socket, for tests that speak to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from archid.config import ControlSettings
from archid.control.server import ControlServer, Handler
from archid.events import EventHub

Serving = Callable[..., AbstractAsyncContextManager[Path]]


def settings_for(path: Path, *, admin_group: str = "") -> ControlSettings:
    """Settings as the configuration file gives them."""
    return ControlSettings.model_validate(
        {"socket": str(path), "group": "", "admin_group": admin_group}
    )


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    """`async with serving({"status": handler}) as socket_path:`"""

    @asynccontextmanager
    async def serve(
        handlers: Mapping[str, Handler],
        *,
        events: EventHub | None = None,
        role: str = "central",
        admin_group: str = "",
        max_clients: int = 64,
        path: Path | None = None,
    ) -> AsyncIterator[Path]:
        socket_path = path or tmp_path / "control.sock"
        settings = settings_for(socket_path, admin_group=admin_group)
        server = ControlServer(
            settings, handlers, events or EventHub(), role=role, max_clients=max_clients
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve)
            yield socket_path
            nursery.cancel_scope.cancel()

    return serve
