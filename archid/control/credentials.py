"""Who is on the other end of the control socket, and whether they may change things.

The kernel says who connected (SO_PEERCRED); nothing that the client sends is believed. Connecting
at all takes the socket's group, and that is the right to read. Changing takes root, the daemon's
own user, or membership of the admin group. Membership is looked up in the user database by the
user's id: reading the process's own groups from /proc would race with a process that has exited
and whose number another has got.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from typing import Final, Protocol

from archid.errors import Denied

_UCRED: Final = struct.Struct("3i")  # pid, uid, gid: see unix(7)


@dataclass(frozen=True)
class Caller:
    """The process at the other end, as the kernel and the user database know it."""

    pid: int
    uid: int
    gid: int
    user_name: str
    may_change: bool


class _AsksOptions(Protocol):
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def peer_ids(connection: _AsksOptions) -> tuple[int, int, int]:
    """Process, user and group id of the peer when it connected."""
    pid, uid, gid = _UCRED.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    return pid, uid, gid


def judge(pid: int, uid: int, gid: int, *, admin_group: str, daemon_uid: int) -> Caller:
    """The Caller with these ids. Asks the user database, which may block: call it in a thread."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        user_name, groups = f"user {uid}", {gid}
    else:
        user_name = entry.pw_name
        # The gid of the connection counts as well: newgrp(1) gave it to the process lawfully.
        groups = {gid, *os.getgrouplist(user_name, entry.pw_gid)}
    may_change = uid in {0, daemon_uid} or _group_id(admin_group) in groups
    return Caller(pid=pid, uid=uid, gid=gid, user_name=user_name, may_change=may_change)


def _group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid if name else None
    except KeyError:
        return None


def refusal(caller: Caller, *, admin_group: str) -> Denied:
    """Why `caller` may not use a method that changes something."""
    if admin_group and _group_id(admin_group) is None:
        remedy = (
            f"Run it as root, or create the group {admin_group!r} and add {caller.user_name} to it"
        )
    elif admin_group:
        remedy = (
            f"Run it as root, or add {caller.user_name} to the group {admin_group!r}"
            f" (usermod -aG {admin_group} {caller.user_name})"
        )
    else:
        remedy = "Run it as root, or set admin_group in [control] of the daemon's configuration"
    who = caller.user_name if caller.user_name.startswith("user ") else f"user {caller.user_name}"
    return Denied(
        f"The {who} may look but not change anything: this takes root"
        + (f" or the group {admin_group!r}" if admin_group else ""),
        remedy=remedy,
    )
