"""The `archid` command: finds the command that was meant, and ends with one sentence and a code.

Each command is a module of its own and is imported when it is asked for, so that ``--version``
and the daemon pay for nothing that only another command needs. Exit codes are those of
`archid.errors`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

from archid import __version__
from archid.cli import failures
from archid.cli.options import common_options
from archid.cli.session import Session
from archid.errors import ArchidError, Interrupted, UsageError

# name: (module, what it does); in the order in which a newcomer needs them
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "init": ("init", "Make a fleet; this machine becomes its central."),
    "token": ("token", "Make and list tokens with which nodes join the fleet."),
    "join": ("join", "Join a fleet with a token."),
    "run": ("run", "Run the daemon in the foreground."),
    "publish": ("publish", "Publish a folder as the next version of a script."),
    "release": ("release", "Define which servers get which scripts, and when."),
    "fleet": ("fleet", "Show every node of the fleet and how its releases stand."),
    "why": ("why", "Say why a release stands on a node as it does."),
    "revoke": ("revoke", "Put a node out of the fleet, at once."),
    "trust-database": ("trust_database", "Let a central whose REPOs are lost sign again."),
    "root": ("root", "Replace keys of the fleet, with the root keys."),
    "epoch": ("epoch", "Begin a new epoch, with the root keys: the way out of stolen keys."),
    "backup": ("backup", "Write all that a lost central needs into one file."),
    "restore": ("restore", "Make a central again from a backup."),
    "status": ("status", "Show what this node is, has, fetches and lacks."),
    "peers": ("peers", "Show every connection, and why others are not there."),
    "log": ("log", "Show what was done at this node, and what came of it."),
    "watch": ("watch", "Watch this node, and on central the whole fleet, live."),
    "scripts": ("scripts", "List the script versions that this node holds or should hold."),
    "verify": ("verify", "Read every held file again and compare it with what was published."),
    "fetch": ("fetch", "Fetch a release or script now, before its date."),
    "activate": ("activate", "Switch a release to what is granted, now."),
    "rollback": ("rollback", "Switch a release back to what was there before."),
    "pin": ("pin", "Keep a version on this node, whatever happens."),
    "unpin": ("unpin", "Take a pin away."),
    "limits": ("limits", "Show or change how much goes over which line."),
    "gc": ("gc", "Remove what nothing needs any more, or show what that would be."),
    "config": ("config", "Check or show the configuration."),
    "replay": ("replay", "Go through the log of a fetch again."),
    "doctor": ("doctor", "Look for what is wrong on this machine and say what to do."),
    "leave": ("leave", "Make this node forget its fleet."),
    "stop": ("stop", "Stop the daemon."),
    "events": ("events", "Print what happens in the daemon, one JSON object a line."),
}
HIDDEN: Final = frozenset({"events"})


class LazyGroup(click.Group):
    """Knows its commands by name and imports only the one that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [name for name in COMMANDS if name not in HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"archid.cli.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list from the table above, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but a misspelt command names the nearest one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            raise UsageError(
                f"There is no command {args[0]!r}",
                remedy=f"Did you mean archid {near[0]}? archid --help lists all of them"
                if near
                else "archid --help lists the commands",
            )
        return super().resolve_command(ctx, args)


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    del parameter
    if not value or context.resilient_parsing:
        return
    if "--json" in sys.argv:
        import platform

        from archid.cli.output import write_json

        write_json({"software": __version__, "python": platform.python_version()})
    else:
        click.echo(f"archid {__version__}")
    context.exit()


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@common_options(hidden=False)
@click.pass_context
def cli(context: click.Context) -> None:
    """Gets light scripts to immersive cinemas, whole, verified and on time.

    Every command takes the options below after its name, too. Exit codes: 0 it worked, 1 a bug,
    2 wrong usage, 3 not found, 4 not allowed, 5 daemon or peer not reachable, 6 conflict,
    7 storage, 8 trust, 130 interrupted.
    """
    context.ensure_object(Session)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code, having said what went wrong."""
    session = Session()
    try:
        outcome = cli.main(
            args=list(arguments), prog_name="archid", standalone_mode=False, obj=session
        )
        sys.stdout.flush()
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except BrokenPipeError:
        return failures.leave_pipe()
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        return _report(error, as_json="--json" in arguments, verbose=session.verbose)
    return outcome if isinstance(outcome, int) else 0


def _report(error: BaseException, *, as_json: bool, verbose: bool) -> int:
    cause = failures.first_cause(error)
    if isinstance(cause, KeyboardInterrupt | click.Abort):
        cause = Interrupted("Interrupted", remedy="The same command starts again")
    elif isinstance(cause, click.ClickException):
        cause = _as_usage(cause)
    if isinstance(cause, ArchidError):
        return failures.report(cause, as_json=as_json)
    return failures.crash(error, as_json=as_json, verbose=verbose)


def _as_usage(error: click.ClickException) -> UsageError:
    """Click's complaints in this project's words, with the usage line as the remedy."""
    remedy = None
    context: Any = getattr(error, "ctx", None)
    if context is not None:
        remedy = f"See {context.command_path} --help"
    return UsageError(error.format_message(), remedy=remedy)


def main() -> NoReturn:
    """The entry point of the installed command."""
    sys.exit(run(sys.argv[1:]))
