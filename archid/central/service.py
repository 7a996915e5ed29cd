"""Central's work behind one door: what control handlers, the join desk and the daemon call.

Each method hops once into the one thread that owns the database, does everything there in one
transaction (the change, and signing what follows from it), puts the new documents into the store,
and back in trio's thread tells the daemon that there is a new state. Decisions are in the modules
that own a subject; here they are only put in order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import sqlalchemy as sa
import trio
from sqlalchemy.engine import Connection

from archid.addresses import Address
from archid.central.estate import (
    Node,
    Place,
    find_node,
    mark_ready,
    present_nodes,
    remove_node,
)
from archid.central.importing import collect_documents, import_documents
from archid.central.kept_documents import keep_documents
from archid.central.keys import OnlineKeys
from archid.central.publishing import (
    NextVersion,
    PublishedVersion,
    next_version,
    published_versions,
    record_publication,
    release_names,
)
from archid.central.recovery import CentralGate, GateState, HeadMark
from archid.central.release_definition import parse_release
from archid.central.release_plan import CurrentRelease, ReleasePlan
from archid.central.releases import (
    current_release,
    list_releases,
    plan,
    unknown_release,
    withdraw_release,
    write_release,
)
from archid.central.signed_state import SignedState, load_state
from archid.central.signing import refresh_at_s, sign_state
from archid.central.store import CentralDatabase, database_url
from archid.central.tables import heads
from archid.central.tokens import TokenRow, create_token, list_tokens, redeem_token
from archid.config import CentralSettings
from archid.errors import ArchidError, Conflict, StorageError, TrustFailure, UsageError
from archid.log import get_logger
from archid.net.certificates import issue
from archid.store.documents import DocumentStore
from protocol.envelope import Envelope, PublicKey
from protocol.errors import LimitExceeded, ProtocolError, TrustError
from protocol.head import DENIED_NODE, DENIED_RELEASE, Head
from protocol.ids import DocumentId, ManifestId, NodeId
from protocol.join_token import JoinToken
from protocol.limits import MAX_HEAD_BYTES, MAX_ROOT_BYTES
from protocol.manifest import ManifestRoot
from protocol.root import Root
from protocol.trust import SignatureMissing, signed_by_role

log = get_logger(__name__)
T = TypeVar("T")

LONGEST_NAP_S: Final = 60.0
SHORTEST_NAP_S: Final = 1.0
Denials = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class NewToken:
    """A token that was just made; `text` is shown once and kept nowhere."""

    text: str
    row: TokenRow
    addresses: tuple[str, ...]

    def __repr__(self) -> str:
        return f"NewToken({self.row.token.hex()})"

    def to_json(self) -> dict[str, object]:
        """As the control socket answers ``token.create``."""
        shown = self.row.to_json()
        kept = ("id", "role", "name", "site", "room", "server_kind", "expires_s")
        return {
            "token": self.text,
            "addresses": list(self.addresses),
            **{key: shown[key] for key in kept},
        }


@dataclass(frozen=True)
class Admission:
    """What a newcomer is given: the fields of `protocol.messages.JoinAccepted`, and its node."""

    node: Node
    certificate: bytes
    roots: tuple[bytes, ...]
    head: bytes
    grants: bytes
    leaf: bytes


class CentralService:
    """The facade. Open it before trio runs or in a thread; then call it from trio's thread.

    `changed` is called in trio's thread with every new state, once its documents are kept.
    """

    def __init__(
        self,
        database: CentralDatabase,
        keys: OnlineKeys,
        state: SignedState,
        gate: CentralGate,
        signed_heads: dict[tuple[int, int], DocumentId],
        *,
        settings: CentralSettings,
        node: NodeId,
        addresses: Sequence[Address],
        documents: DocumentStore,
        changed: Callable[[SignedState], None],
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._keys = keys
        self._state = state
        self._gate = gate
        self._signed_heads = signed_heads
        self._settings = settings
        self._node = node
        self._addresses = tuple(str(address) for address in addresses)
        self._documents = documents
        self._changed = changed
        self._clock = clock
        self._one_thread = trio.CapacityLimiter(1)
        self._publishing: set[str] = set()
        self._unkept = False

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

        `addresses` are where joiners reach central. Raises StorageError, Conflict, Unavailable.
        """
        keys = OnlineKeys.load(state)
        database = CentralDatabase.open(database_url(settings.database, state))
        try:
            with database.read() as connection:
                loaded = load_state(connection)
                if loaded is None:
                    raise Conflict(
                        "Central's database holds no fleet",
                        remedy="Make one with archid init, or restore the database from a backup",
                        code="no_fleet",
                    )
                repos = _repos(connection)
                signed_heads = {
                    (row.epoch, row.serial): _mark(row.envelope).id
                    for row in connection.execute(
                        sa.select(heads.c.epoch, heads.c.serial, heads.c.envelope)
                    )
                }
            keep_documents(loaded, documents)
        except BaseException:
            database.close()
            raise
        gate = CentralGate(
            HeadMark.of(loaded.head), repos=repos, signed=signed_heads.get, now=clock()
        )
        return cls(
            database,
            keys,
            loaded,
            gate,
            signed_heads,
            settings=settings,
            node=node,
            addresses=addresses,
            documents=documents,
            changed=changed,
            clock=clock,
        )

    def close(self) -> None:
        """Close the database; nothing may be called afterwards."""
        self._database.close()

    @property
    def state(self) -> SignedState:
        """What was signed last."""
        return self._state

    @property
    def gate(self) -> CentralGate:
        """Whether central may sign, and if not, why."""
        return self._gate

    # -- joining

    async def create_token(
        self, place: Place, *, name: str, lifetime_s: int | None = None, by: str
    ) -> NewToken:
        """A token for one node; raises UsageError, Conflict, Unavailable."""
        if not self._addresses:
            raise UsageError(
                "A token must say where central is reached",
                remedy="Set [network] advertise in central's configuration and restart it",
            )
        lifetime = lifetime_s or int(self._settings.token_lifetime.total_seconds())
        self._gate.require_open(now=self._clock())

        def work() -> NewToken:
            with self._database.write() as connection:
                secret, row = create_token(
                    connection,
                    place=place,
                    name=name,
                    lifetime_s=lifetime,
                    by=by,
                    now_s=int(self._clock()),
                )
            text = JoinToken(
                addresses=self._addresses,
                central=self._node,
                fingerprint=self._state.root.fingerprint,
                token_id=secret.token,
                secret=secret.secret,
                fleet_name=self._state.root.fleet_name,
                role=place.role,
                expires_s=row.expires_s,
            ).encode()
            return NewToken(text, row, self._addresses)

        made = await self._hop(work)
        log.info("join_prepared", id=made.row.token.hex(), role=place.role, by=by)
        return made

    async def tokens(self) -> list[TokenRow]:
        """Every token, newest first."""
        return await self._read(lambda found: list_tokens(found, now_s=int(self._clock())))

    async def redeem(
        self,
        *,
        token: bytes,
        secret: bytes,
        public_key: PublicKey,
        name: str,
        role: str | None = None,
    ) -> Admission:
        """Let the holder of `public_key`, who has proven that it holds it, into the fleet.

        Asking again with the same token and key gives the same answer. Raises TokenRefused,
        whose code is one of the protocol's, Conflict, Unavailable.
        """

        def change(connection: Connection) -> tuple[Node, bool]:
            return redeem_token(
                connection,
                token=token,
                secret=secret,
                key=public_key,
                name=name,
                role=role,
                now_s=int(self._clock()),
            )

        node, is_new = await self._change(change, reason="a node joined")
        if is_new:
            log.info("node_joined", node=node.node.short, name=node.name, role=node.place.role)
        state = self._state
        return Admission(
            node=node,
            certificate=issue(
                self._keys.ca_key, state.root.ca_certificates[0], node.key, node.node
            ),
            roots=state.roots,
            head=state.head_envelope,
            grants=state.grants_envelope,
            leaf=state.leaf(node.node),
        )

    async def confirm(self, node: NodeId) -> Node:
        """The newcomer has stored everything and is ready; raises NotFound."""

        def work() -> Node:
            with self._database.write() as connection:
                return mark_ready(connection, node, now_s=int(self._clock()))

        return await self._hop(work)

    async def nodes(self) -> list[Node]:
        """Every node that has not left, by name."""
        return await self._read(present_nodes)

    async def remove_node(self, name: str, *, confirm: bool = False, by: str) -> Node:
        """Take a node (by name or id) out of the fleet and deny it at once.

        Raises NotFound, Conflict, TakesAway unless `confirm`.
        """

        def change(connection: Connection) -> tuple[Node, Denials]:
            node = find_node(connection, name)
            remove_node(connection, node, now_s=int(self._clock()))
            return node, [(DENIED_NODE, bytes(node.node))]

        node, _ = await self._change(
            change,
            reason=f"{name} was removed by {by}",
            confirm=confirm,
            denied=lambda result: result[1],
        )
        log.info("node_removed", node=node.node.short, name=node.name, by=by)
        return node

    # -- publishing

    async def begin_publication(self, name: str, kind: str) -> NextVersion:
        """Reserve the next version of a script until it is committed or abandoned.

        Raises UsageError for the name or the kind, Conflict when the script is of another kind
        or is being published, Unavailable while central asks the REPOs.
        """
        self._gate.require_open(now=self._clock())
        if name in self._publishing:
            raise Conflict(
                f"The script '{name}' is being published already",
                remedy="Wait until that is done",
                code="publishing",
            )
        self._publishing.add(name)
        try:
            return await self._read(lambda connection: next_version(connection, name, kind))
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
                connection, self._keys, root, by=by, now_s=int(self._clock())
            )
            self._documents.put_manifest(published.envelope)
            return published, is_new

        if root.fleet != self._state.root.fleet:
            raise UsageError("The manifest belongs to another fleet")
        try:
            published, is_new = await self._change(
                change, reason=f"{root.name} was published by {by}"
            )
        finally:
            self._publishing.discard(root.name)
        log.info("script_published", script=root.name, version=published.version, new=is_new, by=by)
        return published, is_new

    async def scripts(self) -> list[PublishedVersion]:
        """The catalogue by name and version."""
        return await self._read(published_versions)

    async def release_names(self) -> dict[ManifestId, list[str]]:
        """For each manifest, the active releases that have it."""
        return await self._read(release_names)

    # -- releases

    async def plan_release(self, definition: str, *, source: str) -> ReleasePlan:
        """What applying the definition (TOML) would change; changes nothing.

        Raises UsageError naming every mistake; `source` is what it calls the file.
        """
        parsed = parse_release(definition, source=source)
        now_s = int(self._clock())
        return await self._read(lambda found: plan(found, parsed, source=source, now_s=now_s))

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
            now_s = int(self._clock())
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

        agreed, _ = await self._change(
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
            taken = withdraw_release(connection, name, by=by, now_s=int(self._clock()))
            return taken, [(DENIED_RELEASE, bytes(taken.release))]

        taken, _ = await self._change(
            change,
            reason=f"release {name} was withdrawn by {by}",
            confirm=confirm,
            denied=lambda result: result[1],
        )
        log.info("release_withdrawn", release=taken.name, by=by)
        return taken

    async def releases(self) -> list[CurrentRelease]:
        """Every release by name."""
        return await self._read(list_releases)

    async def release(self, name: str) -> CurrentRelease:
        """One release by name or id; raises NotFound."""

        def look(connection: Connection) -> CurrentRelease:
            found = current_release(connection, name)
            if found is None:
                raise unknown_release(connection, name)
            return found

        return await self._read(look)

    # -- heads over time, and central coming back

    async def tick(self) -> float:
        """Refresh the head if it is time; returns after how many seconds to ask again."""
        now = self._clock()
        refresh_s = int(self._settings.head_refresh.total_seconds())
        self._gate.tick(now=now)
        if not self._gate.is_open:
            return SHORTEST_NAP_S
        due_s = refresh_at_s(self._state.head, refresh_s=refresh_s)
        if self._unkept:
            await self._keep_again()
        if now >= due_s or not self._state.complete:
            await self._change(lambda _: None, reason="refreshed", refresh=True, confirm=False)
            due_s = refresh_at_s(self._state.head, refresh_s=refresh_s)
        return min(max(due_s - self._clock(), SHORTEST_NAP_S), LONGEST_NAP_S)

    async def run(self) -> None:
        """Keep the head fresh for as long as central runs."""
        while True:
            try:
                nap_s = await self.tick()
            except ArchidError as error:
                log.error("head_not_refreshed", why=error.sentence)
                nap_s = LONGEST_NAP_S
            await trio.sleep(nap_s)

    def head_shown(
        self, peer: NodeId, head: bytes | None, *, roots: Sequence[bytes] = ()
    ) -> GateState:
        """A peer showed its newest head (None: it has none yet); REPOs answer with it.

        `roots` are Root envelopes, believed already, beyond those of the database. Raises
        TrustFailure when no key of the role `head` signed it; then it counts for nothing.
        """
        shown: HeadMark | None = None
        if head is not None:
            try:
                shown = self._verified_mark(head, roots)
            except ProtocolError as error:
                raise TrustFailure(
                    f"The head that {peer.short} showed is not the fleet's: {error}"
                ) from error
        before = self._gate.state
        after = self._gate.head_shown(peer, shown, now=self._clock())
        if after is not before:
            if after is GateState.STOPPED:
                log.error("central_stopped", why=self._gate.reason, peer=peer.short)
            else:
                log.info("central_gate", state=after.value, why=self._gate.reason)
        return after

    async def import_newer(self, head: bytes, *, roots: Sequence[bytes]) -> GateState:
        """Take over a newer head from the document store, where everything under it is.

        Raises Unavailable (documents_missing) while something has not been fetched. When the
        documents contradict the database, central stops and the error says why.
        """

        def work() -> tuple[SignedState, frozenset[NodeId]]:
            found = collect_documents(self._documents, head=head, roots=roots)
            with self._database.write() as connection:
                import_documents(connection, self._keys, found, now_s=int(self._clock()))
                loaded = load_state(connection)
                if loaded is None:
                    raise AssertionError("the imported head is gone")
                return loaded, _repos(connection)

        try:
            state, repos = await self._hop(work)
        except (ProtocolError, Conflict) as error:
            why = f"The newer documents of the fleet cannot be imported: {error}"
            self._gate.import_failed(why)
            log.error("central_stopped", why=why)
            raise Conflict(why, remedy="Let a person look", code="central_stopped") from error
        self._state = state
        mark = HeadMark.of(state.head)
        self._signed_heads[mark.order] = mark.id
        after = self._gate.imported(mark, repos=repos, now=self._clock())
        log.info("central_imported", epoch=mark.order[0], serial=mark.order[1])
        self._changed(state)
        return after

    async def trust_database(self, *, by: str) -> SignedState:
        """A person decides that the database counts: sign above everything that was shown.

        Raises Conflict when the fleet is in a newer epoch.
        """
        above = self._gate.trust_database()
        log.warning("central_trusts_its_database", by=by, above=above)
        await self._change(
            lambda _: None, reason=f"the database was trusted by {by}", refresh=True, above=above
        )
        return self._state

    # -- the one way in

    async def _change(
        self,
        change: Callable[[Connection], T],
        *,
        reason: str,
        confirm: bool = False,
        refresh: bool = False,
        above: int = 0,
        denied: Callable[[T], Denials] = lambda _: (),
    ) -> T:
        """Change the definitions and sign what follows from it, in one transaction."""
        self._gate.require_open(now=self._clock())

        def work() -> tuple[T, SignedState | None, StorageError | None]:
            with self._database.write() as connection:
                result = change(connection)
                try:
                    state = sign_state(
                        connection,
                        self._keys,
                        now_s=int(self._clock()),
                        lifetime_s=int(self._settings.head_lifetime.total_seconds()),
                        reason=reason,
                        denied=denied(result),
                        confirm=confirm,
                        refresh=refresh,
                        above=above,
                    )
                except LimitExceeded as error:
                    raise Conflict(f"The fleet would outgrow a limit: {error}") from error
            # Committed: from here on the new state counts, kept or not.
            return result, state, None if state is None else self._keep(state)

        result, state, not_kept = await self._hop(work)
        if state is not None:
            self._state = state
            mark = HeadMark.of(state.head)
            self._signed_heads[mark.order] = mark.id
            self._gate.signed(mark)
            self._unkept = not_kept is not None
            epoch, serial = state.order
            log.info("head_signed", epoch=epoch, serial=serial, why=reason)
            if not_kept is not None:
                # Told to nobody before the documents are there to be asked for; `tick` repeats.
                raise not_kept
            self._changed(state)
        return result

    def _keep(self, state: SignedState) -> StorageError | None:
        try:
            keep_documents(state, self._documents)
        except StorageError as error:
            return error
        return None

    async def _keep_again(self) -> None:
        state = self._state
        if (error := await self._hop(lambda: self._keep(state))) is not None:
            raise error
        self._unkept = False
        self._changed(state)

    async def _read(self, look: Callable[[Connection], T]) -> T:
        def work() -> T:
            with self._database.read() as connection:
                return look(connection)

        return await self._hop(work)

    async def _hop(self, work: Callable[[], T]) -> T:
        """Run in the one thread that owns the database; a cancelled caller still waits for it."""
        return await trio.to_thread.run_sync(work, limiter=self._one_thread)

    def _verified_mark(self, head: bytes, roots: Sequence[bytes]) -> HeadMark:
        envelope = Envelope.decode(head, max_bytes=MAX_HEAD_BYTES)
        problem: TrustError | None = None
        for data in reversed((*self._state.roots, *roots)):
            root = Root.decode(Envelope.decode(data, max_bytes=MAX_ROOT_BYTES).payload)
            try:
                content = Head.decode(signed_by_role(envelope, Head.TYPE, root, "head"))
            except SignatureMissing as error:
                problem = error
                continue
            if content.fleet != self._state.root.fleet:
                raise TrustError("it belongs to another fleet")
            return HeadMark.of(content)
        raise problem or TrustError("no Root is held")


def _mark(envelope: bytes) -> HeadMark:
    return HeadMark.of(Head.decode(Envelope.decode(envelope, max_bytes=MAX_HEAD_BYTES).payload))


def _repos(connection: Connection) -> frozenset[NodeId]:
    """The REPOs that must be asked before central signs."""
    return frozenset(node.node for node in present_nodes(connection) if node.place.role == "repo")
