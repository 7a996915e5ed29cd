"""What holds for every test: unexpected ERRORs fail it, and what is skipped is seen.

``--fail-on-skip`` is for the continuous integration run, where every tool is installed: there a
skipped test is a claim that nobody checked.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from archid.log import redact
from tests.expected_errors import ErrorWatch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-on-skip",
        action="store_true",
        help="fail the run if any test was skipped",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in the background, and nohup whatever it starts, with these ignored,
    # and every process of the tests would inherit that: what Ctrl-C ends would not end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.addinivalue_line(
        "markers",
        "expect_errors(*events): the test makes these events be logged at ERROR",
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped(session.config) and session.config.getoption("--fail-on-skip"):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    skipped = _skipped(config)
    if not skipped:
        return
    failing = config.getoption("--fail-on-skip")
    verdict = "which fails this run" if failing else "what they would show is not shown here"
    terminalreporter.write_line(
        f"tests skipped: {skipped}, {verdict}", red=failing, yellow=not failing, bold=True
    )


def _skipped(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return 0 if reporter is None else len(reporter.stats.get("skipped", []))


@pytest.fixture(autouse=True)
def expected_errors(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ErrorWatch]:
    """Fails the test on an ERROR that neither its marker nor its code announced."""
    watch = ErrorWatch()
    for marker in request.node.iter_markers("expect_errors"):
        watch.expect(*marker.args)
    configure = structlog.configure

    def configure_and_record(processors: Any = None, **settings: Any) -> None:
        # code under test may set up its own log: the record comes first all the same, and no
        # logger may keep the processors of an earlier test
        settings["cache_logger_on_first_use"] = False
        configure(processors=[watch.record, *(processors or [])], **settings)

    monkeypatch.setattr(structlog, "configure", configure_and_record)
    structlog.reset_defaults()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            redact,
            structlog.processors.JSONRenderer(),
        ]
    )
    root = logging.getLogger()
    level, handler = root.level, watch.handler()
    root.addHandler(handler)
    yield watch
    for each in root.handlers[:]:
        if each is handler or type(each).__module__ == "archid.log":
            root.removeHandler(each)
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    watch.check()
