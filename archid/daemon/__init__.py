"""The daemon: opens a node's state, puts its services together, and runs them.

It only composes. What a role runs is a table in `archid.roles`; what a service does is in its own
module, which gets what it needs as arguments.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from archid.config import Config
from archid.daemon.composing import Node
from archid.daemon.opening import open_state
from archid.daemon.runtime import prepare_process
from archid.errors import ArchidError
from archid.log import configure
from archid.notify import notify_if_heard


async def run(config: Config, source: Path | None = None) -> None:
    """Run a node until SIGTERM, SIGINT or the control method ``stop``. Raises ArchidError.

    `source` is the file that `config` came from; SIGHUP reads it again.
    """
    configure(config.log)
    prepare_process()
    with ExitStack() as stack:
        state = open_state(config, stack)
        node = Node(config, state, stack, source=source)
        try:
            await node.run()
        except* ArchidError as group:
            raise first_of(group) from group
        finally:
            notify_if_heard("STOPPING=1")


def first_of(group: BaseExceptionGroup[ArchidError]) -> ArchidError:
    """The first error inside, however deep: a person can act on one cause."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, ArchidError):
        raise TypeError("an exception group held something else than it says")
    return error
