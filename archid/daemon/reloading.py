"""SIGHUP: reads the configuration again, applies what can change while running, names the rest.

A file with a mistake changes nothing. What was read when the state was opened or the listener
bound (role, addresses, folders, groups of files) stays until the daemon is restarted, and the log
says so at each reload until then. What applying means is the composer's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio
from pydantic import BaseModel

from archid.config import Config, load_config
from archid.config_errors import key_in_file
from archid.errors import ArchidError
from archid.events import EventHub
from archid.log import get_logger
from archid.notify import notify_if_heard

log = get_logger(__name__)

RELOADABLE: Final = frozenset(
    {
        "network.peers",
        "limits.up",
        "limits.down",
        "limits.outside_up",
        "limits.outside_down",
        "limits.per_site_up",
        "limits.per_site_down",
        "limits.per_peer_up",
        "limits.per_peer_down",
        "limits.weekly",
        "limits.time_zone",
        "limits.upload_slots",
        "storage.keep_free",
        "storage.keep_ungranted",
        "storage.scrub_rate",
        "storage.scrub_every",
        "control.admin_group",
        "log.level",
        "log.format",
        "central.head_lifetime",
        "central.head_refresh",
        "central.token_lifetime",
    }
)
"""The keys, as the file names them, that a running daemon takes up."""


@dataclass(frozen=True)
class Reloaded:
    """What a fresh configuration comes to for a daemon that runs."""

    config: Config
    """In effect from now on."""
    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


def take_up(current: Config, fresh: Config) -> Reloaded:
    """`current` with what may change while running taken from `fresh`."""
    changed, needs_restart = [], []
    sections: dict[str, dict[str, Any]] = {}
    for section, name, key in _differences(current, fresh):
        if key in RELOADABLE:
            changed.append(key)
            sections.setdefault(section, {})[name] = getattr(getattr(fresh, section), name)
        else:
            needs_restart.append(key)
    updated = {
        section: getattr(current, section).model_copy(update=values)
        for section, values in sections.items()
    }
    return Reloaded(
        current.model_copy(update=updated), tuple(sorted(changed)), tuple(sorted(needs_restart))
    )


def _differences(current: Config, fresh: Config) -> Iterator[tuple[str, str, str]]:
    """(section, attribute, key in the file) of every value that differs."""
    for section in type(current).model_fields:
        before, after = getattr(current, section), getattr(fresh, section)
        if not isinstance(before, BaseModel):
            continue  # the file's version, of which this program knows one
        for name, field in type(before).model_fields.items():
            if getattr(before, name) != getattr(after, name):
                yield section, name, f"{section}.{key_in_file(name, field)}"


class Reloader:
    """Holds the configuration in effect; `reload` brings it up to date."""

    def __init__(
        self,
        source: Path | None,
        config: Config,
        *,
        events: EventHub,
        apply: Callable[[Config], None],
    ) -> None:
        """`source` is the file that `config` came from, None if it came from none."""
        self._source = source
        self._config = config
        self._events = events
        self._apply = apply

    async def reload(self) -> None:
        """Read the file again and apply it; what is wrong with it is logged, never raised."""
        if self._source is None:
            log.warning("config_not_reloaded", why="The configuration did not come from a file")
            return
        try:
            fresh = await trio.to_thread.run_sync(load_config, self._source)
        except ArchidError as error:
            log.error("config_not_reloaded", path=self._source, why=error.sentence)
            notify_if_heard(
                "STATUS=The configuration has a mistake; the earlier one stays in effect"
            )
            self._events.publish("config.not_reloaded", code=error.code, sentence=error.sentence)
            return
        reloaded = take_up(self._config, fresh)
        self._config = reloaded.config
        self._apply(reloaded.config)
        log.info("config_reloaded", path=self._source, changed=reloaded.changed)
        if reloaded.needs_restart:
            log.warning(
                "config_needs_restart",
                keys=reloaded.needs_restart,
                effect="these keys were changed in the file and take effect at the next start",
            )
        notify_if_heard(f"STATUS=archid {self._config.node.role} is ready")
        self._events.publish(
            "config.reloaded",
            changed=list(reloaded.changed),
            needs_restart=list(reloaded.needs_restart),
        )
