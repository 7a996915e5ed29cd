"""The golden vectors: frozen, made again by today's code, and read as another program would."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocol.canonical import pack, unpack
from protocol.documents import Document, GrantsRoot, SyncsRoot, Ticket
from protocol.envelope import Envelope
from protocol.errors import FormatError
from protocol.facts import Entry, decode_item
from protocol.grants import LeafDocument, Proof
from protocol.head import Head
from protocol.ids import DocumentId
from protocol.root import Root
from protocol.trust import Outcome, TrustedDocuments, signed_by_role
from tests.vectors import make_documents

FROZEN: dict[str, Any] = json.loads(make_documents.PATH.read_text())


def envelope(entry: dict[str, str]) -> Envelope:
    return Envelope.decode(bytes.fromhex(entry["envelope"]), max_bytes=1 << 20)


@pytest.mark.parametrize("chapter", sorted(FROZEN))
def test_todays_code_makes_the_frozen_vectors(chapter: str) -> None:
    assert make_documents.vectors()[chapter] == FROZEN[chapter]


def test_the_file_is_what_the_generator_writes() -> None:
    assert make_documents.text() == make_documents.PATH.read_text()


def test_accepted_encodings_are_read_and_refused_ones_are_not() -> None:
    for name, data in FROZEN["encoding"]["accepted"]:
        raw = bytes.fromhex(data)
        assert pack(unpack(raw, max_bytes=100)) == raw, name
    for name, data in FROZEN["encoding"]["refused"]:
        raw = bytes.fromhex(data)
        with pytest.raises(FormatError):
            pytest.fail(f"{name} was read as {unpack(raw, max_bytes=100)!r}")


def test_the_frozen_documents_form_a_fleet_that_is_believed() -> None:
    frozen = FROZEN["documents"]
    trusted = TrustedDocuments()
    trusted.accept_first_root(envelope(frozen["root"]), DocumentId.from_hex(frozen["root"]["id"]))
    assert trusted.accept_root(envelope(frozen["next root"])) is Outcome.NEWER
    assert trusted.accept_head(envelope(frozen["head"]), now=0) is Outcome.NEWER
    trusted.accept_grants(envelope(frozen["grants"]))
    leaf = trusted.check_leaf(LeafDocument.decode(bytes.fromhex(frozen["leaf"]["payload"])))
    proof = Proof.decode(bytes.fromhex(frozen["proof of an entry"]["payload"]))
    entry = leaf.entries[0][1]
    trusted.check_entitlement(proof, peer_key=leaf.facts.key, manifest=entry.manifest)
    facts_only = Proof.decode(bytes.fromhex(frozen["proof of facts"]["payload"]))
    assert trusted.check_facts(facts_only, peer_key=leaf.facts.key) == leaf.facts
    ticket = Ticket.decode(envelope(frozen["ticket"]).payload)
    assert trusted.is_denied(ticket.node)


def test_frozen_payloads_have_their_frozen_ids() -> None:
    readers: dict[str, type[Document]] = {
        "root": Root,
        "next root": Root,
        "head": Head,
        "grants": GrantsRoot,
        "ticket": Ticket,
    }
    for name, reader in readers.items():
        frozen = FROZEN["documents"][name]
        payload = bytes.fromhex(frozen["payload"])
        assert envelope(frozen).payload == payload
        assert reader.decode(payload).id.hex() == frozen["id"]


def test_the_frozen_syncs_are_signed_and_hold_their_leaf() -> None:
    root = Root.decode(bytes.fromhex(FROZEN["documents"]["root"]["payload"]))
    signed = envelope(FROZEN["syncs"]["syncs"])
    syncs = SyncsRoot.decode(signed_by_role(signed, SyncsRoot.TYPE, root, "sync"))
    leaf = LeafDocument.decode(bytes.fromhex(FROZEN["syncs"]["leaf"]["payload"])).verify(syncs)
    assert [item.cpl for item in leaf.syncs] == ["urn:uuid:cpl"]


def test_frozen_items_are_read() -> None:
    frozen = FROZEN["items"]
    items = {kind: decode_item(bytes.fromhex(data)) for kind, data in frozen["encodings"].items()}
    assert set(items) == {"facts", "release", "entry", "sync"}
    entry = items["entry"]
    assert isinstance(entry, Entry)
    assert entry.manifest.hex() == frozen["manifest"]


def test_the_generator_does_not_overwrite_other_vectors_silently(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "documents.json"
    monkeypatch.setattr(make_documents, "PATH", target)
    assert make_documents.main(["--write"]) == 0
    assert target.read_text() == make_documents.text()
    target.write_text("other")
    assert make_documents.main(["--write"]) == 1
    assert target.read_text() == "other"
    assert "differs" in capsys.readouterr().err
    assert make_documents.main(["--write", "--replace"]) == 0
    assert target.read_text() == make_documents.text()
