"""What ``archid doctor`` looks at, one function a subject; none of them changes anything.

Each check says in a sentence what it found and, if that is not well, what to do. A check that
needs what an earlier one found broken is skipped and says so. What the daemon itself complains
about comes from its ``status``, so that there is one opinion on a node's health.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from archid.cli import figures
from archid.errors import ArchidError, Unavailable

if TYPE_CHECKING:
    from archid.cli.session import Session
    from archid.config import Config

State = Literal["ok", "attention", "failed", "skipped"]
CLOCK_TOLERANCE_S: Final = 120
SET_CLOCK: Final = "Set the clock (timedatectl set-ntp true); releases switch by it"
NEXT_STEP: Final = "Run archid init (on central) or archid join"


@dataclass(frozen=True)
class Check:
    """What one look came to."""

    check: str
    state: State
    sentence: str
    remedy: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As ``archid doctor --json`` prints it."""
        return {
            "check": self.check,
            "state": self.state,
            "sentence": self.sentence,
            "remedy": self.remedy,
        }


def examine(session: Session) -> Iterator[Check]:
    """Every check in order. Raises nothing: what cannot be looked at is a check's result."""
    try:
        config = session.config()
    except ArchidError as error:
        yield Check("configuration", "failed", error.message, error.remedy)
        yield Check("everything else", "skipped", "It depends on the configuration")
        return
    yield Check(
        "configuration",
        "ok",
        f"{session.effective_config_path} is correct; role {config.node.role}",
    )
    yield _chunker()
    yield from _groups(config)
    yield from _state(config)
    yield _identity(config)
    yield from _space(config)
    status, daemon = _daemon(session)
    yield daemon
    if status is None:
        yield from _ports(config)
    yield _clock(config, status)
    if status is not None:
        yield from _from_status(status)


def _chunker() -> Check:
    from archid.store.chunking import require_compiled_core

    try:
        require_compiled_core()
    except ArchidError as error:
        return Check("chunker", "failed", error.message, error.remedy)
    return Check("chunker", "ok", "pyfastcdc has its compiled core")


def _groups(config: Config) -> Iterator[Check]:
    for purpose, name in (
        ("reading the control socket", config.control.group),
        ("changing things", config.control.admin_group),
        ("the player", config.player.group),
    ):
        if not name:
            continue
        try:
            grp.getgrnam(name)
        except KeyError:
            yield Check(
                "groups",
                "failed" if name == config.player.group else "attention",
                f"The group {name!r} for {purpose} does not exist",
                f"Create it (groupadd --system {name}), or correct the configuration",
            )
    uid = os.getuid()
    if uid == 0:
        yield Check("you", "ok", "Running as root, which may do everything")
        return
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        yield Check("you", "attention", f"The user {uid} is not in the user database")
        return
    names = {_group_name(gid) for gid in os.getgrouplist(user.pw_name, user.pw_gid)}
    admin, reader = config.control.admin_group, config.control.group
    if admin in names and reader and reader not in names:
        yield Check(
            "you",
            "attention",
            f"{user.pw_name} is in {admin!r}, but only {reader!r} may use the control socket",
            f"Run usermod -aG {reader} {user.pw_name}, then log in again",
        )
    elif admin in names:
        yield Check("you", "ok", f"{user.pw_name} is in {admin!r} and may change things")
    elif reader in names:
        yield Check("you", "ok", f"{user.pw_name} is in {reader!r} and may look")
    else:
        yield Check(
            "you",
            "attention",
            f"{user.pw_name} is neither in {reader!r} nor in {admin!r}",
            f"Run usermod -aG {reader} {user.pw_name}, then log in again",
        )


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _state(config: Config) -> Iterator[Check]:
    for name, folder, secret in (
        ("state folder", config.storage.state, True),
        ("scripts folder", config.storage.scripts, False),
    ):
        try:
            info = folder.stat()
        except FileNotFoundError:
            yield Check(
                name,
                "attention",
                f"{folder} does not exist yet",
                "archid init or archid join makes it",
            )
            continue
        except OSError as error:
            yield Check(name, "skipped", f"{folder} cannot be looked at ({error.strerror})")
            continue
        if secret and info.st_mode & 0o007:
            yield Check(
                name,
                "failed",
                f"Everybody on this machine may enter {folder}",
                f"Run chmod o= {folder}",
            )
        elif os.statvfs(folder).f_flag & os.ST_RDONLY:
            yield Check(
                name, "failed", f"{folder} is on a read-only file system", "Mount it writable"
            )
        else:
            yield Check(
                name, "ok", f"{folder}, {stat.filemode(info.st_mode)}, of {_owner(info.st_uid)}"
            )


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _identity(config: Config) -> Check:
    from archid.identity import Identity
    from archid.membership import Membership

    folder = config.storage.state / "identity"
    if not config.storage.state.exists():
        return Check("identity", "failed", "This machine belongs to no fleet yet", NEXT_STEP)
    if not os.access(config.storage.state, os.X_OK) or (
        folder.exists() and not os.access(folder, os.R_OK | os.X_OK)
    ):
        return Check("identity", "skipped", "Only root and the daemon's user may look at it")
    try:
        membership = Membership.load(folder)
        identity = Identity.load(config.storage.state)
    except ArchidError as error:
        return Check("identity", "failed", error.message, error.remedy)
    return Check(
        "identity",
        "ok",
        f"Node {identity.node_id.short} of the fleet {membership.fleet_name!r}",
    )


def _space(config: Config) -> Iterator[Check]:
    seen: set[int] = set()
    for folder in (config.storage.state, config.storage.scripts):
        place = next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))
        device = place.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        usage = shutil.disk_usage(place)
        sentence = f"{figures.size(usage.free)} of {figures.size(usage.total)} are free at {folder}"
        if usage.free < config.storage.keep_free_bytes:
            yield Check(
                "disk space",
                "failed",
                f"{sentence}; {figures.size(config.storage.keep_free_bytes)} are kept free,"
                " so nothing more is fetched",
                "Make room, or lower keep_free in [storage]",
            )
        else:
            yield Check("disk space", "ok", sentence)


def _daemon(session: Session) -> tuple[dict[str, Any] | None, Check]:
    try:
        status = session.call("status")
    except Unavailable as error:
        return None, Check("daemon", "failed", error.message, error.remedy)
    except ArchidError as error:
        return None, Check("daemon", "attention", error.message, error.remedy)
    running = figures.duration(status["now_s"] - status["started_s"])
    return status, Check("daemon", "ok", f"Running for {running}, pid {status['pid']}")


def _ports(config: Config) -> Iterator[Check]:
    for address in config.network.listen:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address.host, address.port))
            except OSError as error:
                yield Check(
                    "ports",
                    "failed",
                    f"{address} cannot be listened on ({error.strerror})",
                    "See what uses it (ss -ltnp), or change listen in [network]",
                )
            else:
                yield Check("ports", "ok", f"{address} is free for the daemon")


def _clock(config: Config, status: dict[str, Any] | None) -> Check:
    if status is not None:
        return _clock_by_daemon(status)
    from archid.store.trust_file import TrustFile

    try:
        saved = TrustFile(config.storage.state / "trust").load()
    except ArchidError as error:
        return Check("clock", "skipped", error.message, error.remedy)
    if saved is None or not saved.newest_issued_s:
        return Check("clock", "skipped", "There is no head to compare the clock with")
    behind_s = saved.newest_issued_s - time.time()
    if behind_s > CLOCK_TOLERANCE_S:
        return Check(
            "clock",
            "failed",
            f"This machine's clock is {figures.duration(behind_s)} behind the newest head",
            SET_CLOCK,
        )
    return Check("clock", "ok", "The clock is not behind the newest head")


def _clock_by_daemon(status: dict[str, Any]) -> Check:
    """What the daemon found by the newest signature and by what all its peers say."""
    for reason in status["health"]["reasons"]:
        if reason["code"].startswith("clock"):
            return Check("clock", "failed", reason["sentence"], SET_CLOCK)
    if status["trust"] is None:
        return Check("clock", "skipped", "There is no head to compare the clock with")
    judges = ("central", "repo")  # whose clocks the daemon compares with
    if any(peer["state"] == "admitted" and peer["role"] in judges for peer in status["peers"]):
        return Check("clock", "ok", "The clock agrees with the newest head and the peers")
    return Check("clock", "ok", "The clock is not behind the newest head")


def _from_status(status: dict[str, Any]) -> Iterator[Check]:
    admitted = sum(peer["state"] == "admitted" for peer in status["peers"])
    if admitted or status["role"] == "central":
        yield Check("peers", "ok", f"{figures.count(admitted, 'peer')} connected")
    else:
        reasons = sorted({peer["reason"] for peer in status["peers"] if peer["reason"]})
        yield Check(
            "peers",
            "failed",
            "No peer is connected" + (f" ({'; '.join(reasons)})" if reasons else ""),
            "Check peers in [network], the line and the firewall",
        )
    for reason in status["health"]["reasons"]:
        if reason["code"].startswith("clock"):
            continue  # the check above said it
        state: State = "failed" if reason["level"] == "alarm" else "attention"
        yield Check("health", state, reason["sentence"], reason["remedy"])
