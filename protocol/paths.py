"""Which paths, names and links a manifest may hold.

The same rules hold where a script is published and where it is received: a tree that breaks
one is refused as a whole, before a byte of it is asked for. A path that passes can be joined to
a tree's folder without leaving it, on any filesystem that tells upper from lower case or not.
Opening and writing files is left to the store.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from protocol.errors import FormatError
from protocol.limits import (
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    MAX_PATH_DEPTH,
    MAX_SCRIPT_NAME_BYTES,
)

MAX_LINK_FOLLOWS: Final = 40
"""As many links as Linux follows before it gives up with ELOOP."""

_AFTER_SLASH: Final = chr(ord("/") + 1)
"""A folder's path and this is the first that sorts after everything in the folder."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_UNDECODED: Final = re.compile(r"(?<!\\)\\udc([89a-f][0-9a-f])")
"""How `repr` shows a byte of a file name that is not UTF-8."""
_KIND: Final = re.compile("[a-z][a-z0-9-]{0,31}")


class PathRefused(FormatError):
    """A path, a name or a link that no manifest may hold; says which and why."""

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"{printable(path)} {why}")


def printable(path: str) -> str:
    """`path` in quotes, safe to show on a terminal and not endless."""
    shown = repr(path if len(path) <= 160 else path[:157] + "...")
    return _UNDECODED.sub(r"\\x\1", shown)


def check_path(path: str) -> None:
    """Raise PathRefused unless `path` is a relative path that stays where it is put."""
    size = _byte_length(path)
    if not path:
        raise PathRefused(path, "is empty")
    if size > MAX_PATH_BYTES:
        raise PathRefused(path, f"has {size} bytes where at most {MAX_PATH_BYTES} are allowed")
    if _CONTROL.search(path):
        raise PathRefused(path, "holds a control character")
    if path[0] == "/":
        raise PathRefused(path, "is absolute")
    parts = path.split("/")
    if len(parts) > MAX_PATH_DEPTH:
        raise PathRefused(path, f"is nested deeper than {MAX_PATH_DEPTH} folders")
    for part in parts:
        if not part:
            raise PathRefused(path, "has an empty part")
        if part in (".", ".."):
            raise PathRefused(path, f"has the part {part!r}")
        if size > MAX_NAME_BYTES and _byte_length(part) > MAX_NAME_BYTES:
            raise PathRefused(path, f"has a part of more than {MAX_NAME_BYTES} bytes")


def check_link(path: str, target: str) -> None:
    """Raise PathRefused unless the link at `path` is relative and, read as text, stays inside.

    Links that lead through other links are judged by `TreeShape.finish`, which knows them all.
    """
    check_path(path)
    why = _target_fault(path, target)
    if why:
        raise PathRefused(path, f"is a link to {printable(target)}, which {why}")


def check_script_name(name: str) -> None:
    """Raise PathRefused unless `name` can name a script: it becomes one folder entry."""
    size = _byte_length(name)
    if size > MAX_SCRIPT_NAME_BYTES:
        raise PathRefused(
            name, f"has {size} bytes where a name has at most {MAX_SCRIPT_NAME_BYTES}"
        )
    if not name:
        raise PathRefused(name, "is empty")
    if "/" in name:
        raise PathRefused(name, "holds a slash, which a name cannot")
    if name[0] == ".":
        raise PathRefused(name, "starts with a dot, which a name cannot")
    if _CONTROL.search(name):
        raise PathRefused(name, "holds a control character")
    if name != name.strip():
        raise PathRefused(name, "starts or ends with a space")
    if unicodedata.normalize("NFC", name) != name:
        raise PathRefused(name, "is not in Unicode normalisation form C, so two could look alike")


def check_kind(kind: str) -> None:
    """Raise PathRefused unless `kind` is a lower-case word such as ``feature``."""
    if not _KIND.fullmatch(kind):
        raise PathRefused(kind, "is not a kind: 1 to 32 of a-z, 0-9 and -, a letter first")


def folded(path: str) -> str:
    """What two paths have in common that some filesystem would take for the same."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", path).casefold()


class TreeShape:
    """Checks the entries of one tree as they come in path order.

    Order is that of the paths' UTF-8 bytes, which is also the order of Python's `str`. Every
    folder is an entry, so a parent comes before what it holds, and of the names in a folder
    nothing has to be kept once a path comes that sorts after all it can hold. Paths that are
    equal after `folded` collide: those of one folder, since `folded` leaves slashes where they
    are and two folders that are equal collide themselves. `finish` follows the links through one
    another.
    """

    def __init__(self) -> None:
        self._last = ""
        self._open: dict[str, dict[str, str]] = {"": {}}
        self._ends: list[str] = []
        self._links: dict[str, str] = {}
        self._resolved: dict[str, tuple[tuple[str, ...], int]] = {}

    def add_file(self, path: str) -> None:
        """Raise PathRefused unless a file can be here."""
        self._add(path)

    def add_folder(self, path: str) -> None:
        """Raise PathRefused unless a folder can be here."""
        self._add(path)
        self._open[path] = {}
        self._ends.append(path + _AFTER_SLASH)

    def add_link(self, path: str, target: str) -> None:
        """Raise PathRefused unless a link to `target` can be here."""
        check_link(path, target)
        self._add(path)
        self._links[path] = target

    def finish(self) -> None:
        """Raise PathRefused when a link leaves the tree by way of other links, or circles."""
        for path in self._links:
            self._resolve(path, 1)

    def _add(self, path: str) -> None:
        while self._ends and path >= self._ends[-1]:
            self._ends.pop()
            self._open.popitem()
        parent, _, name = path.rpartition("/")
        siblings = self._open.get(parent)
        if siblings is None or not _is_usual(path, name):
            check_path(path)
        if path <= self._last:
            why = "appears twice" if path == self._last else f"comes after {printable(self._last)}"
            raise PathRefused(path, f"{why}: entries are in the order of their paths' bytes")
        if siblings is None:
            raise PathRefused(path, f"lies in {printable(parent)}, which is not a folder here")
        other = siblings.setdefault(folded(name), name)
        if other is not name:
            other = f"{parent}/{other}" if parent else other
            raise PathRefused(
                path, f"and {printable(other)} differ only by case or by Unicode normalisation"
            )
        self._last = path

    def _resolve(self, path: str, depth: int) -> tuple[tuple[str, ...], int]:
        """Where the link at `path` leads, as the kernel would follow it, and by how many links."""
        known = self._resolved.get(path)
        if known is not None:
            return known
        if depth > MAX_LINK_FOLLOWS:
            raise PathRefused(path, "is a link that leads through too many links or in a circle")
        at = path.split("/")[:-1]
        follows = 1
        for part in self._links[path].split("/"):
            if part in ("", "."):
                continue
            if part == "..":
                if not at:
                    raise PathRefused(path, "is a link that leaves the tree through other links")
                at.pop()
                continue
            at.append(part)
            if len(at) > MAX_PATH_DEPTH:
                raise PathRefused(path, f"is a link that leads deeper than {MAX_PATH_DEPTH}")
            step = "/".join(at)
            if step in self._links:
                reached, more = self._resolve(step, depth + 1)
                at = list(reached)
                follows += more
                if follows > MAX_LINK_FOLLOWS:
                    raise PathRefused(path, "is a link that leads through too many links")
        result = (tuple(at), follows)
        self._resolved[path] = result
        return result


def _is_usual(path: str, name: str) -> bool:
    """Whether `check_path` finds nothing wrong where what is above `name` was checked before."""
    return (
        path.isascii()
        and name.isprintable()
        and name not in ("", ".", "..")
        and path[0] != "/"
        and len(path) <= MAX_NAME_BYTES
        and path.count("/") < MAX_PATH_DEPTH
    )


def _target_fault(path: str, target: str) -> str:
    if not target:
        return "is empty"
    if _byte_length(target) > MAX_PATH_BYTES:
        return f"has more than {MAX_PATH_BYTES} bytes"
    if _CONTROL.search(target):
        return "holds a control character"
    if target[0] == "/":
        return "is absolute"
    depth = path.count("/")
    for part in target.split("/"):
        if _byte_length(part) > MAX_NAME_BYTES:
            return f"has a part of more than {MAX_NAME_BYTES} bytes"
        if part == "..":
            depth -= 1
            if depth < 0:
                return "leaves the tree"
        elif part not in ("", "."):
            depth += 1
    return ""


def _byte_length(text: str) -> int:
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise PathRefused(text, "is not valid UTF-8; rename it") from error
