"""The options that every command takes, before its name or after it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from archid.cli.session import Session

Command = TypeVar("Command", bound=Callable[..., Any])


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        del parameter
        if value is not None and value is not False:
            setattr(context.ensure_object(Session), name, value)

    return remember


def _option(*names: str, keep: str, hidden: bool, **settings: Any) -> Callable[[Command], Command]:
    return click.option(
        *names, callback=_remember(keep), expose_value=False, hidden=hidden, **settings
    )


def common_options(*, hidden: bool) -> Callable[[Command], Command]:
    """Add the global options; on a command they work but do not crowd its help."""

    def add(command: Command) -> Command:
        for decorate in (
            _option(
                "-v",
                "--verbose",
                is_flag=True,
                keep="verbose",
                hidden=hidden,
                help="Show ids and details.",
            ),
            _option(
                "-q",
                "--quiet",
                is_flag=True,
                keep="quiet",
                hidden=hidden,
                help="Show results and errors only.",
            ),
            _option(
                "--json",
                is_flag=True,
                keep="json",
                hidden=False,
                help="Print one JSON document, errors included.",
            ),
            _option(
                "--socket",
                type=click.Path(path_type=Path),
                keep="socket_path",
                hidden=hidden,
                help="The daemon's control socket. Default: as configured.",
            ),
            _option(
                "--config",
                type=click.Path(path_type=Path),
                envvar=None if hidden else "ARCHID_CONFIG",
                keep="config_path",
                hidden=hidden,
                help="The configuration file. Default: /etc/archid/archid.toml.",
            ),
        ):
            command = decorate(command)
        return command

    return add


def user_option(command: Command) -> Command:
    """Add the option that says whose the state will be, for the commands that make it."""
    return click.option(
        "--user",
        default="",
        metavar="NAME",
        help="As root: whose the state will be, where its folder is not there yet."
        " Default: the owner of the folder, or root.",
    )(command)


def session_command(
    name: str, *, hidden: bool = False, **settings: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """A command whose first argument is the Session, with the common options."""

    def make(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def with_session(*arguments: Any, **named: Any) -> Any:
            session = click.get_current_context().ensure_object(Session)
            return function(session, *arguments, **named)

        return click.command(name, cls=click.Command, hidden=hidden, **settings)(
            common_options(hidden=True)(with_session)
        )

    return make
