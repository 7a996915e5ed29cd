"""A Debian that boots, with systemd as its first process, in a folder: what a service needs.

The folder is made once by debootstrap and kept; every machine gets a copy. It runs under
systemd-nspawn with a network of its own, which has nothing but the loopback. Nothing here
registers with the machine that runs the tests, whose own first process may be anything.
Nothing sleeps or polls: systemd-nspawn says when the machine is up, systemctl waits for services,
and `Machine.follow_journal` waits for log lines.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

SUITE: Final = "bookworm"
PACKAGES: Final = (
    "systemd", "systemd-sysv", "dbus", "make", "python3", "python3-venv",
)  # fmt: skip
TOOLS: Final = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
}
CACHE: Final = Path("/var/tmp/archid-test-machines")
BOOT_TIMEOUT_S: Final = 120.0
JOURNAL_TIMEOUT_S: Final = 60.0
THE_END: Final = b"THE_END"


class MachineFailed(AssertionError):
    """A machine did not boot, or a command in it ended otherwise than it should."""


def require_tools() -> None:
    """Fail, rather than skip, where the tools are missing: the message says what to install."""
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        pytest.fail(f"install as root: apt-get install {' '.join(missing)}", pytrace=False)
    if os.geteuid() != 0:
        pytest.fail("only root can boot a machine in a folder", pytrace=False)


def bare_system() -> Path:
    """A folder with a Debian that has what archid's installation needs; made once, then kept."""
    key = hashlib.sha256(repr((SUITE, PACKAGES)).encode()).hexdigest()[:12]
    folder = CACHE / f"{SUITE}-{key}"
    CACHE.mkdir(mode=0o755, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        making = CACHE / f"{folder.name}.new"
        shutil.rmtree(making, ignore_errors=True)
        done = subprocess.run(
            [
                "debootstrap",
                "--variant=minbase",
                f"--include={','.join(PACKAGES)}",
                SUITE,
                str(making),
                *filter(None, [os.environ.get("DEBIAN_MIRROR", "")]),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise MachineFailed(f"debootstrap failed:\n{done.stdout[-3000:]}\n{done.stderr}")
        shutil.rmtree(making / "var/cache/apt/archives", ignore_errors=True)
        making.rename(folder)
    return folder


class Machine:
    """One machine that runs."""

    def __init__(self, process: subprocess.Popen[bytes], console: Path, leader: int) -> None:
        self._process = process
        self._console = console
        self._leader = leader

    def path(self, inside: str) -> Path:
        """A file of the machine as seen from outside, sockets and `/run` included."""
        return Path(f"/proc/{self._leader}/root") / inside.lstrip("/")

    def run(
        self,
        *command: str,
        user: str = "root",
        check: bool = True,
        stdin: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside as `user`, with the groups that the machine gives them."""
        words = self._enter(user, command)
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            words,
            capture_output=True,
            input=b"" if given is None else given,
            check=False,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                 "LANG": "C.UTF-8", **(env or {})},
            timeout=timeout_s,
        )  # fmt: skip
        result = subprocess.CompletedProcess(
            done.args,
            done.returncode,
            done.stdout.decode("utf-8", "replace"),
            done.stderr.decode("utf-8", "replace"),
        )
        if check and result.returncode:
            raise MachineFailed(
                f"{user}: {' '.join(command)} ended with {result.returncode}\n"
                f"{result.stdout}\n{result.stderr}"
            )
        return result

    def _enter(self, user: str, command: Sequence[str]) -> list[str]:
        enter = ["nsenter", f"--target={self._leader}", "--all", "--root", "--wd"]
        return [*enter, "--", *(() if user == "root" else ("runuser", "-u", user, "--")), *command]

    def property(self, unit: str, name: str) -> str:
        """One property of a unit, as systemctl has it."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def journal(self, unit: str) -> list[dict[str, Any]]:
        """What a unit logged as JSON lines, and what it said otherwise as ``{"text": ...}``."""
        lines = self.run("journalctl", "-q", "-u", unit, "-o", "cat").stdout.splitlines()
        return [_fields(line) for line in lines]

    @contextmanager
    def follow_journal(self, unit: str) -> Iterator[Callable[..., dict[str, Any]]]:
        """Yields a function that waits for a line logged since the block began."""
        cursor = self.run("journalctl", "-q", "-n", "1", "-o", "json").stdout
        after = json.loads(cursor)["__CURSOR"]
        follower = subprocess.Popen(
            self._enter(
                "root",
                ["journalctl", "-q", "-f", f"--after-cursor={after}", "-u", unit, "-o", "cat"],
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # nsenter has a child, and both have to go
        )
        assert follower.stdout is not None
        seen: list[str] = []

        def stop() -> None:
            with suppress(ProcessLookupError):
                os.killpg(follower.pid, signal.SIGKILL)

        def wait(
            condition: Callable[[dict[str, Any]], bool], timeout_s: float = JOURNAL_TIMEOUT_S
        ) -> dict[str, Any]:
            timer = threading.Timer(timeout_s, stop)
            timer.start()
            try:
                for line in follower.stdout or ():
                    seen.append(line.decode("utf-8", "replace").rstrip())
                    fields = _fields(seen[-1])
                    if condition(fields):
                        return fields
            finally:
                timer.cancel()
            raise MachineFailed(
                f"{unit} did not log it within {timeout_s:g} s:\n" + "\n".join(seen[-40:])
            )

        try:
            yield wait
        finally:
            stop()
            follower.wait()
            follower.stdout.close()

    def power_off(self) -> None:
        """Shut down as a person would; raises MachineFailed if that takes too long."""
        self.run("systemctl", "poweroff", "--no-wall", check=False)
        try:
            self._process.wait(90)
        except subprocess.TimeoutExpired:
            raise MachineFailed(f"the machine did not shut down:\n{_tail(self._console)}") from None


def _fields(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError:
        return {"text": line}
    return fields if isinstance(fields, dict) else {"text": line}


@contextmanager
def booted(base: Path, *, shown: Mapping[str, Path]) -> Iterator[Machine]:
    """A fresh machine in `base`; `shown` are folders of this machine that it may read."""
    root = base / "root"
    subprocess.run(["cp", "-a", "--reflink=auto", str(bare_system()), str(root)], check=True)
    console = base / "console"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as told,
        console.open("wb") as output,
    ):
        told.bind("")  # Linux picks an abstract address
        process = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig=TERM",  # should these tests be killed, the machine shuts down
                "systemd-nspawn",
                "--boot",
                "--quiet",
                f"--directory={root}",
                f"--machine=archid-test-{os.getpid()}",
                "--hostname=ice-1",
                "--keep-unit",
                "--register=no",
                "--private-network",
                "--notify-ready=yes",
                "--link-journal=no",
                "--resolv-conf=off",
                "--timezone=off",
                "--console=pipe",
                *(f"--bind-ro={path}:{inside}" for inside, path in shown.items()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={
                "PATH": os.environ["PATH"],
                "NOTIFY_SOCKET": "@" + told.getsockname()[1:].decode(),
            },
            start_new_session=True,
        )
        listening = threading.Thread(target=_listen_on, args=(told,))
        try:
            leader = _wait_until_up(told, process, console)
            listening.start()
            machine = Machine(process, console, leader)
            yield machine
            machine.power_off()
        finally:
            if process.poll() is None:
                # the end of its first process is the end of everything in a machine
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                process.kill()
                for child in children.split():
                    os.kill(int(child), signal.SIGKILL)
                process.wait()
            if listening.is_alive():
                told.sendto(THE_END, told.getsockname())
                listening.join()


def _wait_until_up(told: socket.socket, process: subprocess.Popen[bytes], console: Path) -> int:
    """The number of the machine's first process, once its start is over."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    leader = 0
    while (left_s := deadline - time.monotonic()) > 0 and process.poll() is None:
        told.settimeout(min(left_s, 1.0))  # so that its end is noticed as well
        try:
            message = told.recv(4096).decode()
        except TimeoutError:
            continue
        for line in message.splitlines():
            name, _, value = line.partition("=")
            if name == "X_NSPAWN_LEADER_PID":
                leader = int(value)
        if leader and "READY=1" in message.splitlines():
            return leader
    raise MachineFailed(f"the machine did not boot:\n{_tail(console)}")


def _listen_on(told: socket.socket) -> None:
    """Take what a machine says of itself to its end.

    Each reload of its units is told, and ten messages that nobody takes hold up systemd-nspawn,
    and with it the machine.
    """
    told.settimeout(None)
    while told.recv(4096) != THE_END:
        pass


def _tail(console: Path) -> str:
    return console.read_text(errors="replace")[-4000:]
