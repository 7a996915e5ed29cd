"""What every command shares: the global options, and what follows from them.

It finds the configuration and the daemon, both only when a command asks, so that a command that
needs neither works without them.
"""

from __future__ import annotations

import grp
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archid.errors import Denied, UsageError

if TYPE_CHECKING:
    from archid.cli.output import Screen
    from archid.config import Config
    from archid.control.client import ControlClient

DEFAULT_CONFIG_PATH = Path("/etc/archid/archid.toml")


@dataclass
class Session:
    """The global options of one run of the command."""

    config_path: Path | None = None
    socket_path: Path | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    _config: Config | None = field(default=None, repr=False)
    _screen: Screen | None = field(default=None, repr=False)

    @property
    def screen(self) -> Screen:
        """Where output goes."""
        if self._screen is None:
            from archid.cli.output import Screen

            self._screen = Screen(json=self.json, quiet=self.quiet, verbose=self.verbose)
        return self._screen

    @property
    def effective_config_path(self) -> Path:
        """The configuration file that was asked for, or the usual one."""
        return self.config_path or DEFAULT_CONFIG_PATH

    def config(self) -> Config:
        """The configuration. Raises UsageError or Denied."""
        if self._config is None:
            from archid.config import load_config

            self._config = load_config(self.effective_config_path)
        return self._config

    def client(self) -> ControlClient:
        """The daemon: at --socket, or where the configuration says, or at the usual place.

        A user who may not read the usual configuration can still talk to a daemon at the usual
        place; a file named by --config has to be right.
        """
        from archid.control.client import ControlClient

        if self.socket_path is not None:
            return ControlClient(self.socket_path)
        from archid.config import ControlSettings

        try:
            return ControlClient(self.config().control.socket)
        except Denied:
            if self.config_path is not None:
                raise
        except UsageError as error:
            if self.config_path is not None or error.code != "config_missing":
                raise
        return ControlClient(ControlSettings().socket)

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request to the daemon. Raises ArchidError."""
        return self.client().call(method, params)

    def quiet_log(self) -> None:
        """Let what the command itself runs log its warnings only, and never to standard output."""
        from archid.config import LogSettings
        from archid.log import configure

        configure(LogSettings(level="debug" if self.verbose else "warning", format="console"))

    @property
    def interactive(self) -> bool:
        """Whether somebody is there to answer a question."""
        return sys.stdin.isatty() and sys.stderr.isatty() and not self.json


def group_id(name: str) -> int | None:
    """The id of a Unix group, None for no name. Raises UsageError if there is no such group."""
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise UsageError(
            f"The configuration names the group {name!r}, which does not exist on this machine",
            remedy=f"Create it (groupadd --system {name}), or correct the configuration",
        ) from error
