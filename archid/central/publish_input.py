"""The inputs of a publication, as a client sends them: checked for their form and handed on.

There are three: entries of which every file comes with its descriptor; entries that are only
announced, because the folder was published before; and, for those of them that were asked for,
descriptors. Whether entries make a tree is the store's to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NoReturn

from archid.errors import UsageError
from archid.source_listing import FACTS_BYTES
from archid.store.announced import Announced, AnnouncedFile, AnnouncedFolder, AnnouncedLink
from archid.store.ingest import Ingest
from archid.store.intake import SourceFile

_BAD_INPUT: Final = "invalid_params"
_REMEDY: Final = "Use the archid command of the daemon's version"
_MAX_SIZE: Final = 2**63 - 1

Entry = dict[str, Any]


def entries_in(body: dict[str, Any], key: str) -> list[Entry]:
    """The entries of an input, under `key`, each with what it needs.

    Raises UsageError: a client of another version must not look like a failure of the daemon.
    """
    entries = body.get(key)
    if not isinstance(entries, list):
        raise UsageError("An input of publish holds neither entries nor commit", code=_BAD_INPUT)
    for entry in entries:
        match entry:
            case {"type": "file", "path": str(), "executable": bool(), "mtime_ns": int()}:
                continue
            case {"type": "folder", "path": str()}:
                continue
            case {"type": "link", "path": str(), "target": str()}:
                continue
        _refuse(entry)
    return entries


def announced_in(entries: Sequence[Entry]) -> list[Announced]:
    """The same entries, announced: files also say their size and their facts."""
    found: list[Announced] = []
    for entry in entries:
        match entry:
            case {"type": "file", "path": path, "executable": executable,
                  "size": int(size), "facts": str(facts)} if 0 <= size <= _MAX_SIZE:  # fmt: skip
                found.append(AnnouncedFile(path, executable, size, _facts(entry, facts)))
            case {"type": "folder", "path": path}:
                found.append(AnnouncedFolder(path))
            case {"type": "link", "path": path, "target": target}:
                found.append(AnnouncedLink(path, target))
            case _:
                _refuse(entry)
    return found


def add_entries(ingest: Ingest, entries: Sequence[Entry], descriptors: Sequence[int]) -> None:
    """Entries in path order, each file with the next descriptor; blocks, for a worker thread."""
    waiting = iter(descriptors)
    files: list[SourceFile] = []
    for entry in entries:
        if entry["type"] == "file":
            descriptor = next(waiting, None)
            if descriptor is None:
                raise UsageError(f"No descriptor came with the file {entry['path']!r}")
            files.append(_source(entry, descriptor))
            continue
        if files:
            ingest.add_files(files)
            files = []
        if entry["type"] == "folder":
            ingest.add_folder(entry["path"])
        else:
            ingest.add_link(entry["path"], entry["target"])
    if files:
        ingest.add_files(files)
    if next(waiting, None) is not None:
        raise UsageError("More descriptors came than files")


def bring_files(ingest: Ingest, entries: Sequence[Entry], descriptors: Sequence[int]) -> None:
    """The next wanted files with their descriptors; blocks, for a worker thread."""
    if not descriptors or len(descriptors) > len(entries):
        raise UsageError(
            f"{len(descriptors)} descriptors came where {len(entries)} were asked for",
            remedy=_REMEDY,
        )
    ingest.bring([_source(entry, fd) for entry, fd in zip(entries, descriptors, strict=False)])


def _source(entry: Entry, descriptor: int) -> SourceFile:
    return SourceFile(entry["path"], descriptor, entry["executable"], entry["mtime_ns"])


def _facts(entry: Entry, text: str) -> bytes:
    try:
        facts = bytes.fromhex(text)
    except ValueError:
        _refuse(entry)
    if len(facts) != FACTS_BYTES:
        _refuse(entry)
    return facts


def _refuse(entry: object) -> NoReturn:
    raise UsageError(
        f"An entry to publish is none: {str(entry)[:200]!r}", remedy=_REMEDY, code=_BAD_INPUT
    )
