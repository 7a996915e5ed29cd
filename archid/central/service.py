"""Central's work behind one door: what control handlers and the daemon call.

Each method is one change to the ledger or one look into it. Decisions are in the modules that own
a subject; here they are only put in order, and each outcome is logged once. Nodes that come and go
are `archid.central.membership`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy.engine import Connection

from archid.addresses import Address
from archid.central.ledger import Denials, Ledger
from archid.central.membership import Membership
from archid.central.publishing import (
    NextVersion,
    PublishedVersion,
    next_version,
    published_versions,
    record_publication,
    release_names,
)
from archid.central.recovery import CentralGate, GateState
from archid.central.release_definition import parse_release
from archid.central.release_plan import CurrentRelease, ReleasePlan
from archid.central.releases import (
    known_release,
    list_releases,
    plan,
    withdraw_release,
    write_release,
)
from archid.central.root_desk import RootDesk
from archid.central.signed_state import SignedState
from archid.central.succession import Succession
from archid.config import CentralSettings
from archid.errors import Conflict, UsageError
from archid.log import get_logger
from archid.net.certificates import issue
from archid.store.documents import DocumentStore
from protocol.envelope import PublicKey
from protocol.head import DENIED_RELEASE
from protocol.ids import DocumentId, ManifestId, NodeId
from protocol.manifest import ManifestRoot

log = get_logger(__name__)


class CentralService:
    """The facade. Open it before trio runs or in a thread; then call it from trio's thread."""

    def __init__(self, ledger: Ledger, *, node: NodeId, addresses: Sequence[Address]) -> None:
        self._ledger = ledger
        self._succession = Succession(ledger)
        self.membership = Membership(ledger, node=node, addresses=addresses)
        self._node = node
        self._publishing: set[str] = set()

    @classmethod
    def open(
        cls,
        settings: CentralSettings,
        *,
        state: Path,
        node: NodeId,
        addresses: Sequence[Address],
        documents: DocumentStore,
        changed: Callable[[SignedState], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> CentralService:
        """Open the database in `state` (or where the settings say) and the online keys. Blocks.

        `addresses` are where joiners reach central; `changed` is called in trio's thread with
        every new state, once its documents are in `documents`. Raises StorageError, Conflict,
        Unavailable.
        """
        ledger = Ledger.open(
            settings, state=state, documents=documents, changed=changed, clock=clock
        )
        return cls(ledger, node=node, addresses=addresses)

    def close(self) -> None:
        """Close the database; nothing may be called afterwards."""
        self._ledger.close()

    @property
    def state(self) -> SignedState:
        """What was signed last."""
        return self._ledger.state

    @property
    def grants_roots(self) -> frozenset[DocumentId]:
        """The Grants roots of what was signed last, perhaps not believed by anybody yet."""
        return self._ledger.grants_roots

    @property
    def gate(self) -> CentralGate:
        """Whether central may sign, and if not, why."""
        return self._ledger.gate

    def take_up(self, settings: CentralSettings) -> None:
        """Other lifetimes from now on; the database stays the one that was opened."""
        self._ledger.settings = settings

    def root_desk(self, believed: Callable[[], Sequence[bytes]]) -> RootDesk:
        """Where new Roots come into force; `believed` are the Roots that this node believes."""
        return RootDesk(self._ledger, believed=believed)

    def own_certificate(self, key: PublicKey) -> bytes:
        """A certificate for this node's own key by the CA that issues now."""
        ca = self._ledger.state.root.ca_certificates[0]
        return issue(self._ledger.keys.ca_key, ca, key, self._node)

    # -- publishing

    async def begin_publication(self, name: str, kind: str) -> NextVersion:
        """Reserve the next version of a script until it is committed or abandoned.

        Raises UsageError for the name or the kind, Conflict when the script is of another kind
        or is being published, Unavailable while central asks the REPOs.
        """
        self._ledger.gate.require_open(now=self._ledger.clock())
        if name in self._publishing:
            raise Conflict(
                f"The script '{name}' is being published already",
                remedy="Wait until that is done",
                code="publishing",
            )
        self._publishing.add(name)
        try:
            return await self._ledger.read(lambda connection: next_version(connection, name, kind))
        except BaseException:
            self._publishing.discard(name)
            raise

    def abandon_publication(self, name: str) -> None:
        """Give a reserved version back; no error if there is none."""
        self._publishing.discard(name)

    async def commit_publication(
        self, root: ManifestRoot, *, by: str
    ) -> tuple[PublishedVersion, bool]:
        """Sign and list a version whose tree and pieces are in the store already.

        Returns it and whether it is new: an unchanged folder gives the version that it had.
        Raises Conflict when the number was taken meanwhile.
        """

        def change(connection: Connection) -> tuple[PublishedVersion, bool]:
            published, is_new = record_publication(
                connection, self._ledger.keys, root, by=by, now_s=self._ledger.now_s
            )
            self._ledger.documents.put_manifest(published.envelope)
            return published, is_new

        if root.fleet != self._ledger.state.root.fleet:
            raise UsageError("The manifest belongs to another fleet")
        try:
            published, is_new = await self._ledger.change(
                change, reason=f"{root.name} was published by {by}"
            )
        finally:
            self._publishing.discard(root.name)
        log.info("script_published", script=root.name, version=published.version, new=is_new, by=by)
        return published, is_new

    async def scripts(self) -> list[PublishedVersion]:
        """The catalogue by name and version."""
        return await self._ledger.read(published_versions)

    def publications(self) -> list[PublishedVersion]:
        """The same, for before trio runs: it blocks."""
        return self._ledger.read_blocking(published_versions)

    async def release_names(self) -> dict[ManifestId, list[str]]:
        """For each manifest, the active releases that have it."""
        return await self._ledger.read(release_names)

    # -- releases

    async def plan_release(self, definition: str, *, source: str) -> ReleasePlan:
        """What applying the definition (TOML) would change; changes nothing.

        Raises UsageError naming every mistake; `source` is what it calls the file.
        """
        parsed = parse_release(definition, source=source)
        now_s = self._ledger.now_s
        return await self._ledger.read(
            lambda found: plan(found, parsed, source=source, now_s=now_s)
        )

    async def apply_release(
        self,
        definition: str,
        *,
        source: str,
        by: str,
        expected: bytes | None = None,
        confirm: bool = False,
    ) -> ReleasePlan:
        """Apply and sign a definition; returns the plan that was carried out.

        `expected` is the digest of the plan that a person agreed to: Conflict (plan_outdated)
        when it would be another one now. `confirm` says that the person knows what is taken
        away; without it, more than a fifth of all grants is refused (TakesAway).
        """
        parsed = parse_release(definition, source=source)

        def change(connection: Connection) -> tuple[ReleasePlan, Denials]:
            now_s = self._ledger.now_s
            agreed = plan(connection, parsed, source=source, now_s=now_s)
            if expected is not None and agreed.digest != expected:
                raise Conflict(
                    f"The release '{agreed.name}' or what it refers to has changed since the plan"
                    " was shown",
                    remedy="Look at the new plan and apply it again",
                    code="plan_outdated",
                )
            write_release(connection, agreed, by=by, now_s=now_s)
            if agreed.lost and agreed.release is not None:
                return agreed, [(DENIED_RELEASE, bytes(agreed.release))]
            return agreed, []

        agreed, _ = await self._ledger.change(
            change,
            reason=f"release {parsed.name} was applied by {by}",
            confirm=confirm,
            denied=lambda result: result[1],
        )
        log.info(
            "release_applied",
            release=agreed.name,
            action=agreed.action,
            generation=agreed.generation,
            gained=len(agreed.gained),
            lost=len(agreed.lost),
            by=by,
        )
        return agreed

    async def withdraw_release(
        self, name: str, *, confirm: bool = False, by: str
    ) -> CurrentRelease:
        """Take a release away from every server; raises NotFound, Conflict, TakesAway."""

        def change(connection: Connection) -> tuple[CurrentRelease, Denials]:
            taken = withdraw_release(connection, name, by=by, now_s=self._ledger.now_s)
            return taken, [(DENIED_RELEASE, bytes(taken.release))]

        taken, _ = await self._ledger.change(
            change,
            reason=f"release {name} was withdrawn by {by}",
            confirm=confirm,
            denied=lambda result: result[1],
        )
        log.info("release_withdrawn", release=taken.name, by=by)
        return taken

    async def releases(self) -> list[CurrentRelease]:
        """Every release by name."""
        return await self._ledger.read(list_releases)

    async def release(self, name: str) -> CurrentRelease:
        """One release by name or id; raises NotFound."""
        return await self._ledger.read(lambda connection: known_release(connection, name))

    # -- heads over time, and central coming back (see `archid.central.succession`)

    async def run(self) -> None:
        """Keep the head fresh for as long as central runs."""
        await self._succession.run()

    async def tick(self) -> float:
        """Refresh the head if it is time; returns after how many seconds to ask again."""
        return await self._succession.tick()

    def head_shown(
        self, peer: NodeId, head: bytes | None, *, roots: Sequence[bytes] = ()
    ) -> GateState:
        """A peer showed its newest head (None: it has none yet); REPOs answer with it."""
        return self._succession.head_shown(peer, head, roots=roots)

    async def import_newer(self, head: bytes, *, roots: Sequence[bytes]) -> GateState:
        """Take over a newer head from the document store, where everything under it is."""
        return await self._succession.import_newer(head, roots=roots)

    async def trust_database(self, *, by: str) -> SignedState:
        """A person decides that the database counts: sign above everything that was shown."""
        return await self._succession.trust_database(by=by)
