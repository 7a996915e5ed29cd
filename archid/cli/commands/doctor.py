"""``archid doctor``: look for what is wrong on this machine and say what to do."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from archid.cli.checks import Check, examine
from archid.cli.options import session_command
from archid.cli.output import level
from archid.cli.session import Session

MARKS = {"ok": "✓", "attention": "!", "failed": "✗", "skipped": "-"}


@session_command("doctor")
def command(session: Session) -> int:
    """Look for what is wrong on this machine and say what to do.

    Works with and without a running daemon, and changes nothing. Exit code 1 if a check failed.
    """
    session.quiet_log()
    checks = list(examine(session))
    ok = all(check.state != "failed" for check in checks)
    session.screen.result(
        {"ok": ok, "checks": [check.to_json() for check in checks]},
        _screen(checks),
        _verdict(checks),
    )
    return 0 if ok else 1


def _screen(checks: list[Check]) -> RenderableType:
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(style="quiet", no_wrap=True)
    made.add_column(overflow="fold")
    for check in checks:
        words = Text(f"{check.sentence}.")
        if check.state in {"attention", "failed"} and check.remedy:
            words.append(f"\n→ {check.remedy}.", style="name")
        made.add_row(level(MARKS[check.state], check.state), check.check, words)
    return made


def _verdict(checks: list[Check]) -> Text:
    failed = sum(check.state == "failed" for check in checks)
    attention = sum(check.state == "attention" for check in checks)
    if failed:
        return level(f"{failed} of {len(checks)} checks failed.", "failed")
    if attention:
        return level(f"Nothing failed; {attention} of {len(checks)} need attention.", "attention")
    return level("Everything is well.", "ok")
