"""The log is JSON, tells no secrets and keeps tracebacks as data."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from archid.config import LogSettings
from archid.log import REDACTED, SparingLog, configure, get_logger
from tests.expected_errors import ErrorWatch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_time_level_and_event_first() -> None:
    stream = io.StringIO()
    configure(LogSettings(format="json"), stream=stream)
    get_logger("archid.sync.fetcher").info("span_fetched", peer=b"\x01\xff", path=Path("/x"), n=3)
    [line] = lines_of(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line["timestamp"].endswith("Z")
    assert (line["level"], line["event"]) == ("info", "span_fetched")
    assert (line["peer"], line["path"], line["n"]) == ("01ff", "/x", 3)
    assert line["module"] == "archid.sync.fetcher"


def test_secrets_are_taken_out_by_name_and_by_look_at_any_depth() -> None:
    stream = io.StringIO()
    configure(LogSettings(format="json"), stream=stream)
    get_logger("x").info(
        "joined",
        token="t0psecret",
        Root_Passphrase="t0psecret",
        join={"secret": b"t0psecret", "keys": [{"private_key": "t0psecret"}]},
        text="used archid-join-t0psecret today",
        shouted="used ARCHID-JOIN-t0psecret today",
        pem="-----BEGIN PRIVATE KEY-----\nt0psecret\n-----END PRIVATE KEY-----\n",
        database="postgresql://archid:t0psecret@db/archid",
        other="cannot connect to postgresql:///archid?host=db&password=t0psecret&port=1 now",
        token_id="kept",
    )
    assert "t0psecret" not in stream.getvalue()
    [line] = lines_of(stream)
    assert line["token"] == REDACTED
    assert line["text"] == f"used {REDACTED} today"
    assert line["token_id"] == "kept"
    assert line["database"] == f"postgresql://{REDACTED}@db/archid"


def test_what_strangers_cause_fills_no_disk_and_is_counted() -> None:
    stream = io.StringIO()
    configure(LogSettings(format="json"), stream=stream)
    clock = [0.0]
    log = SparingLog(get_logger("x"), lines=3, period_s=60, now=lambda: clock[0])
    for n in range(1000):
        log.info("connection_refused", n=n)
    log.warning("join_refused")
    clock[0] = 59.9
    log.info("connection_refused", n=1000)
    clock[0] = 60
    log.info("connection_refused", n=1001)
    log.info("connection_refused", n=1002)
    clock[0] = 200
    log.info("connection_refused", n=1003)
    lines = lines_of(stream)
    assert [line.get("n") for line in lines] == [0, 1, 2, None, 1001, 1002, 1003]
    assert [line.get("left_out") for line in lines] == [None] * 4 + [998, None, None]


def fail_with_a_secret() -> None:
    passphrase = "t0psecret"
    raise RuntimeError(f"cannot use archid-join-{passphrase}")


@pytest.mark.expect_errors("service_failed")
def test_an_exception_is_structured_and_shows_no_local_variables() -> None:
    stream = io.StringIO()
    configure(LogSettings(format="json"), stream=stream)
    try:
        fail_with_a_secret()
    except RuntimeError:
        get_logger("x").exception("service_failed")
    [line] = lines_of(stream)
    assert line["exception"][0]["exc_type"] == "RuntimeError"
    assert [frame["name"] for frame in line["exception"][0]["frames"]][-1] == "fail_with_a_secret"
    assert "t0psecret" not in stream.getvalue()


@pytest.mark.expect_errors("service_failed")
def test_on_a_console_an_exception_is_one_line() -> None:
    stream = io.StringIO()
    configure(LogSettings(format="console"), stream=stream)
    try:
        fail_with_a_secret()
    except RuntimeError:
        get_logger("x").exception("service_failed")
    assert len(stream.getvalue().splitlines()) == 1
    assert "Traceback" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_the_level_holds_back_what_is_less_important() -> None:
    stream = io.StringIO()
    configure(LogSettings(level="warning", format="json"), stream=stream)
    get_logger("x").info("chatter")
    get_logger("x").warning("matters")
    assert [line["event"] for line in lines_of(stream)] == ["matters"]


def test_auto_writes_for_people_on_a_terminal_and_json_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    configure(LogSettings(), stream=terminal)
    get_logger("x").info("started")
    assert "started" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    assert "\x1b" not in terminal.getvalue()
    pipe = io.StringIO()
    configure(LogSettings(), stream=pipe)
    get_logger("x").info("started")
    assert lines_of(pipe)[0]["event"] == "started"


def test_what_libraries_log_comes_out_as_the_same_kind_of_line() -> None:
    stream = io.StringIO()
    configure(LogSettings(format="json"), stream=stream)
    configure(LogSettings(format="json"), stream=stream)  # a second time must not double the lines
    logging.getLogger("sqlalchemy.pool").warning("pool %s is full", "a")
    [line] = lines_of(stream)
    assert (line["module"], line["message"]) == ("sqlalchemy.pool", "pool a is full")


def test_an_error_that_nobody_expected_fails_the_test() -> None:
    watch = ErrorWatch()
    watch.record(None, "error", {"event": "disk_full"})
    with pytest.raises(AssertionError, match="disk_full"):
        watch.check()
    watch.expect("disk_full")
    watch.check()


def test_an_error_that_was_expected_and_did_not_come_fails_the_test() -> None:
    watch = ErrorWatch()
    watch.expect("disk_full")
    with pytest.raises(AssertionError, match="not logged"):
        watch.check()


def test_errors_of_the_standard_logging_are_seen_too(expected_errors: ErrorWatch) -> None:
    logging.getLogger("alembic").error("boom")
    assert [error.event for error in expected_errors.seen()] == ["alembic"]
    expected_errors.expect("alembic")


def test_a_daemons_file_is_searched_for_errors_and_tracebacks(tmp_path: Path) -> None:
    log_file = tmp_path / "daemon.log"
    log_file.write_text('{"level": "error", "event": "old"}\n')
    watch = ErrorWatch()
    watch.watch(log_file, from_start=False)
    watch.check()
    with log_file.open("a") as stream:
        stream.write('{"level": "info", "event": "fine"}\nnot json\n')
        stream.write('{"level": "critical", "event": "lost"}\nTraceback (most recent call last):\n')
    assert [error.event for error in watch.seen()] == ["lost", "traceback"]


def test_a_daemon_does_without_rich_and_a_command_has_it() -> None:
    look = (
        "import sys, archid.daemon.composing; print('rich' in sys.modules); import rich.console;"
        " print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nTrue\n"
