"""Documents: what is decoded is what was meant, and what was received is what is passed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import pack, unpack
from protocol.documents import Document, GrantsRoot, SyncsRoot, Ticket
from protocol.envelope import PublicKey
from protocol.errors import FormatError, LimitExceeded, TrustError
from protocol.facts import (
    Entry,
    LeafItem,
    NodeFacts,
    ReleaseHeader,
    SyncItem,
    UnknownItem,
    decode_item,
    encode_item,
)
from protocol.grants import LeafDocument, Proof
from protocol.head import Denial, Head
from protocol.ids import (
    ChunkId,
    DocumentId,
    FleetId,
    ListId,
    ManifestId,
    NodeId,
    ReleaseId,
    TreeHash,
)
from protocol.limits import (
    MAX_ACCEPTED_GRANTS,
    MAX_DENIED,
    MAX_DOCUMENT_BYTES,
    MAX_ITEM_BYTES,
    MAX_SERIAL,
    MAX_TIME_S,
)
from protocol.root import POLICY_SAME_SITE_ONLY, RoleKeys, Root
from tests.unit.protocol.arbitrary import hostile_bytes, only_protocol_errors
from tests.unit.protocol.signed_fleet import Estate, SignedFleet, Signer, digest, facts_of

ESTATE = Estate()
LEAF = ESTATE.tree.leaf(ESTATE.ice.node, ESTATE.grants_root.id)
SYNCS = SyncsRoot(
    ESTATE.fleet.fleet, 1, 5, TreeHash(digest("tree")), 4, ListId(digest("syncs index"))
)
TICKET = Ticket(
    ESTATE.fleet.fleet, ESTATE.ice.node, ManifestId(digest("feature")), "relay", 1_900_000_000
)
DOCUMENTS: list[Document] = [
    ESTATE.fleet.root(),
    ESTATE.head,
    ESTATE.grants_root,
    SYNCS,
    TICKET,
    LEAF,
    LEAF.proof(),
    LEAF.proof(2),
]
SALT = bytes(16)


def ids(kind: Callable[[bytes], Any]) -> st.SearchStrategy[Any]:
    return st.binary(min_size=32, max_size=32).map(kind)


serials = st.integers(1, MAX_SERIAL)
times = st.integers(0, MAX_TIME_S)
labels = st.text(max_size=40)
words = st.text(max_size=8)
releases = st.binary(min_size=16, max_size=16).map(ReleaseId)
denials = st.builds(Denial, words, st.binary(max_size=32), ids(DocumentId))
heads = st.builds(
    Head,
    ids(FleetId),
    serials,
    serials,
    times,
    times,
    serials,
    st.lists(ids(DocumentId), min_size=1, max_size=5, unique=True).map(tuple),
    st.none() | ids(DocumentId),
    ids(ListId),
    ids(ListId),
    st.lists(denials, max_size=4).map(tuple),
)
grants_roots = st.builds(
    GrantsRoot, ids(FleetId), serials, times, ids(TreeHash), st.integers(0, 10**6), ids(ListId)
)
tickets = st.builds(Ticket, ids(FleetId), ids(NodeId), ids(ManifestId), words, times)
paths = st.lists(ids(TreeHash), max_size=5).map(tuple)
leaf_documents = st.builds(
    LeafDocument,
    ids(NodeId),
    st.lists(st.binary(max_size=50), max_size=5).map(tuple),
    st.integers(0, 1000),
    st.integers(0, 1000),
    paths,
    ids(DocumentId),
)
proofs = st.builds(
    Proof,
    ids(NodeId),
    ids(DocumentId),
    st.integers(0, 1000),
    paths,
    st.integers(1, 1000),
    st.binary(max_size=50),
    paths,
    st.none() | st.binary(max_size=50),
    st.integers(0, 1000),
    paths,
)
items = (
    st.builds(NodeFacts, ids(NodeId), ids(PublicKey), words, labels, labels, labels, words)
    | st.builds(ReleaseHeader, releases, labels, serials, words, times, times, times)
    | st.builds(Entry, releases, serials, ids(ManifestId), words)
    | st.builds(SyncItem, releases, serials, labels, ids(ChunkId))
)


@given(heads | grants_roots | tickets | leaf_documents | proofs)
def test_a_document_survives_its_encoding(document: Document) -> None:
    decoded = type(document).decode(document.encode())
    assert decoded == document
    assert decoded.id == document.id


@given(serials, serials, labels, st.integers(1, 4), st.integers(0, 1 << 40))
def test_a_root_survives_its_encoding(
    version: int, epoch: int, name: str, threshold: int, policy: int
) -> None:
    holders = [Signer(f"root {n}") for n in range(4)]
    root = SignedFleet().root(version, epoch, {"root": holders}, {"root": threshold}, policy=policy)
    root = replace(root, fleet_name=name)
    decoded = Root.decode(root.encode())
    assert decoded == root
    assert decoded.keys_of("root") == (
        threshold,
        {holder.public_key.key_id: holder.public_key for holder in holders},
    )
    assert decoded.same_site_only == bool(policy & POLICY_SAME_SITE_ONLY)


@given(items, st.binary(min_size=16, max_size=16))
def test_an_item_survives_its_encoding(item: LeafItem, salt: bytes) -> None:
    assert decode_item(encode_item(salt, item)) == item


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: one.TYPE)
def test_a_tail_from_a_newer_version_is_ignored_and_passed_on(document: Document) -> None:
    value = unpack(document.encode(), max_bytes=MAX_DOCUMENT_BYTES)
    assert isinstance(value, list)
    longer = pack([*value, "new", [1, 2]])
    decoded = type(document).decode(longer)
    assert decoded == document
    assert decoded.encode() == longer
    assert decoded.id == DocumentId.of(longer) != document.id


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: one.TYPE)
def test_a_document_cut_short_anywhere_is_refused(document: Document) -> None:
    data = document.encode()
    for length in range(len(data)):
        with pytest.raises(FormatError):
            type(document).decode(data[:length])
    value = unpack(data, max_bytes=MAX_DOCUMENT_BYTES)
    assert isinstance(value, list)
    for count in range(len(value)):
        with pytest.raises(FormatError):
            type(document).decode(pack(value[:count]))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: one.TYPE)
def test_one_document_is_never_another(document: Document) -> None:
    for other in DOCUMENTS:
        if other.TYPE != document.TYPE:
            with pytest.raises(FormatError):
                type(other).decode(document.encode())


@given(st.data())
def test_no_bytes_break_a_decoder(data: st.DataObject) -> None:
    document = data.draw(st.sampled_from(DOCUMENTS))
    only_protocol_errors(type(document).decode, data.draw(hostile_bytes(document.encode())))


@given(hostile_bytes(encode_item(SALT, facts_of(Signer("a")))))
def test_no_bytes_break_the_decoder_of_items(data: bytes) -> None:
    only_protocol_errors(decode_item, data)


def test_a_changed_copy_is_encoded_anew() -> None:
    received = Head.decode(ESTATE.head.encode())
    assert Head.decode(replace(received, serial=9).encode()).serial == 9


def test_an_unknown_item_kind_is_passed_over_but_a_malformed_known_one_is_not() -> None:
    assert decode_item(pack(["hologram", 5, "whatever"])) == UnknownItem("hologram")
    with pytest.raises(FormatError):
        decode_item(pack(["entry", SALT, "whatever"]))
    with pytest.raises(FormatError):
        decode_item(pack(["entry", b"short salt", bytes(16), 1, bytes(32), "sas"]))


def test_items_have_a_salt_of_16_bytes_and_a_bounded_size() -> None:
    facts = facts_of(Signer("a"))
    with pytest.raises(FormatError):
        encode_item(b"", facts)
    with pytest.raises(LimitExceeded):
        encode_item(SALT, replace(facts, name="x" * MAX_ITEM_BYTES))


def test_only_withdrawn_deactivates() -> None:
    header = ReleaseHeader(ReleaseId(bytes(16)), "Film", 1, "active", 0, 0, 0)
    assert not header.withdrawn
    assert not replace(header, state="paused by a newer version").withdrawn
    assert replace(header, state="withdrawn").withdrawn


def rows(root: Root) -> dict[str, RoleKeys]:
    return {role.name: role for role in root.roles}


def test_a_root_that_could_not_work_is_refused() -> None:
    root = SignedFleet().root()
    key = root.keys[0]
    by_name = rows(root)
    with pytest.raises(FormatError, match="key twice"):
        replace(root, keys=(*root.keys, key))
    with pytest.raises(FormatError, match="role twice"):
        replace(root, roles=(*root.roles, by_name["head"]))
    with pytest.raises(FormatError, match="does not list"):
        replace(root, keys=root.keys[1:])
    with pytest.raises(FormatError, match="lacks the role 'head'"):
        replace(root, roles=tuple(role for role in root.roles if role.name != "head"))
    with pytest.raises(FormatError, match="2 of 1"):
        RoleKeys("head", 2, (key.key_id,))
    with pytest.raises(FormatError, match="0 of 1"):
        RoleKeys("head", 0, (key.key_id,))
    with pytest.raises(FormatError, match="twice"):
        RoleKeys("head", 2, (key.key_id, key.key_id))
    with pytest.raises(TrustError, match="no role 'projectionist'"):
        root.keys_of("projectionist")


def test_a_root_may_have_roles_that_nobody_here_knows() -> None:
    root = SignedFleet().root()
    more = replace(root, roles=(*root.roles, RoleKeys("lasers", 1, (root.keys[0].key_id,))))
    assert Root.decode(more.encode()) == more


def test_a_head_names_its_grants_once_and_within_limits() -> None:
    head = ESTATE.head
    one = head.grants_roots[0]
    with pytest.raises(FormatError):
        replace(head, grants_roots=())
    with pytest.raises(FormatError):
        replace(head, grants_roots=(one, one))
    many = tuple(DocumentId.of(bytes([n])) for n in range(MAX_ACCEPTED_GRANTS + 1))
    with pytest.raises(LimitExceeded):
        Head.decode(replace(head, grants_roots=many).encode())
    denied = tuple(Denial("node", bytes([n % 256]) * 32, one) for n in range(MAX_DENIED + 1))
    with pytest.raises(LimitExceeded):
        Head.decode(replace(head, denied=denied).encode())


def test_the_largest_head_fits() -> None:
    roots = tuple(DocumentId.of(bytes([n])) for n in range(MAX_ACCEPTED_GRANTS))
    denied = tuple(Denial("manifest", bytes([n]) * 32, roots[-1]) for n in range(MAX_DENIED))
    head = replace(ESTATE.head, grants_roots=roots, denied=denied)
    assert Head.decode(head.encode()) == head


@pytest.mark.parametrize(
    ("field", "value"),
    [("serial", 0), ("epoch", 0), ("serial", 1 << 53), ("issued_s", -1), ("root_version", 0)],
)
def test_a_head_with_numbers_out_of_range_is_refused(field: str, value: int) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(LimitExceeded):
        Head.decode(replace(ESTATE.head, **changes).encode())


def test_what_no_reader_would_take_is_not_even_made() -> None:
    with pytest.raises(LimitExceeded):
        replace(TICKET, purpose="x" * 33).encode()
    with pytest.raises(LimitExceeded):
        replace(TICKET, purpose="x" * 2000).encode()
    with pytest.raises(LimitExceeded):
        replace(ESTATE.head, serial=1 << 53).encode()
    with pytest.raises(LimitExceeded):
        encode_item(SALT, replace(facts_of(Signer("a")), site="x" * 201))
