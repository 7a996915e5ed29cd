"""The entries of a tree in flat arrays say what a list of objects would."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.entries import Entry, EntryTable, FileEntry
from protocol.limits import MAX_FILE_BYTES
from protocol.pieces import MAX_MTIME_NS, Folder, Link

_PATHS = st.text(min_size=1, max_size=12)
_FILES = st.tuples(
    st.integers(0, MAX_FILE_BYTES),
    st.booleans(),
    st.integers(0, MAX_MTIME_NS),
    st.integers(0, 2000),
)
_TREES = st.dictionaries(_PATHS, st.none() | _PATHS | _FILES, max_size=30)


def _filled(
    tree: dict[str, str | tuple[int, bool, int, int] | None],
) -> tuple[EntryTable, list[Entry]]:
    """A table, and the objects that were put into it."""
    table, objects = EntryTable(), list[Entry]()
    number = first_chunk = 0
    for path in sorted(tree):
        match tree[path]:
            case None:
                table.add_folder(path)
                objects.append(Folder(path))
            case str(target):
                table.add_link(path, target)
                objects.append(Link(path, target))
            case (size_bytes, executable, mtime_ns, chunks):
                table.add_file(
                    path,
                    size_bytes=size_bytes,
                    executable=executable,
                    mtime_ns=mtime_ns,
                    chunks=chunks,
                )
                objects.append(
                    FileEntry(path, size_bytes, executable, mtime_ns, number, first_chunk, chunks)
                )
                number, first_chunk = number + 1, first_chunk + chunks
    return table, objects


@given(_TREES)
def test_what_comes_out_is_what_went_in(
    tree: dict[str, str | tuple[int, bool, int, int] | None],
) -> None:
    table, objects = _filled(tree)
    files = [entry for entry in objects if isinstance(entry, FileEntry)]
    assert list(table) == objects == table[:]
    assert list(reversed(table)) == objects[::-1] == table[::-1]
    assert list(table.files) == files == table.files[:]
    assert table.folders() == [entry.path for entry in objects if isinstance(entry, Folder)]
    assert table.links() == [entry for entry in objects if isinstance(entry, Link)]
    assert list(table.files.empty()) == [file for file in files if not file.size_bytes]
    assert list(table.files.chunk_counts()) == [file.chunk_count for file in files]
    for number, file in enumerate(files):
        assert table.files.path(number) == file.path
        assert table.files.size_bytes(number) == file.size_bytes
        assert table.files.facts(number) == file[1:4]
        stop = file.first_chunk + file.chunk_count
        assert table.files.chunks(number) == range(file.first_chunk, stop)


@given(_TREES, _PATHS)
def test_every_entry_is_found_by_its_path_and_no_other_is(
    tree: dict[str, str | tuple[int, bool, int, int] | None], other: str
) -> None:
    table, objects = _filled(tree)
    for at, entry in enumerate(objects):
        assert table.position(entry.path) == at
        assert table.find(entry.path) == entry
    if other not in tree:
        assert table.position(other) is None
        assert table.find(other) is None


def test_a_name_that_is_not_utf8_is_nobodys() -> None:
    table, _ = _filled({"a": None})
    assert table.find("a\udcff") is None


@pytest.mark.parametrize("at", [2, -3])
def test_beyond_the_last_entry_there_is_nothing(at: int) -> None:
    table, objects = _filled({"a": None, "b": (1, True, 2, 1)})
    assert table[-1] == objects[-1] == table.files[-1]
    with pytest.raises(IndexError):
        table[at]
    with pytest.raises(IndexError):
        table.files[at]


def test_ten_thousand_files_take_their_paths_and_little_more() -> None:
    paths = [f"folder/{n:026}" for n in range(10_000)]
    tracemalloc.start()
    try:
        table = EntryTable()
        for path in paths:
            table.add_file(path, size_bytes=2**40, executable=True, mtime_ns=2**60, chunks=1)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < len(paths) * 90
