"""Commands as processes of their own, against a real control server in the test."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trio

from archid.control.connection import Exchange
from archid.control.credentials import Caller
from archid.control.schema import OUTPUTS
from archid.control.server import Handler
from archid.errors import Conflict
from tests.unit.cli.conftest import PROJECT, archid, archid_beside, interrupted
from tests.unit.control import samples
from tests.unit.control.conftest import Serving

Json = dict[str, Any]

TARGET: Json = {
    "node": samples.HASH,
    "name": "lyon-3-salle",
    "site": "lyon-confluence",
    "room": "3",
    "server_kind": "salle",
}
SCRIPT: Json = {
    "kind": "feature",
    "script": "blue-hour-feature",
    "version": 2,
    "manifest": samples.HASH,
    "size_bytes": 301_000_000,
}
CHANGE: Json = {
    "field": "start",
    "before": "2026-10-14T07:00:00Z",
    "after": "2026-10-15T07:00:00Z",
}
PLAN: Json = {
    "plan": samples.HASH,
    "signed": False,
    "action": "change",
    "release": samples.RELEASE,
    "name": "blue-hour",
    "generation": 4,
    "previous_generation": 3,
    "prefetch_s": samples.NOW_S,
    "start_s": samples.NOW_S + 86_400,
    "end_s": samples.NOW_S + 40 * 86_400,
    "changes": [
        {"field": "start", "before": "2026-10-14T07:00:00Z", "after": "2026-10-15T07:00:00Z"}
    ],
    "scripts": [{**SCRIPT, "change": "changed"}],
    "targets": [{**TARGET, "change": "added"}]
    + [{**TARGET, "name": f"paris-{n}", "change": "unchanged"} for n in range(20)],
    "warnings": ["The release starts in less than a day"],
    "head": None,
}
SUMMARY: Json = {
    "release": samples.RELEASE,
    "name": "blue-hour",
    "generation": 3,
    "state": "active",
    "prefetch_s": samples.NOW_S,
    "start_s": samples.NOW_S,
    "end_s": samples.NOW_S + 86_400,
    "target_count": 1,
    "size_bytes": 301_000_000,
}


ROOM: Json = {
    "site": "lyon-confluence",
    "room": "3",
    "ready": False,
    "servers": ["lyon-3-salle"],
    "sentence": "room 3 of lyon-confluence is not ready: it has no SAS server",
}


def answering(result: Json) -> Handler:
    async def answer(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
        return result

    return answer


async def release_apply(_caller: Caller, params: Json, _exchange: Exchange) -> Json:
    if params["sign"]:
        if params["plan"] != samples.HASH:
            raise Conflict("The plan is outdated", code="plan_outdated")
        return {**PLAN, "signed": True, "head": {"epoch": 1, "serial": 42}}
    return {**PLAN, "action": "none"} if "nothing" in params["definition"] else PLAN


async def token_create(_caller: Caller, params: Json, _exchange: Exchange) -> Json:
    place = {key: params[key] for key in ("role", "name", "site", "room", "server_kind")}
    return {
        **place,
        "token": "archid-join-" + "A" * 300,
        "id": "0123456789abcdef",
        "expires_s": samples.NOW_S + params["lifetime_s"],
        "addresses": ["central.example.net:4777"],
    }


async def verify(_caller: Caller, _params: Json, exchange: Exchange) -> Json:
    await exchange.event(
        {
            "event": "verify.progress",
            "manifest": samples.HASH,
            "name": "x",
            "version": 1,
            "checked_bytes": 1,
            "total_bytes": 2,
        }
    )
    damage = {"path": "panels/1.bin", "reason": "corrupt", "sentence": "panels/1.bin is torn"}
    tree = {
        "manifest": samples.HASH,
        "name": "blue-hour-feature",
        "kind": "feature",
        "version": 2,
        "ok": False,
        "checked_bytes": 2,
        "damage": [damage],
    }
    return {"ok": False, "trees": [tree]}


HANDLERS: dict[str, Handler] = {
    "status": answering(samples.STATUS),
    "scripts": answering({"scripts": [samples.SCRIPT]}),
    "verify": verify,
    "release.apply": release_apply,
    "release.list": answering({"releases": [SUMMARY]}),
    "fleet": answering(
        {
            "rooms": [{"release": "blue-hour", **ROOM}],
            "nodes": [
                {
                    "node": samples.HASH,
                    "name": "lyon-3-salle",
                    "role": "ice",
                    "site": "lyon",
                    "room": "3",
                    "server_kind": "salle",
                    "seen_s": samples.NOW_S,
                    "silent": False,
                    "software": "0.1.0",
                    "health": "attention",
                    "reasons": ["Only 0.4 GB are free where the scripts are"],
                    "free_bytes": 0,
                    "head": {"epoch": 1, "serial": 41},
                    "releases": [
                        {
                            "release": samples.RELEASE,
                            "name": "blue-hour",
                            "generation": 3,
                            "state": "fetching",
                            "reason": None,
                        }
                    ],
                },
                {
                    "node": samples.OTHER_HASH,
                    "name": "lyon-3-sas",
                    "role": "ice",
                    "site": "lyon",
                    "room": "3",
                    "server_kind": "sas",
                    "seen_s": None,
                    "silent": True,
                    "software": "",
                    "health": None,
                    "reasons": [],
                    "free_bytes": None,
                    "head": None,
                    "releases": [],
                },
            ],
            "head": {"epoch": 1, "serial": 42},
        }
    ),
    "why": answering(
        {
            "node": "lyon-3-sas",
            "release": "blue-hour",
            "generation": 3,
            "state": "unknown",
            "sentence": "lyon-3-sas has said nothing yet",
            "remedy": "Start archid on it",
            "solved": False,
            "evidence": ["central: generation 3 is active"],
            "seen_s": None,
        }
    ),
    "release.show": answering(
        {
            **SUMMARY,
            "scripts": [SCRIPT],
            "targets": [{**TARGET, "state": "active", "reason": None}],
            "rooms": [ROOM],
            "applied_s": samples.NOW_S,
        }
    ),
    "token.create": token_create,
    "token.list": answering(
        {
            "tokens": [
                {
                    "id": "0123456789abcdef",
                    "role": "repo",
                    "name": "repo-paris",
                    "site": "paris",
                    "room": "",
                    "server_kind": "",
                    "created_s": samples.NOW_S,
                    "expires_s": samples.NOW_S,
                    "state": "used",
                    "used_s": samples.NOW_S,
                    "node": samples.HASH,
                }
            ]
        }
    ),
    "leave": answering(
        {
            "node": samples.HASH,
            "fleet": samples.HASH,
            "fleet_name": "ICE Europe",
            "removed": ["/var/lib/archid/identity"],
        }
    ),
    "stop": answering({"stopping": True}),
}


@pytest.mark.parametrize(
    ("schema", "words", "code", "shown"),
    [
        ("status", "status", 0, "61 minutes behind"),
        ("status", "status", 0, "up 20Mbit/s"),
        ("scripts", "scripts", 0, "blue-hour-feature"),
        ("verify", "verify", 7, "panels/1.bin is torn"),
        ("release.list", "release list", 0, "301 MB"),
        ("release.show", "release show blue-hour", 0, "lyon-3-salle"),
        ("fleet", "fleet", 0, "blue-hour fetching"),
        ("fleet", "fleet", 0, "never"),
        ("fleet", "fleet", 0, "blue-hour: room 3 of"),
        ("release.show", "release show blue-hour", 0, "0 of 1 room ready"),
        ("why", "why lyon-3-sas blue-hour", 0, "Start archid on it."),
        ("release.apply", "release apply - --dry-run", 0, "12 more servers"),
        ("release.apply", "release apply - --yes", 0, "generation 3 to 4"),
        ("token.list", "token list", 0, "repo-paris"),
        ("token.create", "token create --role repo --name r --lifetime 2h", 0, "archid-join-"),
        ("leave", "leave --yes", 0, "ICE Europe"),
        ("stop", "stop", 0, ""),
        ("version", "--version", 0, "archid 0."),
    ],
)
async def test_every_command_prints_a_screen_and_json_that_fits_its_schema(
    serving: Serving, schema: str, words: str, code: int, shown: str
) -> None:
    async with serving(HANDLERS) as path:
        arguments = ["--socket", path, *words.split()]
        screen = await archid_beside(*arguments, stdin="x", COLUMNS="80")
        as_json = await archid_beside(*arguments, "--json", stdin="x")
    assert screen.code == as_json.code == code
    assert shown in screen.out
    # a token and an id are never broken; everything else fits 80 columns
    assert all(len(line) <= 80 for line in screen.out.splitlines() if "archid-join" not in line)
    assert not any(line != line.rstrip() for line in screen.err.splitlines() if "→" in line)
    jsonschema.validate(as_json.json(), OUTPUTS[schema])
    assert as_json.err == ""


async def test_without_a_terminal_nothing_is_signed_unasked(serving: Serving) -> None:
    async with serving(HANDLERS) as path:
        refused = await archid_beside("--socket", path, "release", "apply", "-", stdin="x")
        nothing = await archid_beside("--socket", path, "release", "apply", "-", stdin="nothing")
        signed = await archid_beside("--socket", path, "release", "apply", "-", "--yes", stdin="x")
        quiet = await archid_beside(
            "--socket", path, "release", "apply", "-", "--yes", "-q", stdin="x"
        )
    assert (refused.code, nothing.code, signed.code, quiet.code) == (2, 0, 0, 0)
    assert quiet.out == "Signed: blue-hour generation 4 is in head 1/42.\n"
    assert quiet.err == ""
    assert "Changed release" in refused.out
    assert "--yes" in refused.err
    assert "head 1/42" in signed.err


async def test_errors_are_a_sentence_and_a_remedy_or_json(serving: Serving, tmp_path: Path) -> None:
    absent = tmp_path / "absent.sock"
    for words in (["status"], ["publish", tmp_path, "--script", "s", "--kind", "loop"]):
        person = archid("--socket", absent, *words)
        program = archid("--socket", absent, *words, "--json")
        assert person.code == program.code == 5
        assert person.out == ""
        assert len(person.err.splitlines()) == 2
        assert "No archid runs here" in person.err
        assert "\x1b" not in person.err
        error = program.json()
        jsonschema.validate(error, OUTPUTS["error"])
        assert error["error"]["code"] == "daemon_absent"
    async with serving({"status": HANDLERS["status"]}, role="ice") as path:
        wrong_role = await archid_beside("--socket", path, "release", "list")
    assert wrong_role.code == 2
    assert "This node is an ICE server, and what was asked is for central only." in wrong_role.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stats"], "Did you mean archid status?"),
        (["status", "--colour"], "No such option"),
        (["publish"], "Missing"),
        (["token", "create", "--role", "ice", "--name", "x"], "needs --site, --room and --kind"),
        (["release", "apply", "/nowhere.toml"], "cannot be read"),
        (["release", "apply", "x", "--yes", "--dry-run"], "contradict"),
        (["join"], "Either a token or --token-file"),
        (["verify", "x", "--manifest", "y"], "cannot both be given"),
        (["publish", ".", "--script", "a/b", "--kind", "sas"], "name of a script"),
        (["publish", ".", "--script", "é" * 150, "--kind", "sas"], "name of a script"),
        (["--config", "/nowhere.toml", "status"], "There is no configuration file /nowhere.toml"),
        (["init", "x", "--root-keys", "/tmp/x"], "configures the role 'ice'"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what(words: list[str], said: str) -> None:
    outcome = archid(*words, env={"ARCHID_CONFIG": str(PROJECT / "config" / "ice.toml")})
    assert outcome.code == 2
    assert said in outcome.err


def test_a_sentence_that_begins_with_a_file_names_it_as_it_is() -> None:
    outcome = archid("publish", "pyproject.toml", "--script", "x", "--kind", "sas", "--socket", "x")
    assert outcome.code == 2
    assert outcome.err.startswith("pyproject.toml is not a folder.\n")


def test_config_check_and_show_need_no_daemon(tmp_path: Path) -> None:
    central = PROJECT / "config" / "central.toml"
    check = archid("config", "check", "--config", central, "--json")
    jsonschema.validate(check.json(), OUTPUTS["config.check"])
    show = archid("config", "show", "--config", central, "--json")
    jsonschema.validate(show.json(), OUTPUTS["config.show"])
    assert "[network]" in archid("config", "show", "--config", central).out
    broken = tmp_path / "broken.toml"
    broken.write_text('version = 1\n[node]\nrole = "ice"\nnmae = "x"\n')
    outcome = archid("config", "check", "--config", broken)
    assert outcome.code == 2
    assert "name" in outcome.err
    assert str(broken) in outcome.err


async def test_doctor_finds_what_is_wrong_and_says_what_to_do(
    serving: Serving, tmp_path: Path
) -> None:
    config = tmp_path / "ice.toml"
    (tmp_path / "state").mkdir(mode=0o777)
    (tmp_path / "state").chmod(0o777)
    config.write_text(
        'version = 1\n[node]\nrole = "ice"\n[network]\nlisten = ["127.0.0.1:0"]\n'
        f'[storage]\nstate = "{tmp_path}/state"\nscripts = "{tmp_path}/scripts"\n'
        f'[control]\nsocket = "{tmp_path}/control.sock"\n'
    )
    outcome = archid("doctor", "--config", config, "--json")
    report = outcome.json()
    jsonschema.validate(report, OUTPUTS["doctor"])
    states = {check["check"]: check["state"] for check in report["checks"]}
    assert outcome.code == 1
    assert states["configuration"] == "ok"
    assert states["state folder"] == "failed"
    assert states["daemon"] == "failed"
    assert states["ports"] == "ok"
    async with serving(HANDLERS):
        outcome = await archid_beside("doctor", "--config", config)
    assert "61 minutes behind the newest head" in outcome.out
    assert "timedatectl" in outcome.out
    assert "chmod o=" in outcome.out
    missing = archid("doctor", "--config", "/nowhere.toml", "--json")
    assert missing.code == 1
    jsonschema.validate(missing.json(), OUTPUTS["doctor"])


def test_a_fetch_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    config = ("--config", PROJECT / "config" / "ice.toml")
    absent = archid("replay", tmp_path / "absent.jsonl", *config)
    assert absent.code == 2
    assert "absent.jsonl cannot be gone through: No such file or directory." in absent.err
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"\xff{}\n")
    assert archid("replay", other, *config).code == 2
    other.write_text('{"no": "plan"}\n')
    assert archid("replay", other, *config, "--json").json()["error"]["exit_code"] == 2


def told(health: list[Json], **changes: Any) -> Handler:
    """A status with these reasons and nothing else to complain about."""
    status = {**samples.STATUS, "health": {"level": "ok", "reasons": health}, **changes}
    return answering({**status, "peers": changes.get("peers", [samples.PEER])})


AHEAD: Json = {
    "level": "attention",
    "code": "clock_ahead",
    "sentence": "This machine's clock is 60 minutes ahead of its peers",
    "remedy": "Set it by NTP",
}


@pytest.mark.parametrize(
    ("status", "state", "says"),
    [
        (told([AHEAD]), "failed", "60 minutes ahead"),
        (told([]), "ok", "agrees with the newest head and the peers"),
        (told([], peers=[]), "ok", "not behind the newest head"),
        (told([], trust=None), "skipped", "no head to compare"),
    ],
    ids=["ahead", "right", "alone", "no head yet"],
)
async def test_doctor_says_of_the_clock_what_the_daemon_knows(
    serving: Serving, tmp_path: Path, status: Handler, state: str, says: str
) -> None:
    config = tmp_path / "ice.toml"
    config.write_text(
        'version = 1\n[node]\nrole = "ice"\n'
        f'[storage]\nstate = "{tmp_path}/state"\nscripts = "{tmp_path}/scripts"\n'
        f'[control]\nsocket = "{tmp_path}/control.sock"\n'
    )
    async with serving({"status": status}):
        report = (await archid_beside("doctor", "--config", config, "--json")).json()
    [clock] = [check for check in report["checks"] if check["check"] == "clock"]
    assert clock["state"] == state
    assert says in clock["sentence"]


async def test_ids_are_whole_on_one_line_so_that_they_can_be_copied(serving: Serving) -> None:
    async with serving(HANDLERS) as path:
        for words in (["scripts", "-v"], ["status", "-v"]):
            shown = await archid_beside("--socket", path, *words, COLUMNS="100")
            [line] = [line for line in shown.out.splitlines() if samples.HASH in line][-1:]
            assert len(line) <= 100


async def test_a_plan_shows_moments_like_everything_else_does(serving: Serving) -> None:
    async with serving(HANDLERS) as path:
        shown = await archid_beside("--socket", path, "release", "apply", "-", "--dry-run")
    assert "2026-10-14 09:00 CEST" in shown.out
    assert "2026-10-15 09:00 CEST" in shown.out
    assert "2026-10-14T" not in shown.out


def test_a_bug_is_a_sentence_and_a_file(tmp_path: Path) -> None:
    code = (
        "import sys; from archid.cli import main, session\n"
        "def broken(self, method, params=None): raise KeyError('boom', 'ARCHID-join-s3cret')\n"
        "session.Session.call = broken\n"
        "sys.exit(main.run(['status']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (crash,) = tmp_path.iterdir()
    assert str(crash) in done.stderr
    assert "KeyError: ('boom'" in crash.read_text()
    assert "s3cret" not in crash.read_text()
    assert crash.stat().st_mode & 0o077 == 0


def test_one_cause_is_named_out_of_a_group() -> None:
    from archid.cli.failures import first_cause

    cause = Conflict("taken")
    group = ExceptionGroup("", [ValueError(), ExceptionGroup("", [cause])])
    assert first_cause(group) is cause
    interrupted_group = BaseExceptionGroup("", [BaseExceptionGroup("", [KeyboardInterrupt()])])
    assert isinstance(first_cause(interrupted_group), KeyboardInterrupt)


async def test_a_reader_that_leaves_early_is_no_error(serving: Serving) -> None:
    many = {"scripts": [samples.SCRIPT] * 5000}

    def shell(path: Path) -> subprocess.CompletedProcess[str]:
        command = f"{sys.executable} -m archid --socket {path} scripts --json | head -1"
        return subprocess.run(
            ["bash", "-c", command],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=PROJECT,
        )

    async with serving({"scripts": answering(many)}) as path:
        done = await trio.to_thread.run_sync(shell, path)
    assert done.stdout == "{\n"
    assert done.stderr == ""


async def test_ctrl_c_ends_with_130_and_cancels_the_request(serving: Serving) -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def wait(_caller: Caller, _params: Json, _exchange: Exchange) -> Json:
        started.set()
        try:
            return await trio.sleep_forever()
        finally:
            cancelled.set()

    async with serving({"verify": wait}) as path:
        with trio.fail_after(30):
            code, err = await interrupted(started, "--socket", path, "verify")
            await cancelled.wait()
    assert code == 130
    assert err.strip().startswith("Interrupted")


def on_a_terminal(*words: object, **env: str) -> str:
    """What a person sees: the command on a pseudo terminal of 80 columns."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "archid", *map(str, words)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=PROJECT,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **env},
    ) as process:
        os.close(follower)
        seen = b""
        try:
            while data := os.read(leader, 65536):
                seen += data
        except OSError:
            pass  # the last writer closed it
        finally:
            os.close(leader)
        assert process.wait() in {0, 7}
    return seen.decode()


async def test_colour_follows_the_terminal_and_no_color(serving: Serving) -> None:
    async with serving(HANDLERS) as path:
        coloured = await trio.to_thread.run_sync(lambda: on_a_terminal("--socket", path, "status"))
        plain = await trio.to_thread.run_sync(
            lambda: on_a_terminal("--socket", path, "status", NO_COLOR="1")
        )
        piped = await archid_beside("--socket", path, "status")
    assert "\x1b[33m" in coloured
    assert "\x1b[33m" not in plain
    assert "\x1b" not in piped.out


async def test_bars_are_for_terminals_only_and_quiet_means_quiet(serving: Serving) -> None:
    async with serving(HANDLERS) as path:
        shown = await trio.to_thread.run_sync(lambda: on_a_terminal("--socket", path, "verify"))
        quiet = await trio.to_thread.run_sync(
            lambda: on_a_terminal("--socket", path, "verify", "-q")
        )
        piped = await archid_beside("--socket", path, "verify")
    assert "Verifying" in shown
    assert "Verifying" not in quiet
    assert piped.err == ""


def test_the_version_and_the_daemons_side_import_nothing_that_they_do_not_need() -> None:
    assert archid("--version").out.startswith("archid ")
    version = (
        "import sys, archid.cli.main\n"
        "archid.cli.main.run(['--version'])\n"
        "print({'trio', 'pydantic', 'cryptography', 'sqlalchemy'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", version], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert shown.stdout.endswith("set()\n")
    code = (
        "import sys, trio, archid.cli.main\n"
        "trio.run = lambda *what: None\n"
        "assert archid.cli.main.run(['run', '--config', 'config/ice.toml']) == 0\n"
        "import archid.control.server\n"
        "print({'rich.console', 'sqlalchemy', 'jsonschema', 'archid.central'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert done.stdout.strip() == "set()"
