"""What the demo needs of the machine, looked at before anything is started.

Each lack is one sentence that says what to do. The fleet of an earlier demo is met here too: one
that was left running on purpose is not touched, what a killed demo left behind is cleared away.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from archid.control.client import ControlClient
from archid.errors import ArchidError
from tests.demo.cast import NAMES, PORT, Options

MARKER: Final = "this-is-a-demo"
"""A file in the demo's folder: without it, nothing there is ever removed."""
KEPT: Final = "kept"
"""Beside it when the fleet was left running on purpose."""
MAX_SOCKET_PATH_BYTES: Final = 107
STOP_TIMEOUT_S: Final = 30.0


class CannotPlay(Exception):
    """The demo cannot begin; the message says why and what to do."""


def prepare(options: Options) -> None:
    """Make the folder, empty but for its marker. Raises CannotPlay."""
    _check_socket_paths(options)
    clear_away(options)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        if any(options.folder.iterdir()):
            raise CannotPlay(
                f"{options.folder} holds other things: name an empty folder with --folder"
            )
        (options.folder / MARKER).touch()
    except OSError as error:
        raise CannotPlay(
            f"{options.folder} cannot be written ({error.strerror}): name another folder with"
            " --folder"
        ) from error
    try:
        _check_disk(options)
        _check_addresses(options)
    except CannotPlay:
        remove_folder(options.folder)
        raise


def clear_away(options: Options) -> None:
    """End and remove what an earlier demo left. Raises CannotPlay when it was meant to stay."""
    if not (options.folder / MARKER).exists():
        return
    if (options.folder / KEPT).exists() and running(options.folder):
        raise CannotPlay(
            f"the fleet of an earlier demo still runs in {options.folder}: stop it with"
            f" {stop_command(options)}"
        )
    stop_all(options.folder)
    remove_folder(options.folder)


def stop_command(options: Options) -> str:
    """How a kept fleet is stopped and removed."""
    default = Path(".demo").resolve()
    folder = "" if options.folder.resolve() == default else f" --folder {options.folder}"
    return f'make demo DEMO_ARGS="--stop{folder}"'


def running(folder: Path) -> list[tuple[Path, int]]:
    """Control socket and process of every daemon in the folder that answers."""
    found = []
    for name in NAMES:
        control = folder / name / "control.sock"
        with suppress(ArchidError):
            found.append((control, int(ControlClient(control).call("status")["pid"])))
    return found


def stop_all(folder: Path) -> int:
    """Ask every daemon in the folder to stop and wait until it has; how many there were."""
    found = running(folder)
    for control, pid in found:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            with suppress(ArchidError):
                ControlClient(control).call("stop")
            _wait_for_exit(handle)
        finally:
            os.close(handle)
    return len(found)


def _wait_for_exit(handle: int) -> None:
    import select

    poller = select.poll()
    poller.register(handle, select.POLLIN)
    if not poller.poll(STOP_TIMEOUT_S * 1000):
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        poller.poll(STOP_TIMEOUT_S * 1000)


def remove_folder(folder: Path) -> None:
    """Remove the demo's folder, with the read-only trees in it."""
    if not (folder / MARKER).exists():
        return
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, 0o700)
    shutil.rmtree(folder)


def _check_socket_paths(options: Options) -> None:
    longest = max((options.folder / name / "control.sock" for name in NAMES), key=_bytes_of)
    if (over := _bytes_of(longest) - MAX_SOCKET_PATH_BYTES) > 0:
        raise CannotPlay(
            f"{options.folder} is {over} bytes too long for the control sockets in it: name a"
            " shorter folder with --folder"
        )


def _bytes_of(path: Path) -> int:
    return len(os.fsencode(path))


def _check_disk(options: Options) -> None:
    free = shutil.disk_usage(options.folder).free
    if free < options.needed_bytes:
        raise CannotPlay(
            f"only {free / 1e9:.1f} GB are free in {options.folder} and the demo needs"
            f" {options.needed_bytes / 1e9:.1f} GB: free some, or name another disk with --folder"
        )


def _check_addresses(options: Options) -> None:
    for host in options.addresses:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((host, PORT))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise CannotPlay(
                        f"port {PORT} of {host} is in use: stop what uses it, or take other"
                        " loopback addresses with --subnet 127.X.Y"
                    ) from error
                raise CannotPlay(
                    f"{host} cannot be listened on ({error.strerror}): the demo needs loopback"
                    " addresses as Linux has them; others are taken with --subnet 127.X.Y"
                ) from error
