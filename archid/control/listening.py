"""Makes the control socket appear in the file system, and go away again.

The socket is bound under a temporary name, given its mode and group, listened on and only then
renamed into place: nobody ever sees it with the wrong rights or before it answers. What a dead
daemon left behind is replaced; a live one is never pushed aside.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from archid.config import MAX_SOCKET_PATH_BYTES, ControlSettings
from archid.errors import Conflict, Denied, StorageError, UsageError
from archid.log import get_logger

SOCKET_MODE: Final = 0o660
BACKLOG: Final = 64

log = get_logger(__name__)


@dataclass(frozen=True)
class Listener:
    """A listening socket and the file it is reached by."""

    socket: socket.socket
    path: Path
    device: int
    inode: int

    def close(self) -> None:
        """Stop listening, and remove the file unless it is another daemon's by now."""
        self.socket.close()
        with contextlib.suppress(OSError):
            there = self.path.lstat()
            if (there.st_dev, there.st_ino) == (self.device, self.inode):
                self.path.unlink()


def open_listener(settings: ControlSettings) -> Listener:
    """A listening socket at `settings.socket`, mode 0660, in the group that may read.

    Raises Conflict if a daemon answers there or something else is in the way, Denied, StorageError
    or UsageError if the folder cannot be used. A group that cannot be given is logged: root and
    the daemon's own user can still connect.
    """
    path = settings.socket
    temporary = path.with_name(f".{path.name[:16]}.{os.getpid()}")
    if max(len(os.fsencode(path)), len(os.fsencode(temporary))) > MAX_SOCKET_PATH_BYTES:
        raise UsageError(
            f"The path of the control socket, {path}, is too long for Linux"
            f" ({MAX_SOCKET_PATH_BYTES} bytes with the temporary name beside it)",
            remedy="Set a shorter path as socket in [control]",
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _refuse_if_taken(path)
        temporary.unlink(missing_ok=True)
        # From the first moment nobody else gets in; chmod gives it its real mode below.
        previous_umask = os.umask(0o177)
        try:
            listener.bind(os.fspath(temporary))
        finally:
            os.umask(previous_umask)
        _give_group(temporary, settings.group)
        temporary.chmod(SOCKET_MODE)
        listener.listen(BACKLOG)
        made = temporary.lstat()
        temporary.rename(path)
    except BaseException as error:
        listener.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _explained(error, path) from error
        raise
    return Listener(listener, path, made.st_dev, made.st_ino)


def _answers(path: Path) -> bool:
    """Whether somebody listens at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its backlog is full: busy, and so alive
        except OSError as error:
            if error.errno in {errno.ECONNREFUSED, errno.ENOENT}:
                return False
            raise
    return True


def _refuse_if_taken(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Conflict(
            f"{path} is not a socket, so the control socket cannot be put there",
            remedy="Move that file away, or set another path as socket in [control]",
            code="socket_in_the_way",
        )
    if _answers(path):
        raise Conflict(
            f"Another archid answers on the control socket {path}",
            remedy="Stop it first, or give this one its own socket in [control]",
            code="socket_in_use",
        )
    log.info("control_socket_replaced", path=str(path))


def _give_group(path: Path, group: str) -> None:
    if not group:
        return
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        log.warning(
            "control_group_missing",
            group=group,
            effect="only root and the daemon's own user and group can use the control socket",
        )
    except PermissionError:
        log.warning(
            "control_group_not_given",
            group=group,
            effect="the daemon's user is not in that group, so its members cannot connect",
        )


def _explained(error: OSError, path: Path) -> Denied | StorageError:
    if isinstance(error, PermissionError):
        return Denied(
            f"The control socket {path} cannot be made: {path.parent} may not be written",
            remedy="Run the daemon as the user that owns that folder, or set socket in [control]",
        )
    return StorageError(f"The control socket {path} cannot be made ({error.strerror})")
