"""``archid replay``: go through the log of a fetch plan again; needs no daemon."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from archid.cli.options import session_command
from archid.cli.session import Session


@session_command("replay")
@click.argument("file", type=click.Path(path_type=Path))
def command(session: Session, file: Path) -> int:
    """Check that a fetch decided as it does now, by the log FILE of its decisions.

    The daemon writes such logs to the folder fetch-plans of its state while [log] fetch_plans is
    true. Exit code 7 when a step comes out otherwise.
    """
    from archid.errors import UsageError
    from protocol.errors import ProtocolError
    from protocol.fetch_log import read_log
    from protocol.fetch_replay import go_through

    try:
        with file.open(encoding="utf-8") as lines:
            came = go_through(*read_log(lines))
    except (OSError, UnicodeDecodeError, ProtocolError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{file} cannot be gone through: {why}",
            remedy="Give a file from the folder fetch-plans of a node of this version",
        ) from error
    session.screen.result(
        {
            "path": str(file),
            "ok": came.differs_at is None,
            "steps": came.steps,
            "differs_at": came.differs_at,
            "finished": came.finished,
            "missing_spans": came.missing_spans,
        },
        Text(f"All {came.steps} steps came out the same.", style="ok")
        if came.differs_at is None
        else Text(f"Step {came.differs_at} of {file} came out otherwise.", style="alarm"),
    )
    return 0 if came.differs_at is None else 7
