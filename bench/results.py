"""What a run leaves to be read: ``bench/results/``, a page with tables, and a picture each.

Each benchmark has its own part there, so that one can be run again alone; the page is put together
from the parts that there are, and each says on which commit and when it was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench import plots
from bench.benchmark import Outcome

PAGE: Final = "README.md"
HEAD: Final = """# Figures of the last run

Written by `make bench`; how each is measured is in [../README.md](../README.md). Medians with
minimum and maximum. Only what stands in one table was measured in turns in one run and may be
compared.
"""


def keep(folder: Path, name: str, what: str, outcome: Outcome, run: Mapping[str, Any]) -> None:
    """Write one benchmark's part: its figures, its tables and its picture."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"## {name}: {what}", ""]
    lines += [f"{run['at']}, commit `{run['commit']}`, {run['machine']}", ""]
    for text in outcome.tables:
        lines += [text, ""]
    if outcome.charts:
        plots.draw(outcome.charts, folder / f"{name}.png")
        lines += [f"![{what}]({name}.png)", ""]
    part = {
        "at": run["at"], "commit": run["commit"], "machine": run["machine"],
        "page": lines, "figures": outcome.figures,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(part, indent=1) + "\n")


def write_page(folder: Path, order: Sequence[str]) -> Path:
    """Put the page together from the parts; returns where it is."""
    lines = [HEAD]
    for name in order:
        part = folder / f"{name}.json"
        if part.exists():
            lines += json.loads(part.read_text())["page"]
    page = folder / PAGE
    page.write_text("\n".join(lines).rstrip("\n") + "\n")
    return page
