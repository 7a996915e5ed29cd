"""A founded fleet for tests: real files, real keys, a clock that the test moves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archid.addresses import Address
from archid.central.ceremony import Founding, initialise
from archid.central.estate import Place
from archid.central.service import CentralService
from archid.central.signed_state import SignedState
from archid.central.tokens import Admission
from archid.config import CentralSettings
from archid.store.documents import DocumentStore
from archid.store.layout import StatePaths
from protocol.chunking_profile import DEFAULT_PROFILE
from protocol.envelope import PublicKey
from protocol.ids import FleetId, NodeId, PieceId
from protocol.join_token import JoinToken
from protocol.manifest import ManifestRoot
from protocol.pieces import PieceRef

PASSPHRASE = "correct horse battery staple"
NOW = 1_790_000_000.0
DAY = 86_400

SALLE = Place("ice", "paris", "1", "salle")
SAS = Place("ice", "paris", "1", "sas")


@dataclass
class Clock:
    """Seconds that pass when the test says so."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class Fleet:
    """A state folder, and what its daemon would hold in memory."""

    paths: StatePaths
    node: NodeId
    fleet: FleetId
    clock: Clock
    settings: CentralSettings = field(default_factory=CentralSettings)
    announced: list[SignedState] = field(default_factory=list)

    def open(self) -> CentralService:
        return CentralService.open(
            self.settings,
            state=self.paths.state,
            node=self.node,
            addresses=[Address("central.example", 4777)],
            documents=DocumentStore(self.paths.documents),
            changed=self.announced.append,
            clock=self.clock,
        )

    @contextmanager
    def running(self) -> Iterator[CentralService]:
        service = self.open()
        try:
            yield service
        finally:
            service.close()

    def copy(self, target: Path) -> Fleet:
        """The same fleet from a backup of its whole state folder."""
        shutil.copytree(self.paths.state, target)
        paths = StatePaths(target, self.paths.scripts)
        return Fleet(paths, self.node, self.fleet, Clock(self.clock.now), self.settings)


def found_fleet(folder: Path) -> Fleet:
    paths = StatePaths(folder / "state", folder / "scripts")
    founded = initialise(
        Founding(
            fleet_name="Salles d'essai",
            node_name="central",
            root_key_file=folder / "root-keys.txt",
            advertise=[Address("central.example", 4777)],
        ),
        paths=paths,
        passphrase=PASSPHRASE,
        now=NOW,
    )
    return Fleet(paths, founded.identity.node_id, founded.fleet, Clock())


def manifest_root(
    fleet: FleetId, name: str, kind: str, version: int, content: bytes = b""
) -> ManifestRoot:
    """A manifest root with one piece whose content is only pretended."""
    piece = PieceRef(PieceId.of(content or name.encode()), 100, 1, 5)
    return ManifestRoot(
        fleet=fleet,
        kind=kind,
        name=name,
        version=version,
        profile=DEFAULT_PROFILE,
        files=1,
        folders=0,
        links=0,
        size_bytes=5,
        chunk_count=1,
        pieces=(piece,),
    )


async def publish(service: CentralService, name: str, kind: str, content: bytes = b"") -> int:
    following = await service.begin_publication(name, kind)
    root = manifest_root(
        service.state.root.fleet,
        name,
        kind,
        following.version,
        content or f"{name} {following.version}".encode(),
    )
    published, _ = await service.commit_publication(root, by="tester")
    return published.version


async def publish_three(service: CentralService, stem: str = "dune") -> None:
    for kind in ("feature", "sas", "loop"):
        await publish(service, f"{stem}-{kind}", kind)


async def join(
    service: CentralService, place: Place, name: str, key: PublicKey | None = None
) -> Admission:
    token = await service.membership.create_token(place, name=name, by="tester")
    parsed = JoinToken.decode(token.text)
    return await service.membership.redeem(
        token=parsed.token_id,
        secret=parsed.secret,
        public_key=key or new_key(),
        name="whatever",
    )


def new_key() -> PublicKey:
    return PublicKey(Ed25519PrivateKey.generate().public_key().public_bytes_raw())


def definition(
    name: str = "Dune",
    *,
    stem: str = "dune",
    targets: str = 'sites = ["paris"]',
    feature: str = "",
    start: str = "2026-10-14T09:00:00+02:00",
    end: str = "2026-12-01T00:00:00+01:00",
    prefetch: str = "2026-10-07T00:00:00Z",
) -> str:
    return f"""
name = "{name}"
feature = "{feature or stem + "-feature"}"
sas = "{stem}-sas"
loop = "{stem}-loop"
prefetch = {prefetch}
start = {start}
end = {end}

[targets]
{targets}
"""
