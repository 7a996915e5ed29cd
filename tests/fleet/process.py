"""One daemon as a real process: started, watched through sd_notify, killed.

Nothing here sleeps or polls: the daemon says over NOTIFY_SOCKET when it is ready, its exit is
waited for, and everything else is learnt by waiting for its events on the control socket.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.fleet.namespaces import in_namespace

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class DaemonFailed(AssertionError):
    """A daemon ended, or stayed silent, when it should have been ready."""


class DaemonProcess:
    """`archid --config CONFIG run` with its log in `log_path`."""

    def __init__(
        self,
        config: Path,
        log_path: Path,
        env: dict[str, str] | None = None,
        *,
        namespace: str | None = None,
    ) -> None:
        self.config = config
        self.log_path = log_path
        self._env = {} if env is None else env
        self._namespace = namespace
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """How it ended: its exit code, or minus the signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def launch(self) -> None:
        """Start without waiting; `log_path` is appended to, so that every life is in it."""
        assert not self.running, "already running"
        env = {**os.environ, **self._env, "NOTIFY_SOCKET": self._listen()}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *in_namespace(self._namespace),
                    sys.executable,
                    "-m",
                    "archid",
                    "--config",
                    str(self.config),
                    "run",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,  # Ctrl-C in the terminal is the fleet's to handle
            )

    def _listen(self) -> str:
        """Where the daemon is to say that it is ready."""
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        if self._namespace is None:
            self._notify.bind("")  # Linux picks an abstract address
            return "@" + os.fsdecode(self._notify.getsockname()[1:])
        path = self.log_path.with_name("notify")  # abstract addresses end at the namespace
        path.unlink(missing_ok=True)
        self._notify.bind(str(path))
        return str(path)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when the daemon says READY=1; raise DaemonFailed when it ends before."""
        assert self._process is not None, "not started"
        deadline = time.monotonic() + timeout_s
        pidfd = os.pidfd_open(self._process.pid)
        try:
            import select

            poller = select.poll()
            poller.register(self._notify, select.POLLIN)
            poller.register(pidfd, select.POLLIN)
            while (left := deadline - time.monotonic()) > 0:
                ready = {fd for fd, _ in poller.poll(left * 1000)}
                if self._notify.fileno() in ready and b"READY=1" in self._notify.recv(4096):
                    return
                if pidfd in ready:
                    code = self._process.wait()
                    raise DaemonFailed(
                        f"{self.config} ended with {code} before it was ready:\n{self.tail()}"
                    )
        finally:
            os.close(pidfd)
        raise DaemonFailed(f"{self.config} was not ready in {timeout_s} s:\n{self.tail()}")

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def kill(self) -> None:
        """SIGKILL, and prove that the process is gone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)
        self._notify.close()

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit code."""
        assert self._process is not None
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            self._process.wait()
            raise DaemonFailed(f"{self.config} did not stop on SIGTERM:\n{self.tail()}") from error
        self._notify.close()
        return code

    def tail(self, lines: int = 40) -> str:
        """The last lines of the log, for a failure's message."""
        if not self.log_path.exists():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
