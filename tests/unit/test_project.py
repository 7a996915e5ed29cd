"""Promises about the project's own files: locks, scripts, targets."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-bench.lock")

# written in halves, so that this file does not hold what it looks for
REGISTRY_HOSTS = [
    half + other
    for half, other in [
        ("pypi", ".org"),
        ("python", "hosted.org"),
        ("deb.deb", "ian.org"),
        ("proxy.gol", "ang.org"),
        ("registry.npm", "js.org"),
        ("crat", "es.io"),
        ("conda.ana", "conda.org"),
    ]
]


def tracked_files() -> list[Path]:
    """What is in the repository, or, in an unpacked archive of it, every file that is text."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=HERE,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        names = listing.stdout.decode().split("\0")
        return [HERE / name for name in names if name and (HERE / name).is_file()]
    return [
        path
        for path in HERE.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(HERE).parts)
    ]


def test_no_tracked_file_names_the_host_of_a_package_registry() -> None:
    files = tracked_files()
    assert HERE / "pyproject.toml" in files
    assert HERE / "requirements.lock" in files
    named = {
        (str(path.relative_to(HERE)), host)
        for path in files
        for host in REGISTRY_HOSTS
        if host.encode() in path.read_bytes()
    }
    assert not named


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_every_package_with_hashes_and_holds_no_address(name: str) -> None:
    text = (HERE / name).read_text()
    assert "://" not in text
    assert not re.search(r"(?m)^\s*(--index|--extra-index|--find-links|-f |-i )", text)
    entries = re.split(r"(?m)^(?=[a-z0-9])", text)[1:]
    assert len(entries) > 10
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==[^ ]+ ", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_what_runs_and_what_is_developed_and_measured_with_are_the_same_versions() -> None:
    run, dev, bench = (
        set(re.findall(r"(?m)^([a-z0-9._-]+==\S+)", (HERE / name).read_text())) for name in LOCKS
    )
    assert run <= dev
    assert run <= bench


def test_every_dependency_is_in_its_lock() -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for name, wanted in zip(
        LOCKS, (project["dependencies"], extras["dev"], extras["bench"]), strict=True
    ):
        locked = set(re.findall(r"(?m)^([a-z0-9._-]+)==", (HERE / name).read_text()))
        assert {re.split("[=><]", requirement)[0] for requirement in wanted} <= locked


def test_the_version_is_the_same_everywhere() -> None:
    from archid import __version__

    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert f"## {__version__}" in (HERE / "CHANGELOG.md").read_text()


def test_decisions_are_numbered_without_gaps_and_each_says_context_options_and_choice() -> None:
    entries = re.split(r"(?m)^## ", (HERE / "DECISIONS.md").read_text())[1:]
    assert len(entries) > 30
    for number, entry in enumerate(entries, start=1):
        assert entry.startswith(f"{number}. "), entry.splitlines()[0]
        said = " ".join(entry.split())
        form = r"\*\*Context\.\*\* .+\*\*Options\.\*\* .+\*\*Choice\.\*\* .+"
        assert re.search(form, said), entry


def bootstrap_in(folder: Path, path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of .ci/bootstrap that finds nothing but what is on `path`."""
    (folder / ".ci").mkdir()
    shutil.copy(HERE / ".ci" / "bootstrap", folder / ".ci" / "bootstrap")
    for name in ("requirements-dev.lock", "pyproject.toml"):
        shutil.copy(HERE / name, folder)
    return subprocess.run(
        ["/bin/sh", str(folder / ".ci" / "bootstrap")],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def python_without(folder: Path, *modules: str) -> str:
    """A PATH with the shell's tools and a python3 that lacks `modules`, as on a bare Debian."""
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("cat", "cksum", "dirname", "rm"):
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys\n" + "".join(f"sys.modules[{module!r}] = None\n" for module in modules)
    )
    real = Path(sys.base_prefix) / "bin" / "python3"
    wrapper = tools / "python3"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {real} "$@"\n')
    wrapper.chmod(0o755)
    return str(tools)


def test_without_any_way_to_make_an_environment_one_line_says_what_to_install(
    tmp_path: Path,
) -> None:
    path = python_without(tmp_path, "ensurepip", "pip", "virtualenv")
    (tmp_path / "clone").mkdir()
    result = bootstrap_in(tmp_path / "clone", path)
    assert result.returncode != 0
    assert result.stderr.splitlines() == [
        "archid: Python's venv is not complete; install it: apt-get install python3-venv"
    ]
    assert not (tmp_path / "clone" / ".venv").exists()


def test_without_python_one_line_says_what_to_install(tmp_path: Path) -> None:
    path = python_without(tmp_path)
    (Path(path) / "python3").unlink()
    (tmp_path / "clone").mkdir()
    result = bootstrap_in(tmp_path / "clone", path)
    assert result.returncode != 0
    assert result.stderr.splitlines() == [
        "archid: Python 3.11 or newer is missing; install it: apt-get install python3 python3-venv"
    ]


def test_an_old_python_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    path = python_without(tmp_path)
    old = Path(path) / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    (tmp_path / "clone").mkdir()
    result = bootstrap_in(tmp_path / "clone", path, PYTHON="python-old")
    assert result.returncode != 0
    assert result.stderr.splitlines() == [
        "archid: 'python-old' is not Python 3.11 or newer; name another one with PYTHON=..."
    ]


def test_the_makefile_documents_each_of_its_targets() -> None:
    text = (HERE / "Makefile").read_text()
    phony = re.search(r"(?m)^\.PHONY: (.*)$", text)
    assert phony is not None
    documented = set(re.findall(r"(?m)^([a-z-]+):.*## ", text))
    assert documented == set(phony[1].split())
    assert {"demo", "test", "test-long", "lint", "bench", "lock", "lock-check"} <= documented


def run_pytest_on(folder: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run one test file with this project's conftest and none of its configuration."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_one.py").write_text(test)
    arguments = ["-c", str(folder / "pytest.ini"), "-p", "tests.conftest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments, *options, str(folder)],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_skipped_test_is_seen_and_fails_a_run_that_does_not_allow_it(tmp_path: Path) -> None:
    skipping = "import pytest\ndef test_it(): pytest.skip('no tool')\n"
    allowed = run_pytest_on(tmp_path, skipping)
    assert allowed.returncode == 0
    assert "tests skipped: 1" in allowed.stdout
    refused = run_pytest_on(tmp_path, skipping, "--fail-on-skip")
    assert refused.returncode == 1
    assert "which fails this run" in refused.stdout


def test_a_test_that_logs_an_error_it_did_not_announce_fails(tmp_path: Path) -> None:
    logging = """
        from archid.log import get_logger
        log = get_logger("x")
        def test_it(): log.error("disk_full", free=0)
    """
    result = run_pytest_on(tmp_path, textwrap.dedent(logging))
    assert result.returncode == 1
    assert "the log has ERRORs that nobody expected" in result.stdout
    assert "disk_full" in result.stdout
    announced = textwrap.dedent(logging).replace(
        "def test_it", "import pytest\n@pytest.mark.expect_errors('disk_full')\ndef test_it"
    )
    assert run_pytest_on(tmp_path, announced).returncode == 0
