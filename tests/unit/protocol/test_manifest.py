"""Manifest roots, pieces, and where pieces are cut."""

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.canonical import Value, pack, unpack
from protocol.errors import FormatError, LimitExceeded, ProtocolError
from protocol.ids import PieceId
from protocol.limits import (
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_MANIFEST_BYTES,
    MAX_PIECE_BYTES,
    SPAN_TARGET_BYTES,
)
from protocol.manifest import ManifestRoot
from protocol.manifest_builder import MAX_PIECE_WEIGHT, MIN_PIECE_WEIGHT, ManifestBuilder
from protocol.paths import PathRefused
from protocol.pieces import (
    FILE_CONTINUATION,
    FILE_START,
    FOLDER,
    LINK,
    MAX_PIECE_CHUNKS,
    PieceRef,
    chunk_table,
    cut_spans,
    decode_piece,
    table_lengths,
    table_rows,
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

_ROW = chunk_table([(chunk_id(0), 10)])


def _piece(records: list[Value], table: bytes = b"") -> tuple[bytes, PieceRef]:
    data = pack(["piece", 1, records, table])
    whole = table[: len(table) // 36 * 36]
    return data, PieceRef(PieceId.of(data), len(data), len(table) // 36, sum(table_lengths(whole)))


@given(trees())
def test_a_root_decodes_to_what_was_encoded_and_keeps_its_id(tree: DrawnTree) -> None:
    root, pieces = build(tree)
    again = ManifestRoot.decode(root.encode())
    assert again == root
    assert again.id == root.id
    assert set(pieces) == {ref.id for ref in root.pieces}
    for ref in root.pieces:
        piece = decode_piece(pieces[ref.id], ref)
        assert len(piece.ids) == 32 * ref.chunk_count
        assert [(chunk.id, chunk.length) for chunk in piece.chunks] == [
            (piece.ids[32 * n : 32 * n + 32], length) for n, length in enumerate(piece.lengths)
        ]


def test_fields_that_a_newer_version_added_are_ignored_and_kept_in_the_id() -> None:
    root, _ = build({"a": DrawnFile(executable=False, mtime_ns=0, chunks=((chunk_id(1), 5),))})
    fields = unpack(root.payload, max_bytes=MAX_MANIFEST_BYTES)
    assert isinstance(fields, list)
    longer = ManifestRoot.decode(pack([*fields, "new"]))
    assert longer == root
    assert longer.id != root.id
    assert longer.encode().endswith(pack("new"))


@pytest.mark.parametrize(
    "change",
    [
        {"size_bytes": 6},
        {"chunk_count": 2},
        {"name": "a/b"},
        {"kind": "Feature"},
        {"files": 4_000_001},
        {"size_bytes": 2**60},
    ],
)
def test_claims_that_do_not_add_up_are_refused(change: dict[str, object]) -> None:
    root, _ = build({"a": DrawnFile(executable=False, mtime_ns=0, chunks=((chunk_id(1), 5),))})
    with pytest.raises(ProtocolError):
        dataclasses.replace(root, payload=b"", **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", [6, 8, 9, 10, 11, 12])
def test_a_claim_of_two_to_the_sixty_is_refused_before_anything_is_allocated(field: int) -> None:
    root, _ = build({"a": DrawnFile(executable=False, mtime_ns=0, chunks=((chunk_id(1), 5),))})
    fields = unpack(root.payload, max_bytes=MAX_MANIFEST_BYTES)
    assert isinstance(fields, list)
    fields[field] = 2**60
    with pytest.raises(LimitExceeded):
        ManifestRoot.decode(pack(fields))


def test_a_piece_that_claims_more_than_its_chunks_can_hold_is_refused() -> None:
    root, _ = build({"a": DrawnFile(executable=False, mtime_ns=0, chunks=((chunk_id(1), 5),))})
    ref = root.pieces[0]._replace(size_bytes=MAX_CHUNK_BYTES + 1)
    fields = unpack(root.payload, max_bytes=MAX_MANIFEST_BYTES)
    assert isinstance(fields, list)
    fields[11], fields[13] = ref.size_bytes, [list(ref)]
    with pytest.raises(LimitExceeded, match="does not fit"):
        ManifestRoot.decode(pack(fields))


@pytest.mark.parametrize(
    ("records", "table"),
    [
        ([], b""),
        ([[FOLDER, "a"]], _ROW),
        ([[FILE_START, "a", False, 0, 10, 1, False]], b""),
        ([[FILE_START, "a", False, 0, 10, 2, False]], _ROW),
        ([[FILE_START, "a", False, 0, 0, 1, False]], _ROW),
        ([[FILE_START, "a", False, 0, 10, 0, False]], b""),
        ([[FILE_START, "a", False, 0, 0, 0, True]], b""),
        ([[FILE_START, "a", False, -1, 10, 1, False]], _ROW),
        ([[FILE_START, "a", False, 0, 2**60, 1, True]], _ROW),
        ([[FILE_START, "a", False, 0, 10, 1]], _ROW),
        ([[FILE_START, b"a", False, 0, 10, 1, False]], _ROW),
        ([[FILE_START, "a", 0, 0, 10, 1, False]], _ROW),
        ([[FILE_START, "a", False, 0, 20, 1, True], [FOLDER, "b"]], _ROW),
        ([[FOLDER, "a"], [FILE_CONTINUATION, 1, False]], _ROW),
        ([[FILE_CONTINUATION, 0, False]], b""),
        ([[4, "a"]], b""),
        ([[LINK, "a"]], b""),
        ([[FOLDER, "x" * 5000]], b""),
        ([[FILE_CONTINUATION, 1, False]], _ROW[:-1]),
        ([[FILE_CONTINUATION, 1, False]], _ROW[:-4] + b"\0\0\0\0"),
        ([[FILE_CONTINUATION, 1, False]], _ROW[:-4] + (MAX_CHUNK_BYTES + 1).to_bytes(4, "big")),
        ([[FILE_CONTINUATION, 1, False]], _ROW[:-4] + b"\xff\xff\xff\xff"),
        (["a"], b""),
        ([[]], b""),
        ([[None]], b""),
    ],
)
def test_a_malformed_piece_is_refused_although_its_id_is_right(
    records: list[Value], table: bytes
) -> None:
    data, ref = _piece(records, table)
    with pytest.raises(ProtocolError):
        decode_piece(data, ref)


def test_a_piece_is_refused_when_it_is_not_the_one_that_was_named() -> None:
    data, ref = _piece([[FOLDER, "a"]])
    flipped = bytearray(data)
    flipped[-1] ^= 1
    for wrong in (flipped, data[:-1], data + b"\0"):
        with pytest.raises(FormatError, match="not the bytes"):
            decode_piece(wrong, ref)
    with pytest.raises(ProtocolError):
        decode_piece(data, ref._replace(chunk_count=1))
    with pytest.raises(ProtocolError):
        decode_piece(data, ref._replace(size_bytes=1))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_protocol_errors(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ManifestRoot.decode(data)
    with pytest.raises(ProtocolError):
        decode_piece(data, PieceRef(PieceId.of(data), len(data), 0, 0))


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**62)
    | st.binary(max_size=72)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=9),
    max_leaves=30,
)


@given(st.lists(st.lists(_VALUES, max_size=8), max_size=4), st.integers(0, 3), st.data())
def test_well_formed_nonsense_raises_nothing_but_protocol_errors(
    records: list[Value], rows: int, data: st.DataObject
) -> None:
    table = data.draw(st.binary(min_size=36 * rows, max_size=36 * rows))
    encoded, ref = _piece(records, table)
    try:
        decode_piece(encoded, ref)
    except ProtocolError as error:
        str(error).encode()


@given(trees(), st.integers(0, 10_000), st.integers(0, 255))
def test_a_flipped_byte_in_a_root_is_refused_or_another_manifest(
    tree: DrawnTree, at: int, bits: int
) -> None:
    root, _ = build(tree)
    changed = bytearray(root.payload)
    changed[at % len(changed)] ^= bits
    try:
        other = ManifestRoot.decode(bytes(changed))
    except ProtocolError:
        return
    assert (other.id == root.id) == (bits == 0)


def test_a_change_to_one_file_of_20000_makes_one_or_two_new_pieces() -> None:
    root, pieces = build(regular_tree(20_000))
    for changed in (0, 7_777, 19_999):
        other_root, other = build(regular_tree(20_000, changed=changed))
        new = [data for piece, data in other.items() if piece not in pieces]
        assert 1 <= len(new) <= 3
        assert sum(map(len, new)) + len(other_root.payload) < 150_000
    assert len(root.payload) < 20_000


def test_an_inserted_folder_leaves_the_pieces_further_on_as_they_were() -> None:
    _, pieces = build(regular_tree(20_000))
    tree = regular_tree(20_000)
    tree["folder 0050a"] = None
    for n in range(50):
        tree[f"folder 0050a/{n:02}"] = DrawnFile(
            executable=False, mtime_ns=0, chunks=((chunk_id(-n), 100),)
        )
    _, other = build(tree)
    assert sum(len(data) for piece, data in other.items() if piece not in pieces) < 150_000


def test_pieces_stay_within_their_bounds() -> None:
    tree = regular_tree(3_000)
    tree["long"] = DrawnFile(
        executable=True, mtime_ns=5, chunks=tuple((chunk_id(n), 30_000) for n in range(20_000))
    )
    tree["zeros"] = DrawnFile(
        executable=False, mtime_ns=5, chunks=((b"\xff" * 32, MAX_CHUNK_BYTES),) * 9_000
    )
    deep = "/".join(["d" * 250] * 10)
    for depth in range(1, 11):
        tree["/".join(["d" * 250] * depth)] = None
    for n in range(60):
        tree[f"{deep}/{n}"] = DrawnFile(executable=False, mtime_ns=2**63 - 1, chunks=())
    root, pieces = build(tree)
    assert all(len(data) <= MAX_PIECE_WEIGHT + 64 <= MAX_PIECE_BYTES for data in pieces.values())
    sizes = [ref.length for ref in root.pieces[:-1]]
    # The encoding takes a little less than the weight that the rule counts.
    assert min(sizes) > MIN_PIECE_WEIGHT * 0.7
    assert MIN_PIECE_WEIGHT < sum(sizes) / len(sizes) < 2.5 * 16_384
    # A run of equal chunks gives equal pieces, held once.
    assert len(pieces) < len(root.pieces)


def test_a_root_cannot_claim_more_chunks_than_a_reader_has_room_for() -> None:
    # One piece that continues a file, named again and again, costs its sender next to nothing.
    ref = PieceRef(PieceId.of(b"a continuation"), 131_000, MAX_PIECE_CHUNKS, 2**28)
    count = MAX_CHUNKS // MAX_PIECE_CHUNKS
    fits = ManifestRoot(
        fleet=FLEET,
        kind="feature",
        name="x",
        version=1,
        files=1,
        folders=0,
        links=0,
        size_bytes=count * 2**28,
        chunk_count=count * MAX_PIECE_CHUNKS,
        pieces=(ref,) * count,
    )
    assert ManifestRoot.decode(fits.payload) == fits
    with pytest.raises(LimitExceeded, match="split"):
        dataclasses.replace(
            fits,
            size_bytes=(count + 1) * 2**28,
            chunk_count=(count + 1) * MAX_PIECE_CHUNKS,
            pieces=(ref,) * (count + 1),
            payload=b"",
        )


def test_the_builder_refuses_what_no_tree_may_hold() -> None:
    builder = ManifestBuilder(FLEET, "feature", "x", 1)
    with pytest.raises(PathRefused):
        builder.add_file("a/b", executable=False, mtime_ns=0, chunks=())
    with pytest.raises(LimitExceeded):
        builder.add_file("a", executable=False, mtime_ns=0, chunks=[(chunk_id(0), 0)])
    with pytest.raises(LimitExceeded):
        builder.add_file(
            "a", executable=False, mtime_ns=0, chunks=[(chunk_id(0), MAX_CHUNK_BYTES + 1)]
        )
    with pytest.raises(FormatError):
        builder.add_file("a", executable=False, mtime_ns=-1, chunks=())
    with pytest.raises(PathRefused):
        ManifestBuilder(FLEET, "feature", "a/b", 1)
    builder.add_link("b", "c/../c")
    builder.add_folder("c")
    root, _ = builder.finish()
    assert (root.files, root.folders, root.links) == (0, 1, 1)


@settings(max_examples=200)
@given(st.lists(st.integers(1, MAX_CHUNK_BYTES), max_size=600))
def test_spans_cover_the_chunks_in_order_and_are_about_a_mebibyte(lengths: list[int]) -> None:
    spans = cut_spans(lengths)
    assert [
        n for span in spans for n in range(span.first_chunk, span.first_chunk + span.chunk_count)
    ] == list(range(len(lengths)))
    for span in spans:
        inside = lengths[span.first_chunk : span.first_chunk + span.chunk_count]
        assert sum(inside) == span.size_bytes < SPAN_TARGET_BYTES + MAX_CHUNK_BYTES
        assert sum(inside[:-1]) < SPAN_TARGET_BYTES
        assert span.chunk_count <= 512
    for span, _ in pairwise(spans):
        assert span.size_bytes >= SPAN_TARGET_BYTES or span.chunk_count == 512


@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 2**32 - 1))))
def test_a_chunk_table_gives_back_its_rows(rows: list[tuple[bytes, int]]) -> None:
    table = chunk_table(rows)
    assert list(table_rows(table)) == rows
    assert table_lengths(table) == tuple(length for _, length in rows)
