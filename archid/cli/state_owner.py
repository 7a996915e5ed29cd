"""Whose the state folder is: a command that writes it without a daemon does so as its owner.

An operator runs ``archid init`` or ``archid join`` as root, the service runs as a user of its
own. Handing files over afterwards would have root follow paths inside a folder that is another
user's; so root makes the outermost folders at most, and everything in them is written by their
owner. For anybody but root, and for a state folder of root's, all this does nothing.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from archid.errors import Denied, StorageError, UsageError


@dataclass(frozen=True)
class StateOwner:
    """A user other than root, and the groups that the user database gives it."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def of(cls, uid: int) -> StateOwner:
        """The owner with this id, known to the user database or not."""
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return cls(uid, uid, (uid,))
        return cls(uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))

    def become(self) -> None:
        """Be this user from now on, for good."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Be this user inside the block, in every thread; only root can."""
        groups = os.getgroups()
        self._act()
        try:
            yield
        finally:
            _be_root(groups)

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Inside a block of `acting`: be root again for what is the caller's own."""
        _be_root([0])
        try:
            yield
        finally:
            self._act()

    def _act(self) -> None:
        # The real ids as well, since access(2) goes by them; the saved ones lead back.
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, 0)
        os.setresuid(self.uid, self.uid, 0)


def _be_root(groups: Sequence[int]) -> None:
    os.seteuid(0)
    os.setresuid(0, 0, 0)
    os.setresgid(0, 0, 0)
    os.setgroups(groups)


def owner_of(state: Path, user: str = "") -> StateOwner | None:
    """Whom root acts as for this state folder: its owner, or `user` where it has none yet.

    None means that the caller acts as it is. Raises UsageError for a `user` that does not exist
    or is not the folder's owner, Denied when somebody else than root names one.
    """
    named = _named(user)
    if os.geteuid() != 0:
        if named is not None and named != os.geteuid():
            raise Denied(
                f"Only root can make a state folder for {user}", remedy="Run it as root, or as them"
            )
        return None
    try:
        uid = state.stat().st_uid
    except FileNotFoundError:
        uid = named or 0
    except OSError as error:
        raise StorageError(f"{state} cannot be looked at ({error.strerror})") from error
    if named is not None and uid != named:
        raise UsageError(
            f"The state folder {state} does not belong to {user}",
            remedy=f"Give it to that user (chown {user}: {state}), or leave --user out",
        )
    return StateOwner.of(uid) if uid else None


def make_places(owner: StateOwner | None, folders: Sequence[Path], *, mode: int = 0o700) -> None:
    """Make the folders that are not there and that only root could make; they are the owner's.

    Raises StorageError.
    """
    if owner is None:
        return
    for folder in folders:
        above = next((each for each in folder.parents if each.exists()), Path("/"))
        if folder.exists() or above.stat().st_uid != 0:
            continue
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
            os.chmod(folder, mode)
            os.chown(folder, owner.uid, owner.gid, follow_symlinks=False)
        except OSError as error:
            raise StorageError(f"{folder} cannot be made ({error.strerror})") from error


def acting(owner: StateOwner | None) -> AbstractContextManager[None]:
    """A block in which the owner acts, if there is one to act for."""
    return contextlib.nullcontext() if owner is None else owner.acting()


def _named(user: str) -> int | None:
    if not user:
        return None
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise UsageError(
            f"There is no user {user!r} on this machine",
            remedy="Install archid's service, which makes the user archid, or name another one",
        ) from None
