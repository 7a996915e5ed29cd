"""init and leave: what works on the state folder without a daemon."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from archid.control.schema import OUTPUTS
from archid.identity import Identity
from archid.membership import Membership
from archid.store.layout import StateLock, StatePaths
from tests.unit.cli.conftest import PROJECT, archid

PASSPHRASE = "correct horse battery staple"


def configured(folder: Path, role: str) -> Path:
    config = folder / f"{role}.toml"
    config.write_text(
        f'version = 1\n[node]\nrole = "{role}"\nname = "{role}-1"\n'
        '[network]\nlisten = ["127.0.0.1:0"]\nadvertise = ["central.example.org:4777"]\n'
        f'[storage]\nstate = "{folder}/state"\nscripts = "{folder}/scripts"\n'
        f'[control]\nsocket = "{folder}/control.sock"\n'
    )
    return config


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a fleet was founded, once for this module: the keys take a second."""
    folder = tmp_path_factory.mktemp("founded")
    secret = folder / "passphrase"
    secret.write_text(PASSPHRASE + "\n")
    secret.chmod(0o600)
    config = configured(folder, "central")
    words = ["init", "ICE Test", "--root-keys", folder / "root.keys"]
    outcome = archid(*words, "--passphrase-file", secret, "--config", config, "--json")
    assert outcome.code == 0, outcome.out
    result = outcome.json()
    jsonschema.validate(result, OUTPUTS["init"])
    assert Identity.load(folder / "state").node_id.hex() == result["node"]
    assert (folder / "root.keys").stat().st_mode & 0o077 == 0
    return folder


@pytest.fixture
def founded(template: Path, tmp_path: Path) -> StatePaths:
    """A central's state of this test's own."""
    for name in ("state", "scripts"):
        shutil.copytree(template / name, tmp_path / name)
    shutil.copy(template / "passphrase", tmp_path)
    configured(tmp_path, "central")
    return StatePaths(tmp_path / "state", tmp_path / "scripts")


def test_a_fleet_is_founded_once(founded: StatePaths, tmp_path: Path) -> None:
    words = ["init", "Again", "--root-keys", tmp_path / "other", "--config"]
    again = archid(*words, tmp_path / "central.toml", "--passphrase-file", tmp_path / "passphrase")
    assert again.code == 6
    assert not (tmp_path / "other").exists()
    assert Membership.load(founded.identity).fleet_name == "ICE Test"


@pytest.mark.parametrize(
    ("content", "mode", "code", "said"),
    [
        (b"short\n", 0o600, 2, "passphrase"),
        (PASSPHRASE.encode(), 0o644, 4, "Other users may read"),
        (b"\xff\xfe\n", 0o600, 2, "not UTF-8"),
        (b"x" * 5000, 0o600, 2, "longer than"),
    ],
)
def test_a_bad_passphrase_file_makes_nothing(
    tmp_path: Path, content: bytes, mode: int, code: int, said: str
) -> None:
    secret = tmp_path / "passphrase"
    secret.write_bytes(content)
    secret.chmod(mode)
    words = ["init", "ICE Test", "--root-keys", tmp_path / "root.keys", "--passphrase-file", secret]
    outcome = archid(*words, "--config", configured(tmp_path, "central"))
    assert outcome.code == code
    assert said in outcome.err
    assert not (tmp_path / "root.keys").exists()
    assert not (tmp_path / "state" / "identity" / "fleet.json").exists()


def test_without_a_terminal_a_passphrase_is_not_asked_for(tmp_path: Path) -> None:
    words = ["init", "ICE Test", "--root-keys", tmp_path / "root.keys"]
    outcome = archid(*words, "--config", configured(tmp_path, "central"))
    assert outcome.code == 2
    assert "--passphrase-file" in outcome.err


def test_on_a_terminal_the_passphrase_is_typed_twice_and_not_shown(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    words = ["init", "ICE Test", "--root-keys", str(tmp_path / "root.keys")]
    with subprocess.Popen(
        [sys.executable, "-m", "archid", *words, "--config", configured(tmp_path, "central")],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=PROJECT,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    ) as process:
        os.close(follower)
        seen = b""
        typed = 0
        try:
            while data := os.read(leader, 4096):
                seen += data
                asked = seen.count(b"root keys:") + seen.count(b"Once more:")
                while typed < asked:
                    os.write(leader, PASSPHRASE.encode() + b"\n")
                    typed += 1
        except OSError:
            pass  # the last writer closed it
        finally:
            os.close(leader)
        assert process.wait() == 0, seen
    assert typed == 2
    assert PASSPHRASE.encode() not in seen


def make_member(folder: Path, source: StatePaths) -> StatePaths:
    """The central's own membership serves as an ICE server's: the files are the same."""
    paths = StatePaths(folder / "ice-state", folder / "ice-scripts")
    os.rename(source.state, paths.state)
    os.rename(source.scripts, paths.scripts)
    config = configured(folder, "ice")
    config.write_text(config.read_text().replace(f"{folder}/state", str(paths.state))
                      .replace(f"{folder}/scripts", str(paths.scripts)))  # fmt: skip
    (paths.trees / "ab").mkdir()
    (paths.trees / "ab" / "file").write_text("x")
    (paths.trees / "ab").chmod(0o555)
    return paths


def test_leaving_forgets_the_fleet_and_keeps_the_scripts(
    founded: StatePaths, tmp_path: Path
) -> None:
    paths = make_member(tmp_path, founded)
    config = tmp_path / "ice.toml"
    unasked = archid("leave", "--config", config)
    assert unasked.code == 2
    with StateLock(paths.lock):
        busy = archid("leave", "--yes", "--config", config)
    assert busy.code == 6
    assert paths.identity.exists()

    outcome = archid("leave", "--yes", "--config", config, "--json")
    jsonschema.validate(outcome.json(), OUTPUTS["leave"])
    assert outcome.json()["fleet_name"] == "ICE Test"
    assert not paths.identity.exists()
    assert not paths.trust.exists()
    assert (paths.trees / "ab" / "file").exists()
    again = archid("leave", "--yes", "--config", config)
    assert again.code == 3


def test_leaving_with_purge_removes_the_scripts_too(founded: StatePaths, tmp_path: Path) -> None:
    paths = make_member(tmp_path, founded)
    outcome = archid("leave", "--yes", "--purge", "--config", tmp_path / "ice.toml")
    assert outcome.code == 0
    assert not paths.trees.exists()
    assert not paths.release_links.exists()


def test_a_central_cannot_leave(founded: StatePaths, tmp_path: Path) -> None:
    outcome = archid("leave", "--yes", "--config", tmp_path / "central.toml")
    assert outcome.code == 2
    assert founded.identity.exists()


@pytest.mark.usefixtures("founded")
def test_doctor_knows_a_founded_fleet(tmp_path: Path) -> None:
    report = archid("doctor", "--config", tmp_path / "central.toml", "--json").json()
    checks = {check["check"]: check for check in report["checks"]}
    assert checks["identity"]["state"] == "ok"
    assert "ICE Test" in checks["identity"]["sentence"]
    assert checks["clock"]["state"] == "ok"
