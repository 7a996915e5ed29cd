"""`archid limits` on the terminal and as JSON, against a real control server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archid.control.connection import Exchange
from archid.control.credentials import Caller
from archid.rates import RATE_KEYS
from tests.unit.cli.conftest import archid_beside
from tests.unit.control import samples
from tests.unit.control.conftest import Serving

LIMIT: dict[str, Any] = {
    "rate_bytes_per_s": None,
    "origin": "default",
    "line": None,
    "by": None,
    "until_s": None,
    "actual_bytes_per_s": 0.0,
    "busiest": None,
}
RESULT: dict[str, Any] = {
    "limits": [
        {**LIMIT, "key": key}
        | {
            "outside_down": {
                "rate_bytes_per_s": 250_000,
                "origin": "weekly",
                "line": "mon-fri 14:00-23:30 outside_down=2Mbit/s",
                "actual_bytes_per_s": 248_400.0,
            },
            "per_peer_down": {"actual_bytes_per_s": 125_000.0, "busiest": "repo-paris"},
            "up": {
                "rate_bytes_per_s": 1_000_000,
                "origin": "set",
                "by": "anna",
                "until_s": samples.NOW_S + 3600,
            },
        }.get(key, {})
        for key in RATE_KEYS
    ],
    "now_s": samples.NOW_S,
    "time_zone": "Europe/Paris",
    "next_change_s": samples.NOW_S + 3600,
    "next": [{"key": "up", "rate_bytes_per_s": None}],
    "weekly": ["mon-fri 14:00-23:30 outside_down=2Mbit/s"],
    "upload_slots": {"limit": 200, "in_use": 3, "waiting": 1, "refused": 12},
}


class Daemon:
    """Answers as a daemon would, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def answer(self, name: str) -> Any:
        async def handler(
            _caller: Caller, params: dict[str, Any], _exchange: Exchange
        ) -> dict[str, Any]:
            self.asked.append((name, params))
            return RESULT

        return handler

    @property
    def handlers(self) -> dict[str, Any]:
        names = ("limits.show", "limits.set", "limits.clear")
        return {name: self.answer(name) for name in names}


def words_of(line: str) -> str:
    return " ".join(line.split())


async def test_limits_are_shown_with_their_reasons_and_what_changes_next(serving: Serving) -> None:
    async with serving(Daemon().handlers) as socket:
        shown = await archid_beside("--socket", socket, "limits", "show", COLUMNS="200")
    assert shown.code == 0
    lines = {line.split()[0]: words_of(line) for line in shown.out.splitlines() if line.strip()}
    assert lines["outside_down"] == (
        "outside_down received over it 2Mbit/s 1.99 Mbit/s mon-fri 14:00-23:30 outside_down=2Mbit/s"
    )
    assert "anna set it until 2026-09-21" in lines["up"]
    assert "1.00 Mbit/s (repo-paris)" in lines["per_peer_down"]
    assert "3 of 200 in use, 1 request waiting; 12 requests told to come later" in lines["upload"]
    assert lines["next"].endswith("up=unlimited")
    assert lines["hours"] == "hours are in Europe/Paris"


async def test_limits_are_set_and_cleared_by_name(serving: Serving, tmp_path: Path) -> None:
    del tmp_path
    daemon = Daemon()
    async with serving(daemon.handlers) as socket:
        words = ("limits", "set", "outside_down=2Mbit/s", "up=unlimited", "--until", "23:30")
        done = await archid_beside("--socket", socket, *words, "--json")
        assert done.json() == RESULT
        assert (await archid_beside("--socket", socket, "limits", "clear", "up")).code == 0
        assert (await archid_beside("--socket", socket, "limits", "clear")).code == 0
    assert daemon.asked == [
        ("limits.set", {"limits": ["outside_down=2Mbit/s", "up=unlimited"], "until": "23:30"}),
        ("limits.clear", {"keys": ["up"]}),
        ("limits.clear", {"keys": []}),
    ]


async def test_setting_nothing_says_how_it_is_done(serving: Serving) -> None:
    async with serving(Daemon().handlers) as socket:
        done = await archid_beside("--socket", socket, "limits", "set")
    assert done.code == 2
    assert "archid limits set outside_down=2Mbit/s --until 23:30" in done.err
