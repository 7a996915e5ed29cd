"""Makes `documents.json`: golden vectors of encodings, identities and trust documents.

The file is frozen. A test makes it again in memory and compares; when they differ, either the
code broke the format, or the format changed on purpose, which is a new version of the protocol.
`python -m tests.vectors.make_documents` prints the vectors, `--write` makes the file where there
is none, `--replace` overwrites one that differs. Private keys are in it on purpose, so that
other implementations can sign: the BLAKE3 digest of `key ` and the signer's name.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

from protocol import paged
from protocol.canonical import Value, pack
from protocol.documents import Document, SyncsRoot, Ticket
from protocol.envelope import Envelope, signing_input
from protocol.facts import Entry, LeafItem, NodeFacts, ReleaseHeader, SyncItem, encode_item
from protocol.grants import LeafDocument, build_grants, node_leaf_hash
from protocol.head import Denial
from protocol.ids import (
    ChunkId,
    Digest,
    DocumentId,
    FleetId,
    KeyId,
    ListId,
    ManifestId,
    NodeId,
    PageId,
    PieceId,
    TreeHash,
)
from protocol.merkle import MerkleTree, leaf_hash
from tests.unit.protocol.signed_fleet import (
    FEATURE,
    NOW_S,
    RELEASE,
    Estate,
    SignedFleet,
    Signer,
    digest,
    facts_of,
    items_of,
    sign,
)

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"

PATH: Final = Path(__file__).with_name("documents.json")
FLEET: Final = SignedFleet("vectors")


def vectors() -> dict[str, Json]:
    """Everything, as JSON; bytes are hexadecimal."""
    return {
        "about": "Golden vectors of SPEC.md chapters 2 to 4; bytes are hexadecimal",
        "encoding": _encoding(),
        "identities": _identities(),
        "signatures": _signatures(),
        "merkle": _merkle(),
        "items": _items(),
        "documents": _documents(),
        "syncs": _syncs(),
        "list": _list(),
    }


def text() -> str:
    return json.dumps(vectors(), indent=1, ensure_ascii=True) + "\n"


def _encoding() -> Json:
    values: list[tuple[str, Value]] = [
        ("nil", None),
        ("false", False),
        ("true", True),
        *((str(n), n) for n in (0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32)),
        *((str(n), n) for n in (2**64 - 1, -1, -32, -33, -128, -129, -32769, -(2**63))),
        ("empty text", ""),
        ("text of 31 a", "a" * 31),
        ("text of 32 a", "a" * 32),
        ("text U+00E9 U+1F3AC", "\u00e9\U0001f3ac"),
        ("no bytes", b""),
        ("bytes 00 ff", b"\x00\xff"),
        ("empty array", []),
        ("array of 16 zeros", [0] * 16),
        ('[1, ["a", nil], h"00"]', [1, ["a", None], b"\0"]),
    ]
    refused = {
        "a number in two bytes that fits one": "cc05",
        "a text in the long form": "d90161",
        "an array in the long form": "dc000100",
        "a map": "8101c0",
        "a float": "ca00000000",
        "an extension": "c70005",
        "an unused byte": "c1",
        "text that is not UTF-8": "a1ff",
        "a count without its items": "92c0",
        "something behind the value": "c0c0",
        "nothing": "",
        "arrays nested 17 deep": "91" * 16 + "90",
    }
    return {
        "accepted": [[name, pack(value).hex()] for name, value in values],
        "refused": [[name, data] for name, data in refused.items()],
    }


def _identities() -> Json:
    kinds: list[type[Digest]] = [
        ChunkId,
        PieceId,
        ManifestId,
        NodeId,
        KeyId,
        FleetId,
        DocumentId,
        ListId,
        PageId,
        TreeHash,
    ]
    return [
        {
            "kind": kind.__name__,
            "context": kind.CONTEXT,
            "of no bytes": kind.of(b"").hex(),
            "of abc": kind.of(b"abc").hex(),
        }
        for kind in kinds
    ]


def _signatures() -> Json:
    signers = [Signer("one"), Signer("two")]
    payload = b"payload"
    envelope = Envelope(payload, tuple(signer.sign("head", payload) for signer in signers))
    keys: list[Json] = [
        {
            "name": signer.name,
            "private key": signer.private_key.private_bytes_raw().hex(),
            "public key": signer.public_key.hex(),
            "key id": signer.public_key.key_id.hex(),
            "node id": signer.node.hex(),
            "signature": signer.sign("head", payload).value.hex(),
        }
        for signer in signers
    ]
    return {
        "payload": payload.hex(),
        "type": "head",
        "signing input": signing_input("head", payload).hex(),
        "signers": keys,
        "envelope": envelope.encode().hex(),
    }


def _merkle() -> Json:
    trees: list[Json] = []
    for count in (0, 1, 2, 3, 5, 8):
        data = [bytes([n]) for n in range(count)]
        tree = MerkleTree([leaf_hash(one) for one in data])
        paths: list[Json] = [[one.hex() for one in tree.path(n)] for n in range(count)]
        trees.append(
            {"leaves": [one.hex() for one in data], "root": tree.root.hex(), "paths": paths}
        )
    return trees


def _items() -> Json:
    salt = digest("salt")[:16]
    facts = NodeFacts(
        Signer("ice").node, Signer("ice").public_key, "ice", "ice-1", "lyon", "room 1", "salle"
    )
    items: list[LeafItem] = [
        facts,
        ReleaseHeader(RELEASE, "Film", 3, "withdrawn", NOW_S, NOW_S + 1, NOW_S + 2),
        Entry(RELEASE, 3, FEATURE, "feature"),
        SyncItem(RELEASE, 3, "urn:uuid:8f7e8f52-2b1b-4ac5-9f3a-8d0b4c7e1a11", ChunkId.of(b"{}")),
    ]
    return {
        "salt": salt.hex(),
        "node": facts.node.hex(),
        "public key": facts.key.hex(),
        "release": RELEASE.hex(),
        "manifest": FEATURE.hex(),
        "encodings": {item.KIND: encode_item(salt, item).hex() for item in items},
    }


def _shown(document: Document, envelope: Envelope | None = None) -> dict[str, Json]:
    shown: dict[str, Json] = {"payload": document.encode().hex(), "id": document.id.hex()}
    if envelope is not None:
        shown["envelope"] = envelope.encode().hex()
    return shown


def _leaf(document: LeafDocument) -> dict[str, Json]:
    inner = MerkleTree([leaf_hash(item) for item in document.items]).root
    return {
        "payload": document.encode().hex(),
        "item tree": inner.hex(),
        "leaf hash": node_leaf_hash(document.node, len(document.items), inner).hex(),
    }


def _documents() -> Json:
    estate = Estate(FLEET)
    second_key = Signer("vectors second root")
    root = FLEET.root(1)
    next_root = FLEET.root(
        2, keys={"root": [FLEET.signers["root"], second_key]}, thresholds={"root": 2}, policy=1
    )
    denied = (Denial("node", estate.far.node, estate.grants_root.id),)
    head = replace(FLEET.head(estate.grants_root.id), denied=denied)
    leaf = estate.tree.leaf(estate.ice.node, estate.grants_root.id)
    ticket = Ticket(FLEET.fleet, estate.far.node, FEATURE, "relay", NOW_S + 60)
    return {
        "root": _shown(root, FLEET.sign_root(root)),
        "next root": _shown(next_root, sign(next_root, FLEET.signers["root"], second_key)),
        "head": _shown(head, FLEET.sign_head(head)),
        "grants": _shown(estate.grants_root, FLEET.sign_grants(estate.grants_root)),
        "leaf": _leaf(leaf),
        "proof of facts": {"payload": leaf.proof().encode().hex()},
        "proof of an entry": {"payload": leaf.proof(2).encode().hex()},
        "ticket": _shown(ticket, sign(ticket, FLEET.signers["tickets"])),
    }


def _syncs() -> Json:
    """A leaf under a Syncs root: facts first, as everywhere, then what goes with a release."""
    signer = Signer("ice")
    items = items_of(
        "sync",
        [facts_of(signer), SyncItem(RELEASE, 3, "urn:uuid:cpl", ChunkId.of(b"{}"))],
    )
    tree = build_grants({signer.node: items})
    index, list_id, _ = paged.build(
        paged.GRANTS, FLEET.fleet, [row.to_value() for row in tree.index_rows]
    )
    root = SyncsRoot(FLEET.fleet, 1, NOW_S, tree.tree, tree.leaf_count, list_id)
    return {
        "syncs": _shown(root, sign(root, FLEET.signers["sync"])),
        "index": index.hex(),
        "leaf": _leaf(tree.leaf(signer.node, root.id)),
    }


def _list() -> Json:
    """Only ids: a reader makes the rows itself and must cut at the same places."""
    rows = [
        paged.CatalogueRow(
            f"script {n:04}", "feature", 1, ManifestId(digest(f"manifest {n}"))
        ).to_value()
        for n in range(2000)
    ]
    index, list_id, pages = paged.build(paged.CATALOGUE, FLEET.fleet, rows)
    return {
        "rows": (
            "2000 catalogue rows: name 'script ' + four digits from 0000, kind 'feature', "
            "version 1, manifest = BLAKE3('manifest ' + the number without zeros)"
        ),
        "fleet": FLEET.fleet.hex(),
        "index": index.hex(),
        "id": list_id.hex(),
        "pages": [[page.hex(), len(data)] for page, data in pages.items()],
    }


def main(arguments: list[str]) -> int:
    made = text()
    if not arguments:
        sys.stdout.write(made)
        return 0
    differs = PATH.exists() and PATH.read_text() != made
    if differs and "--replace" not in arguments:
        sys.stderr.write(f"{PATH} differs; --replace overwrites it, which changes the format\n")
        return 1
    PATH.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
