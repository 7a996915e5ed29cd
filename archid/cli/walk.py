"""The folder that is to be published, looked at as the calling user.

The whole tree is listed before anything is sent, so that everything that cannot be published is
named at once and the daemon gets the entries in the order of their paths' bytes. Links are never
followed. Whether the paths make a tree is judged by the protocol's own rules; the daemon judges
again, since it trusts no client.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from archid.errors import ArchidError, Conflict, NotFound, StorageError, UsageError
from archid.source_listing import SourceListing, facts_of
from protocol.paths import PathRefused, TreeShape, printable

SHOWN_PROBLEMS: Final = 10
BATCH_DESCRIPTORS: Final = 128
BATCH_ENTRIES: Final = 2000
BATCH_BYTES: Final = 256 * 1024
_SPECIAL: Final = (
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISFIFO, "is a pipe"),
    (stat.S_ISBLK, "is a device"),
    (stat.S_ISCHR, "is a device"),
)


class Found(NamedTuple):
    """One entry of the folder."""

    path: str
    type: Literal["file", "folder", "link"]
    size: int
    executable: bool
    mtime_ns: int
    target: str
    facts: bytes = b""
    """Of a file, see `archid.source_listing`."""

    def to_json(self) -> dict[str, Any]:
        """As the control socket wants it."""
        return {**self._asdict(), "facts": self.facts.hex()}


@dataclass
class Walk:
    """What was found in `folder`, in path order."""

    folder: Path
    entries: list[Found] = field(default_factory=list)

    @property
    def file_count(self) -> int:
        """How many entries are files."""
        return sum(entry.type == "file" for entry in self.entries)

    @property
    def size_bytes(self) -> int:
        """How much the files hold."""
        return sum(entry.size for entry in self.entries)

    def listing(self) -> bytes:
        """The digest of everything that was found."""
        listing = SourceListing()
        for entry in self.entries:
            if entry.type == "file":
                listing.add_file(entry.path, entry.executable, entry.size, entry.facts)
            elif entry.type == "folder":
                listing.add_folder(entry.path)
            else:
                listing.add_link(entry.path, entry.target)
        return listing.digest()

    def batches(self, descriptors: int | None = BATCH_DESCRIPTORS) -> Iterator[list[Found]]:
        """The entries in order, cut so that each part fits one message of the control socket.

        Together with the `descriptors` of its files; with None they come later.
        """
        batch: list[Found] = []
        files = size = 0
        for entry in self.entries:
            entry_bytes = len(json.dumps(entry.to_json(), ensure_ascii=False).encode()) + 1
            if batch and (
                len(batch) == BATCH_ENTRIES
                or (entry.type == "file" and files == descriptors)
                or size + entry_bytes > BATCH_BYTES
            ):
                yield batch
                batch, files, size = [], 0, 0
            batch.append(entry)
            files += entry.type == "file"
            size += entry_bytes
        if batch:
            yield batch


def walk(folder: Path, *, on_progress: Callable[[int], None] | None = None) -> Walk:
    """List `folder`; `on_progress` is told how many entries were found, now and then.

    Raises NotFound if it does not exist, UsageError naming every entry (the first ten) that
    cannot be published and why.
    """
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise UsageError(
                f"{folder} is not a folder", remedy="Publish the folder that holds the script"
            )
    except FileNotFoundError as error:
        raise NotFound(
            f"There is no folder {folder}", remedy="Check the path; nothing was published"
        ) from error
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be read ({error.strerror})",
            remedy="Check the path and its permissions; nothing was published",
        ) from error
    found = Walk(folder)
    problems: list[str] = []
    waiting = [("", os.fspath(folder))]
    while waiting:
        prefix, place = waiting.pop()
        try:
            with os.scandir(place) as listing:
                for item in listing:
                    entry = _look(item, prefix, problems)
                    if entry is not None:
                        found.entries.append(entry)
                        if entry.type == "folder":
                            waiting.append((entry.path + "/", item.path))
        except OSError as error:
            problems.append(f"{printable(prefix or '.')} cannot be listed ({error.strerror})")
        if on_progress is not None:
            on_progress(len(found.entries))
    found.entries.sort(key=lambda entry: entry.path)  # by code point, which is by UTF-8 bytes
    _check_shape(found, problems)
    if problems:
        raise _refused(folder, problems)
    return found


def _look(item: os.DirEntry[str], prefix: str, problems: list[str]) -> Found | None:
    path = prefix + item.name
    try:
        item.name.encode()
    except UnicodeEncodeError:
        problems.append(f"{printable(path)} has a name that is not UTF-8")
        return None
    try:
        info = item.stat(follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            return Found(path, "folder", 0, False, info.st_mtime_ns, "")
        if stat.S_ISLNK(info.st_mode):
            target = os.readlink(item.path)
            target.encode()
            return Found(path, "link", 0, False, info.st_mtime_ns, target)
        if stat.S_ISREG(info.st_mode):
            if not os.access(item.path, os.R_OK):
                problems.append(f"{printable(path)} may not be read by this user")
                return None
            executable = bool(info.st_mode & stat.S_IXUSR)
            return Found(
                path, "file", info.st_size, executable, info.st_mtime_ns, "", facts_of(info)
            )
    except UnicodeEncodeError:
        problems.append(f"{printable(path)} is a link to a name that is not UTF-8")
    except OSError as error:
        problems.append(f"{printable(path)} cannot be looked at ({error.strerror})")
    else:
        why = next((words for is_it, words in _SPECIAL if is_it(info.st_mode)), "is no file")
        problems.append(f"{printable(path)} {why}")
    return None


def _check_shape(found: Walk, problems: list[str]) -> None:
    """Name every entry that does not fit into one tree, but nothing inside a refused folder."""
    shape = TreeShape()
    add = {"file": shape.add_file, "folder": shape.add_folder}
    refused: set[str] = set()
    for entry in found.entries:
        if refused and not refused.isdisjoint(_folders_above(entry.path)):
            continue
        try:
            if entry.type == "link":
                shape.add_link(entry.path, entry.target)
            else:
                add[entry.type](entry.path)
        except PathRefused as error:
            problems.append(str(error))
            refused.add(entry.path)
    if not problems:
        try:
            shape.finish()
        except PathRefused as error:
            problems.append(str(error))


def _folders_above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _refused(folder: Path, problems: list[str]) -> UsageError:
    problems.sort()
    shown = problems[:SHOWN_PROBLEMS]
    more = len(problems) - len(shown)
    listing = f" {problems[0]}"
    if len(problems) > 1:  # one a line, as the mistakes of a file are
        rest = f"\n  and {more} more" if more else ""
        listing = "".join(f"\n  {problem}" for problem in shown) + rest
    return UsageError(
        f"{folder} cannot be published as it is:{listing}",
        remedy="Remove, rename or repair these, then publish again; nothing was published",
        code="folder_unfit",
    )


def open_files(found: Walk, batch: list[Found]) -> list[int]:
    """Open the files of one batch, which must be as `walk` found them; returns the descriptors.

    Raises Conflict or StorageError naming the file, with everything closed again, if one has
    gone, has changed or cannot be read.
    """
    descriptors: list[int] = []
    try:
        for entry in batch:
            if entry.type == "file":
                descriptors.append(_open(found.folder, entry))  # noqa: PERF401 - closed if one fails
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return descriptors


def check_unchanged(found: Walk) -> None:
    """Look at the whole folder again; raise Conflict naming something that is not as it was.

    A version whose files are of different moments would be one that nobody made.
    """
    try:
        again = walk(found.folder)
    except ArchidError as error:
        raise _changed(found.folder) from error
    different = set(found.entries).symmetric_difference(again.entries)
    if different:
        # A folder differs because of what it holds, so what it holds says more.
        changed = min(different, key=lambda entry: (entry.type == "folder", entry.path))
        raise _changed(found.folder / changed.path)


def _open(folder: Path, entry: Found) -> int:
    path = folder / entry.path
    # NONBLOCK so that a pipe that took the file's place does not make this wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError) or (
            path.is_symlink()
        ):
            raise _changed(path) from error
        raise StorageError(
            f"{path} cannot be opened ({error.strerror})",
            remedy="Look at the disk that holds it; nothing was published",
        ) from error
    info = os.fstat(descriptor)
    now = entry._replace(
        size=info.st_size,
        mtime_ns=info.st_mtime_ns,
        executable=bool(info.st_mode & stat.S_IXUSR),
        facts=facts_of(info),
    )
    if not stat.S_ISREG(info.st_mode) or now != entry:
        os.close(descriptor)
        raise _changed(path)
    return descriptor


def _changed(path: Path) -> Conflict:
    return Conflict(
        f"{path} changed while it was being published",
        remedy="Publish again when nothing writes to the folder; nothing was published",
        code="changed_while_reading",
    )
