"""Makes `state.json`: golden vectors of joining, certificates and what lies on disk.

Frozen like `documents.json`, and made from the same fleet: chapters 8.7, 9.1 and 13 of SPEC.md.
`python -m tests.vectors.make_state` prints the vectors, `--write` makes the file where there is
none, `--replace` overwrites one that differs, which is a new version of the format.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Final, TypeAlias

from archid.addresses import Address
from archid.identity import Identity
from archid.journal import MIGRATIONS, Journal
from archid.membership import FILE_NAME, Membership
from archid.net.certificates import issue, make_ca
from archid.store.bundles import BundleId
from archid.store.database import Database
from archid.store.documents import DocumentStore
from archid.store.trust_file import TrustFile, TrustState
from protocol.envelope import signing_input
from protocol.ids import DocumentId
from protocol.join_token import JoinToken
from protocol.messages import JOIN_PROOF_TYPE, join_proof_payload
from tests.unit.protocol.signed_fleet import (
    FEATURE,
    NOW_S,
    RELEASE,
    SAS,
    Estate,
    SignedFleet,
    Signer,
    digest,
)

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"

PATH: Final = Path(__file__).with_name("state.json")
FLEET: Final = SignedFleet("vectors")
NODE: Final = Signer("node")


def vectors() -> dict[str, Json]:
    """Everything, as JSON; bytes are hexadecimal."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "about": "Golden vectors of SPEC.md chapters 8.7, 9 and 13; bytes are hexadecimal",
            "certificates": _certificates(),
            "token": _token(),
            "join proof": _join_proof(),
            "trust file": _trust_file(folder),
            "documents": _documents(folder),
            "journal": _journal(folder),
            "membership": _membership(folder),
            "bundle": _bundle(),
        }


def _certificates() -> Json:
    ca_key = FLEET.signers["ca"].private_key
    ca = make_ca(ca_key, FLEET.fleet)
    return {
        "fleet": FLEET.fleet.hex(),
        "ca key": "key vectors ca",
        "ca": ca.hex(),
        "node key": "key node",
        "node": NODE.node.hex(),
        "node certificate": issue(ca_key, ca, NODE.public_key, NODE.node).hex(),
    }


def _token() -> Json:
    token = JoinToken(
        addresses=("central.example:4777", "[2001:db8::1]:4777"),
        central=Signer("central").node,
        fingerprint=FLEET.root().fingerprint,
        token_id=digest("token")[:16],
        secret=digest("secret"),
        fleet_name="Côté salle",
        role="ice",
        expires_s=NOW_S,
    )
    return {
        "addresses": list(token.addresses),
        "central": token.central.hex(),
        "fingerprint": token.fingerprint.hex(),
        "token id": token.token_id.hex(),
        "secret": token.secret.hex(),
        "fleet name": token.fleet_name,
        "role": token.role,
        "expires_s": token.expires_s,
        "text": token.encode(),
    }


def _join_proof() -> Json:
    payload = join_proof_payload(
        token_id=digest("token")[:16],
        public_key=NODE.public_key,
        name="lyon-1-salle",
        client_nonce=digest("client nonce"),
        server_nonce=digest("server nonce"),
    )
    return {
        "payload": payload.hex(),
        "signed": signing_input(JOIN_PROOF_TYPE, payload).hex(),
        "signature": NODE.sign(JOIN_PROOF_TYPE, payload).value.hex(),
    }


def _trust_file(folder: Path) -> Json:
    estate = Estate(FLEET)
    root = FLEET.sign_root(FLEET.root()).encode()
    state = TrustState(
        root=root,
        head=FLEET.sign_head(estate.head).encode(),
        grants=(FLEET.sign_grants(estate.grants_root).encode(),),
        newest_issued_s=NOW_S,
        roots=((1, root),),
    )
    TrustFile(folder / "trust").save(state)
    TrustFile(folder / "empty").save(TrustState())
    return {
        "full": (folder / "trust").read_bytes().hex(),
        "empty": (folder / "empty").read_bytes().hex(),
    }


def _documents(folder: Path) -> Json:
    """Every file of a store with one of each, by its path."""
    estate = Estate(FLEET)
    documents = DocumentStore(folder / "documents")
    documents.put_root(1, FLEET.sign_root(FLEET.root()).encode())
    documents.put_head(FLEET.sign_head(estate.head).encode())
    grants = documents.put_grants(FLEET.sign_grants(estate.grants_root).encode())
    leaf = estate.tree.leaf(estate.repo.node, grants)
    documents.put_leaf(leaf.node, grants, leaf.encode())
    documents.put_piece(b"a piece")
    documents.put_list(b"an index")
    documents.put_page(b"a page")
    files = sorted(path for path in documents.path.rglob("*") if path.is_file())
    return {str(path.relative_to(documents.path)): path.read_bytes().hex() for path in files}


def _journal(folder: Path) -> Json:
    identity = Identity(NODE.node, NODE.private_key, NODE.public_key, folder)
    with Database(folder / "journal.db", MIGRATIONS) as database:
        journal = Journal(database, identity, clock=lambda: float(NOW_S))
        journal.append("joined", {"name": "lyon-1-salle", "role": "ice"})
        journal.append("tree_placed", {"manifest": bytes(FEATURE), "version": 3, "whole": True})
        return [
            {
                "seq": entry.seq,
                "payload": entry.payload.hex(),
                "hash": entry.hash.hex(),
                "key id": entry.signature.key_id.hex(),
                "signature": entry.signature.value.hex(),
            }
            for entry in journal.entries()
        ]


def _membership(folder: Path) -> Json:
    Membership(
        fleet=FLEET.fleet,
        fleet_name="Côté salle",
        anchor=DocumentId(FLEET.root().fingerprint),
        anchor_version=1,
        central_addresses=(Address("central.example"), Address("2001:db8::1", 4000)),
    ).save(folder)
    fields: Json = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    return fields


def _bundle() -> Json:
    trees = {"sas": SAS, "feature": FEATURE}
    return {
        "release": RELEASE.hex(),
        "generation": 3,
        "trees": {kind: manifest.hex() for kind, manifest in trees.items()},
        "id": BundleId.of_release(RELEASE, 3, trees).hex(),
    }


def text() -> str:
    """The file's content."""
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Print, or write."""
    made = text()
    if not arguments:
        sys.stdout.write(made)
        return 0
    differs = PATH.exists() and PATH.read_text(encoding="utf-8") != made
    if differs and "--replace" not in arguments:
        sys.stderr.write(f"{PATH} differs; --replace overwrites it, which changes the format\n")
        return 1
    PATH.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
