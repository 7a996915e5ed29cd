"""A small fleet with keys, for tests and vectors: everything follows from names.

Keys, ids and salts are digests of texts, so that a document made twice has the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.documents import Document, GrantsRoot
from protocol.envelope import Envelope, PublicKey, Signature, signing_input
from protocol.facts import Entry, LeafItem, NodeFacts, ReleaseHeader, encode_item
from protocol.grants import GrantsTree, build_grants
from protocol.head import Head
from protocol.ids import DocumentId, FleetId, ListId, ManifestId, NodeId, ReleaseId
from protocol.root import ROLES, RoleKeys, Root
from protocol.trust import TrustedDocuments

NOW_S = 1_800_000_000


def digest(text: str) -> bytes:
    return blake3(text.encode()).digest()


@dataclass(frozen=True)
class Signer:
    """A named key pair."""

    name: str

    @property
    def private_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(digest(f"key {self.name}"))

    @property
    def public_key(self) -> PublicKey:
        return PublicKey(self.private_key.public_key().public_bytes_raw())

    @property
    def node(self) -> NodeId:
        return NodeId.of(self.public_key)

    def sign(self, document_type: str, payload: bytes) -> Signature:
        value = self.private_key.sign(signing_input(document_type, payload))
        return Signature(self.public_key.key_id, value)


def sign(document: Document, *signers: Signer) -> Envelope:
    payload = document.encode()
    return Envelope(payload, tuple(signer.sign(document.TYPE, payload) for signer in signers))


def facts_of(signer: Signer, role: str = "ice", site: str = "lyon") -> NodeFacts:
    return NodeFacts(signer.node, signer.public_key, role, signer.name, site, "room 1", "salle")


def items_of(node: str, items: Iterable[LeafItem]) -> list[bytes]:
    return [
        encode_item(digest(f"salt {node} {index}")[:16], item) for index, item in enumerate(items)
    ]


RELEASE = ReleaseId(digest("release")[:16])
FEATURE = ManifestId(digest("feature"))
SAS = ManifestId(digest("sas"))


def leaf_items(signer: Signer, role: str = "ice", site: str = "lyon") -> list[bytes]:
    """Facts, and for an ICE node a release with two entries."""
    items: list[LeafItem] = [facts_of(signer, role, site)]
    if role == "ice":
        items += [
            ReleaseHeader(RELEASE, "Film", 3, "active", NOW_S, NOW_S + 100, NOW_S + 1000),
            Entry(RELEASE, 3, FEATURE, "feature"),
            Entry(RELEASE, 3, SAS, "sas"),
        ]
    return items_of(signer.name, items)


@dataclass
class SignedFleet:
    """Signs the documents of one fleet and hands them out as envelopes."""

    name: str = "demo"
    signers: dict[str, Signer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in ROLES:
            self.signers.setdefault(role, Signer(f"{self.name} {role}"))

    @property
    def fleet(self) -> FleetId:
        return FleetId(digest(f"fleet {self.name}"))

    def root(
        self,
        version: int = 1,
        epoch: int = 1,
        keys: Mapping[str, Sequence[Signer]] | None = None,
        thresholds: Mapping[str, int] | None = None,
        policy: int = 0,
    ) -> Root:
        holders = {role: [self.signers[role]] for role in ROLES} | dict(keys or {})
        everyone = {signer.public_key for signers in holders.values() for signer in signers}
        return Root(
            fleet=self.fleet,
            fleet_name=self.name,
            version=version,
            epoch=epoch,
            issued_s=NOW_S + min(version, 1000),
            keys=tuple(sorted(everyone)),
            roles=tuple(
                RoleKeys(
                    role,
                    (thresholds or {}).get(role, 1),
                    tuple(signer.public_key.key_id for signer in holders[role]),
                )
                for role in ROLES
            ),
            ca_certificates=(b"certificate",),
            seal_keys=(digest("seal"),),
            policy=policy,
        )

    def grants(
        self, leaves: Mapping[NodeId, Sequence[bytes]], *, issued_s: int = NOW_S, epoch: int = 1
    ) -> tuple[GrantsTree, GrantsRoot]:
        tree = build_grants(leaves)
        root = GrantsRoot(
            self.fleet,
            epoch,
            issued_s,
            tree.tree,
            tree.leaf_count,
            ListId(digest("grants index")),
        )
        return tree, root

    def head(self, *grants_roots: DocumentId, serial: int = 1, epoch: int = 1) -> Head:
        return Head(
            fleet=self.fleet,
            epoch=epoch,
            serial=serial,
            issued_s=NOW_S + serial,
            expires_s=NOW_S + serial + 604_800,
            root_version=1,
            grants_roots=grants_roots or (DocumentId(digest("some grants")),),
            syncs_root=None,
            catalogue=ListId(digest("catalogue")),
            roster=ListId(digest("roster")),
        )

    def sign_root(self, root: Root, *more: Signer) -> Envelope:
        return sign(root, self.signers["root"], *more)

    def sign_head(self, head: Head) -> Envelope:
        return sign(head, self.signers["head"])

    def sign_grants(self, grants: GrantsRoot) -> Envelope:
        return sign(grants, self.signers["grants"])

    def trusted(self, root: Root | None = None) -> TrustedDocuments:
        """What a node that has just joined believes: the first Root."""
        first = root or self.root()
        trusted = TrustedDocuments()
        trusted.accept_first_root(self.sign_root(first), first.fingerprint)
        return trusted


@dataclass
class Estate:
    """A fleet with grants for an ICE node, its neighbour, a far one and a REPO, all trusted."""

    fleet: SignedFleet = field(default_factory=SignedFleet)
    root: Root | None = None

    def __post_init__(self) -> None:
        self.ice = Signer("ice")
        self.neighbour = Signer("neighbour")
        self.far = Signer("far")
        self.repo = Signer("repo")
        self.leaves = {
            self.ice.node: leaf_items(self.ice),
            self.neighbour.node: leaf_items(self.neighbour),
            self.far.node: leaf_items(self.far, site="paris"),
            self.repo.node: leaf_items(self.repo, role="repo", site=""),
        }
        self.tree, self.grants_root = self.fleet.grants(self.leaves)
        self.trusted = self.fleet.trusted(self.root)
        self.head = self.fleet.head(self.grants_root.id)
        self.trusted.accept_head(self.fleet.sign_head(self.head), now=NOW_S)
        self.trusted.accept_grants(self.fleet.sign_grants(self.grants_root))

    def next_head(self, **changes: object) -> None:
        """Accept a head that follows the newest one."""
        serial = self.head.serial + 1
        self.head = replace(self.head, serial=serial, **changes)  # type: ignore[arg-type]
        self.trusted.accept_head(self.fleet.sign_head(self.head), now=NOW_S)
