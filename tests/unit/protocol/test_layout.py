"""Laying a whole manifest out: what is refused, and where every byte goes."""

import dataclasses
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.canonical import Value, pack
from protocol.entries import FileEntry
from protocol.errors import FormatError, ProtocolError
from protocol.ids import PieceId
from protocol.layout import Layout, Place
from protocol.limits import MAX_CHUNK_BYTES
from protocol.manifest import ManifestRoot
from protocol.paths import PathRefused
from protocol.pieces import (
    FileContinuation,
    FileStart,
    Folder,
    Link,
    PieceRef,
    Record,
    chunk_table,
    encode_piece,
    table_lengths,
)
from tests.unit.protocol.trees import (
    FLEET,
    DrawnFile,
    DrawnTree,
    build,
    chunk_id,
    regular_tree,
    trees,
)

_A, _B = (chunk_id("a"), 10), (chunk_id("b"), 20)


def _forged(
    *pieces: tuple[list[Record], list[tuple[bytes, int]]], files: int | None = None
) -> tuple[ManifestRoot, list[bytes]]:
    """A root that is consistent with pieces that no builder would make."""
    datas: list[bytes] = []
    refs: list[PieceRef] = []
    records = [record for piece, _ in pieces for record in piece]
    for piece, chunks in pieces:
        table = chunk_table(chunks)
        data = encode_piece(piece, table)
        datas.append(data)
        refs.append(PieceRef(PieceId.of(data), len(data), len(chunks), sum(table_lengths(table))))
    root = ManifestRoot(
        fleet=FLEET,
        kind="feature",
        name="x",
        version=1,
        files=sum(isinstance(record, FileStart) for record in records) if files is None else files,
        folders=sum(isinstance(record, Folder) for record in records),
        links=sum(isinstance(record, Link) for record in records),
        size_bytes=sum(ref.size_bytes for ref in refs),
        chunk_count=sum(ref.chunk_count for ref in refs),
        pieces=tuple(refs),
    )
    return root, datas


def _start(path: str, size: int, chunks: int, *, more: bool = False) -> FileStart:
    return FileStart(path, False, 7, size, chunks, more)


@given(trees())
@settings(max_examples=150)
def test_every_byte_of_every_file_is_covered_once_and_in_order(tree: DrawnTree) -> None:
    root, pieces = build(tree)
    layout = Layout.from_pieces(root, pieces)
    assert [entry.path for entry in layout.entries] == sorted(tree)
    for entry in layout.entries:
        drawn = tree[entry.path]
        if isinstance(entry, Folder):
            assert drawn is None
        elif isinstance(entry, Link):
            assert drawn == entry.target
        else:
            assert isinstance(drawn, DrawnFile)
            assert layout.files[entry.number] == entry
            assert (entry.executable, entry.mtime_ns) == (drawn.executable, drawn.mtime_ns)
            found = list(layout.chunks_of(entry))
            assert tuple((chunk.id, chunk.length) for _, chunk in found) == drawn.chunks
            offset = 0
            for at, (place, chunk) in enumerate(found, entry.first_chunk):
                assert place == offset
                assert layout.place(at) == Place(entry.number, offset)
                offset += chunk.length
            assert offset == entry.size_bytes
            assert layout.table_of(entry) == chunk_table(drawn.chunks)
            assert layout.ids(layout.files.chunks(entry.number)) == b"".join(
                chunk for chunk, _ in drawn.chunks
            )


@given(trees())
@settings(max_examples=150)
def test_what_the_spans_want_is_every_distinct_chunk_once_with_all_its_places(
    tree: DrawnTree,
) -> None:
    root, pieces = build(tree)
    layout = Layout.from_pieces(root, pieces)
    written: dict[Place, bytes] = {}
    wanted: list[bytes] = []
    for span in layout.spans:
        assert layout.spans[layout.span_index(span.piece_index, span.n)] == span
        assert root.pieces[span.piece_index].id == span.piece
        assert sum(layout.chunk(at).length for at in span.chunks) == span.size_bytes
        asked = layout.wanted(span)
        assert sum(want.chunk.length for want in asked) == layout.wanted_bytes(span)
        for want in asked:
            wanted.append(want.chunk.id)
            assert layout.chunk(span.first_chunk + want.n) == want.chunk
            for place in want.places:
                assert place not in written
                written[place] = want.chunk.id
    assert len(wanted) == len(set(wanted)) == len(list(layout.distinct_chunks()))
    assert written == {layout.place(at): layout.chunk(at).id for at in range(layout.chunk_count)}
    for at in range(layout.chunk_count):
        assert layout.chunk(layout.home(at)) == layout.chunk(at)
        assert layout.place(at) in layout.places(at)


def test_a_run_of_equal_chunks_has_spans_in_its_first_piece_only() -> None:
    zeros = DrawnFile(
        executable=False, mtime_ns=0, chunks=((b"\xff" * 32, MAX_CHUNK_BYTES),) * 9_000
    )
    root, pieces = build({"zeros": zeros})
    assert len(pieces) < len(root.pieces)
    layout = Layout.from_pieces(root, pieces)
    indexes = [
        n
        for n in range(len(root.pieces))
        if root.pieces[n].id not in {r.id for r in root.pieces[:n]}
    ]
    assert [n for n in range(len(root.pieces)) if layout.spans_of_piece(n)] == indexes
    assert [len(layout.wanted(span)) for span in layout.spans] == [1] + [0] * (
        len(layout.spans) - 1
    )
    assert len(layout.places(0)) == 9_000


def test_asking_for_a_span_that_is_not_there_is_a_format_error() -> None:
    layout = Layout(*_forged(([_start("a", 10, 1)], [_A])))
    for piece_index, n in ((0, 1), (1, 0), (-1, 0), (0, -1), (2**60, 0)):
        with pytest.raises(FormatError):
            layout.span_index(piece_index, n)


@pytest.mark.parametrize(
    "pieces",
    [
        [([FileContinuation(1, False)], [_A])],
        [([_start("a", 10, 1)], [_A]), ([FileContinuation(1, False)], [_B])],
        [([_start("a", 30, 1, more=True)], [_A])],
        [([_start("a", 30, 1, more=True)], [_A]), ([Folder("b")], [])],
        [([_start("a", 30, 1, more=True)], [_A]), ([_start("b", 20, 1)], [_B])],
        [([_start("a", 11, 1)], [_A])],
        [([_start("a", 9, 1)], [_A])],
        [([_start("a", 10, 1, more=True)], [_A]), ([FileContinuation(1, False)], [_B])],
        [([_start("a", 25, 1, more=True)], [_A]), ([FileContinuation(1, False)], [_B])],
        [([_start("a", 10, 1), _start("b", 20, 1)], [_A, (_A[0], 20)])],
    ],
)
def test_files_that_do_not_add_up_are_refused(
    pieces: list[tuple[list[Record], list[tuple[bytes, int]]]],
) -> None:
    with pytest.raises(FormatError):
        Layout(*_forged(*pieces))


def test_a_file_may_go_on_over_several_pieces() -> None:
    layout = Layout(
        *_forged(
            ([Folder("A"), _start("a file", 60, 1, more=True)], [_A]),
            ([FileContinuation(1, True)], [_B]),
            ([FileContinuation(2, False), _start("b", 10, 1)], [_A, _B, _A]),
        )
    )
    assert layout.files[0] == FileEntry("a file", 60, False, 7, 0, 0, 4)
    assert layout.files[0].mode == 0o444
    assert layout.places(0) == [Place(0, 0), Place(0, 30), Place(1, 0)]
    assert [span.n for span in layout.spans] == [0, 0, 0]


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([Folder("../x")], r"'\.\.'"),
        ([Folder("/etc")], "absolute"),
        ([_start("a/b", 0, 0)], "not a folder"),
        ([_start("a", 0, 0), _start("a/b", 0, 0)], "not a folder"),
        ([_start("A", 0, 0), _start("a", 0, 0)], "only by case"),
        ([_start("e\u0301", 0, 0), _start("\u00e9", 0, 0)], "normalisation"),
        ([_start("b", 0, 0), _start("a", 0, 0)], "order"),
        ([_start("a", 0, 0), _start("a", 0, 0)], "twice"),
        ([Link("a", "/etc/passwd")], "absolute"),
        ([Link("a", "../b")], "leaves"),
        ([Folder("a"), Link("a/up", ".."), Link("b", "a/up/../x")], "leaves"),
        ([Link("a", "b"), Link("b", "a")], "circle"),
        ([Folder("a\x07")], "control"),
    ],
)
def test_a_tree_that_breaks_the_path_rules_is_refused_at_receipt(
    records: list[Record], why: str
) -> None:
    with pytest.raises(PathRefused, match=why):
        Layout(*_forged((records, [])))


def test_a_root_that_counts_other_entries_than_its_pieces_hold_is_refused() -> None:
    with pytest.raises(FormatError, match="entries"):
        Layout(*_forged(([_start("a", 10, 1)], [_A]), files=2))


def test_no_piece_is_read_beyond_the_entries_that_a_root_claims() -> None:
    a, b, c, d = [_start(name, 0, 0) for name in "abcd"]
    root, datas = _forged(([a], []), ([b], []), ([c], []), ([d], []), files=2)
    pieces = iter(datas)
    with pytest.raises(FormatError, match="more entries"):
        Layout(root, pieces)
    assert list(pieces) == datas[3:]


def test_content_that_is_encoded_otherwise_needs_a_newer_version() -> None:
    root, datas = _forged(([_start("a", 10, 1)], [_A]))
    sealed = dataclasses.replace(root, encoding=1, payload=b"")
    with pytest.raises(FormatError, match="newer version"):
        Layout(sealed, datas)


def test_an_empty_tree_is_a_tree() -> None:
    root, pieces = build({})
    layout = Layout.from_pieces(root, pieces)
    assert (list(layout.entries), list(layout.files), layout.spans) == ([], [], ())
    assert layout.chunk_count == 0


def test_offsets_beyond_four_gibibytes_are_exact() -> None:
    rows = tuple((chunk_id(n), MAX_CHUNK_BYTES) for n in range(40_000))
    tree: DrawnTree = {"big": DrawnFile(executable=False, mtime_ns=0, chunks=rows)}
    layout = Layout.from_pieces(*build(tree))
    assert layout.files[0].size_bytes == 40_000 * MAX_CHUNK_BYTES > 2**32
    assert layout.place(39_999) == Place(0, 39_999 * MAX_CHUNK_BYTES)


@given(st.data())
@settings(max_examples=100)
def test_pieces_of_nonsense_records_raise_nothing_but_protocol_errors(data: st.DataObject) -> None:
    text = st.sampled_from(["a", "a/b", "b", "..", "", "é", "a\0"])
    number = st.integers(-1, 3)
    row = st.one_of(
        st.tuples(st.just(0), text),
        st.tuples(st.just(1), text, text),
        st.tuples(st.just(2), text, st.booleans(), number, number, number, st.booleans()),
        st.tuples(st.just(3), number, st.booleans()),
    )
    records: list[Value] = data.draw(st.lists(row, max_size=6))
    count = data.draw(st.integers(0, 4))
    encoded = pack(["piece", 1, records, chunk_table([(chunk_id(n), 1) for n in range(count)])])
    root, _ = _forged(([Folder("a")], []))
    ref = PieceRef(PieceId.of(encoded), len(encoded), count, count)
    try:
        forged = dataclasses.replace(
            root, pieces=(ref,), chunk_count=count, size_bytes=count, payload=b""
        )
        Layout(forged, [encoded])
    except ProtocolError as error:
        str(error).encode()


def test_twenty_thousand_files_of_100000_chunks_are_laid_out_compactly() -> None:
    root, pieces = build(regular_tree(20_000, chunks=5))
    # A quadratic loop over the chunks would end at the time limit of the tests; usual are 0.3 s.
    tracemalloc.start()
    try:
        layout = Layout.from_pieces(root, pieces)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert layout.chunk_count == 100_000
    assert held_bytes < 100_000 * 50 + 20_000 * 90


def test_files_of_one_chunk_that_occurs_once_cost_no_object_each() -> None:
    root, pieces = build(regular_tree(20_000))
    tracemalloc.start()
    try:
        layout = Layout.from_pieces(root, pieces)
        held_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(layout.files) == 20_000
    assert held_bytes < 20_000 * 135
    # While it is built, too, hardly anything grows with the tree but what stays.
    assert peak_bytes < 20_000 * 250
