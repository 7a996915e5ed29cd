"""SIGHUP: what a daemon that runs takes up from a changed configuration, and what it does not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import structlog

from archid.config import Config, LogSettings, parse_config
from archid.config_view import effective_keys
from archid.daemon.reloading import RELOADABLE, Reloader, take_up
from archid.events import EventHub
from archid.log import configure, get_logger

CENTRAL = """version = 1
[node]
role = "central"
name = "central"
[network]
peers = ["a.example:4777"]
"""


def config(text: str = CENTRAL) -> Config:
    return parse_config(text, source="test")


def test_every_key_that_is_taken_up_is_a_key_of_the_file() -> None:
    known = {f"{row.section}.{row.key}" for row in effective_keys(config())}
    assert known >= RELOADABLE


def test_keys_that_can_change_do_and_the_others_stay() -> None:
    current = config()
    fresh = config(
        CENTRAL.replace("a.example", "b.example").replace('"central"\nname', '"central"\n#')
        + 'listen = ["127.0.0.1:1"]\n[storage]\nkeep_free = "2GiB"\nstate = "/data/archid"\n'
        + '[log]\nlevel = "debug"\n[central]\nhead_refresh = "1h"\ndatabase = "sqlite:////x"\n'
    )
    reloaded = take_up(current, fresh)
    assert reloaded.changed == (
        "central.head_refresh", "log.level", "network.peers", "storage.keep_free",
    )  # fmt: skip
    assert reloaded.needs_restart == (
        "central.database", "network.listen", "node.name", "storage.state",
    )  # fmt: skip
    assert reloaded.config.network.peers == fresh.network.peers
    assert reloaded.config.network.listen == current.network.listen
    assert reloaded.config.storage.keep_free_bytes == 2 << 30
    assert reloaded.config.storage.state == current.storage.state
    assert reloaded.config.central.head_refresh == fresh.central.head_refresh
    assert reloaded.config.central.database == ""
    assert reloaded.config.node == current.node


def test_taking_up_the_same_again_changes_nothing() -> None:
    fresh = config(CENTRAL + '[log]\nlevel = "debug"\n')
    once = take_up(config(), fresh).config
    assert take_up(once, fresh).changed == ()


async def test_what_needs_a_restart_is_named_at_every_reload_until_then(tmp_path: Path) -> None:
    file = tmp_path / "archid.toml"
    file.write_text(CENTRAL.replace('name = "central"', 'name = "other"'))
    applied: list[Config] = []
    reloader = Reloader(file, config(), events=EventHub(), apply=applied.append)
    with structlog.testing.capture_logs() as lines:
        await reloader.reload()
        await reloader.reload()
    named = [line["keys"] for line in lines if line["event"] == "config_needs_restart"]
    assert named == [("node.name",), ("node.name",)]
    assert [one.node.name for one in applied] == ["central", "central"]


@pytest.mark.expect_errors("config_not_reloaded")
@pytest.mark.parametrize("text", ["version = 1\n", CENTRAL + "colour = 1\n", "not toml", None])
async def test_a_file_with_a_mistake_applies_nothing(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "archid.toml"
    if text is not None:
        file.write_text(text)
    events = EventHub()
    applied: list[Config] = []
    reloader = Reloader(file, config(), events=events, apply=applied.append)
    async with events.subscribe() as subscription:
        await reloader.reload()
        event = await anext(subscription)
    assert event["event"] == "config.not_reloaded"
    assert str(file) in event["sentence"]
    assert applied == []


async def test_a_daemon_whose_configuration_is_in_no_file_goes_on(tmp_path: Path) -> None:
    del tmp_path
    applied: list[Config] = []
    await Reloader(None, config(), events=EventHub(), apply=applied.append).reload()
    assert applied == []


def test_loggers_in_use_follow_the_level_and_the_format() -> None:
    stream = io.StringIO()
    configure(LogSettings(level="warning", format="json"), stream=stream)
    log = get_logger("x").bind()  # keeps what it was first used with, as in the daemon
    log.info("not_seen")
    log.warning("seen")
    configure(LogSettings(level="debug", format="json"), stream=stream)
    log.debug("now_seen")
    configure(LogSettings(level="error", format="json"), stream=stream)
    log.warning("no_longer_seen")
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["seen", "now_seen"]
    configure(LogSettings(level="debug", format="console"), stream=stream)
    log.debug("for_people")
    assert not stream.getvalue().splitlines()[-1].startswith("{")
    assert "for_people" in stream.getvalue()
