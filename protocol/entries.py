"""The entries of a tree as flat arrays: all paths in one string, what is said of files in columns.

A tree of 100,000 files is ordinary, and as an object each its entries would be 400 bytes of small
pieces of memory an entry, which live as long as the tree is worked on and leave a process in
shreds afterwards. Here they take about 40 bytes and their path, and an entry becomes an object
when somebody asks for it. What entries a tree may have is checked before they come here.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias, overload

from protocol.pieces import Folder, Link

_NO_FILE: Final = 2**32 - 1


class FileEntry(NamedTuple):
    """A file; its chunks: the one at `first_chunk`, `chunk_count` in all."""

    path: str
    size_bytes: int
    executable: bool
    mtime_ns: int
    number: int
    first_chunk: int
    chunk_count: int

    @property
    def mode(self) -> int:
        """The mode on disk: read-only for everybody, executable or not."""
        return mode_of(self.executable)


def mode_of(executable: bool | int) -> int:
    """The mode of a file on disk."""
    return 0o555 if executable else 0o444


FolderEntry = Folder
LinkEntry = Link
Entry: TypeAlias = "FileEntry | FolderEntry | LinkEntry"


class EntryTable(Sequence[Entry]):
    """Every entry, in path order; `files` are the files among them, numbered in the same order."""

    def __init__(self) -> None:
        self._names = bytearray()
        self._ends = array("Q", [0])
        self._file_of = array("I")
        self._targets: dict[int, str] = {}
        self.files: Final = FileTable(self._names, self._ends)

    def add_folder(self, path: str) -> None:
        """Add the next entry."""
        self._add(path, _NO_FILE)

    def add_link(self, path: str, target: str) -> None:
        """Add the next entry."""
        self._targets[len(self)] = target
        self._add(path, _NO_FILE)

    def add_file(
        self, path: str, *, size_bytes: int, executable: bool, mtime_ns: int, chunks: int
    ) -> None:
        """Add the next entry, whose chunks come after those of the file before."""
        number = self.files.add(len(self._file_of), size_bytes, executable, mtime_ns, chunks)
        self._add(path, number)

    def find(self, path: str) -> Entry | None:
        """The entry of this path, if there is one."""
        at = self.position(path)
        return None if at is None else self[at]

    def position(self, path: str) -> int | None:
        """The index of the entry of this path, if there is one."""
        try:
            wanted = path.encode()
        except UnicodeEncodeError:
            # A name on a disk that is not UTF-8 is the name of nothing here.
            return None
        at = bisect_left(range(len(self)), wanted, key=self._name)
        return at if at < len(self) and self._name(at) == wanted else None

    def path(self, at: int) -> str:
        """The path of the entry at an index."""
        return self._names[self._ends[at] : self._ends[at + 1]].decode()

    def folders(self) -> list[str]:
        """The paths of all folders, each before what it holds."""
        return [
            self.path(at)
            for at, number in enumerate(self._file_of)
            if number == _NO_FILE and at not in self._targets
        ]

    def links(self) -> list[LinkEntry]:
        """All links, in path order."""
        return [Link(self.path(at), target) for at, target in self._targets.items()]

    @overload
    def __getitem__(self, at: int) -> Entry: ...

    @overload
    def __getitem__(self, at: slice) -> list[Entry]: ...

    def __getitem__(self, at: int | slice) -> Entry | list[Entry]:
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        number = self._file_of[at]
        if number != _NO_FILE:
            return self.files[number]
        target = self._targets.get(at)
        return Folder(self.path(at)) if target is None else Link(self.path(at), target)

    def __len__(self) -> int:
        return len(self._file_of)

    def _add(self, path: str, number: int) -> None:
        names = self._names
        names += path.encode()
        self._ends.append(len(names))
        self._file_of.append(number)

    def _name(self, at: int) -> bytes:
        return bytes(self._names[self._ends[at] : self._ends[at + 1]])


class FileTable(Sequence[FileEntry]):
    """The files of a tree by their numbers. Asking for one figure makes no object of the file."""

    def __init__(self, names: bytearray, ends: array[int]) -> None:
        """`names` and `ends` are those of all entries, which add them."""
        self._names = names
        self._ends = ends
        self._entry_of = array("I")
        self._sizes = array("Q")
        self._executable = bytearray()
        self._mtimes = array("Q")
        self._chunk_starts = array("I", [0])

    def add(self, entry: int, size_bytes: int, executable: bool, mtime_ns: int, chunks: int) -> int:
        """For `EntryTable`: add the file that is the entry at an index; gives its number."""
        self._entry_of.append(entry)
        self._sizes.append(size_bytes)
        self._executable.append(executable)
        self._mtimes.append(mtime_ns)
        self._chunk_starts.append(self._chunk_starts[-1] + chunks)
        return len(self._sizes) - 1

    def path(self, number: int) -> str:
        """The path of a file."""
        entry = self._entry_of[number]
        return self._names[self._ends[entry] : self._ends[entry + 1]].decode()

    def size_bytes(self, number: int) -> int:
        """The size of a file."""
        return self._sizes[number]

    def facts(self, number: int) -> tuple[int, int, int]:
        """What is said of a file but for its path: size, whether it is executable (0, 1), mtime."""
        return self._sizes[number], self._executable[number], self._mtimes[number]

    def chunks(self, number: int) -> range:
        """The numbers of a file's chunks."""
        return range(self._chunk_starts[number], self._chunk_starts[number + 1])

    def empty(self) -> Iterator[FileEntry]:
        """The files that hold nothing, and so have no chunks."""
        return (self[number] for number, size in enumerate(self._sizes) if not size)

    def chunk_counts(self) -> array[int]:
        """How many chunks each file has."""
        starts = self._chunk_starts
        return array("I", map(int.__sub__, starts[1:], starts))

    @overload
    def __getitem__(self, number: int) -> FileEntry: ...

    @overload
    def __getitem__(self, number: slice) -> list[FileEntry]: ...

    def __getitem__(self, number: int | slice) -> FileEntry | list[FileEntry]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if not 0 <= number < len(self._sizes):
            number = range(len(self))[number]
        first, end = self._chunk_starts[number], self._chunk_starts[number + 1]
        return FileEntry(
            self.path(number),
            self._sizes[number],
            bool(self._executable[number]),
            self._mtimes[number],
            number,
            first,
            end - first,
        )

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[FileEntry]:
        return map(self.__getitem__, range(len(self)))
