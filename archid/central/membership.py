"""Who is in the fleet: tokens, joining, and leaving for good.

What is written is in `archid.central.tokens` and `archid.central.estate`; each outcome is logged
here, once.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from archid.central.ledger import Denials, Ledger
from archid.central.tokens import (
    Admission,
    NewToken,
    TokenRow,
    create_token,
    list_tokens,
    member_with,
    redeem_token,
)
from archid.errors import UsageError
from archid.log import get_logger
from archid.net.certificates import issue
from protocol.envelope import PublicKey
from protocol.head import DENIED_NODE
from protocol.ids import NodeId
from protocol.join_token import JoinToken
from protocol.messages import RENEWAL_TOKEN_ID

log = get_logger(__name__)


class Membership:
    """Central's desk for nodes that come and go."""

    def __init__(self, ledger: Ledger, *, node: NodeId, addresses: Sequence[Address]) -> None:
        """`node` is central itself, `addresses` are where joiners reach it."""
        self._ledger = ledger
        self._node = node
        self._addresses = tuple(str(address) for address in addresses)

    async def create_token(
        self, place: Place, *, name: str, lifetime_s: int | None = None, by: str
    ) -> NewToken:
        """A token for one node; raises UsageError, Conflict, Unavailable."""
        if not self._addresses:
            raise UsageError(
                "A token must say where central is reached",
                remedy="Set [network] advertise in central's configuration and restart it",
            )
        lifetime = lifetime_s or int(self._ledger.settings.token_lifetime.total_seconds())
        self._ledger.gate.require_open(now=self._ledger.clock())

        def work() -> NewToken:
            with self._ledger.database.write() as connection:
                secret, row = create_token(
                    connection,
                    place=place,
                    name=name,
                    lifetime_s=lifetime,
                    by=by,
                    now_s=self._ledger.now_s,
                )
            text = JoinToken(
                addresses=self._addresses,
                central=self._node,
                fingerprint=self._ledger.state.root.fingerprint,
                token_id=secret.token,
                secret=secret.secret,
                fleet_name=self._ledger.state.root.fleet_name,
                role=place.role,
                expires_s=row.expires_s,
            ).encode()
            return NewToken(text, row, self._addresses)

        made = await self._ledger.hop(work)
        log.info("join_prepared", id=made.row.token.hex(), role=place.role, by=by)
        return made

    async def tokens(self) -> list[TokenRow]:
        """Every token, newest first."""
        return await self._ledger.read(lambda found: list_tokens(found, now_s=self._ledger.now_s))

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

        if token == RENEWAL_TOKEN_ID:
            return self._admission(
                await self._ledger.read(lambda found: member_with(found, public_key))
            )

        def change(connection: Connection) -> tuple[Node, bool]:
            return redeem_token(
                connection,
                token=token,
                secret=secret,
                key=public_key,
                name=name,
                role=role,
                now_s=self._ledger.now_s,
            )

        node, is_new = await self._ledger.change(change, reason="a node joined")
        if is_new:
            log.info("node_joined", node=node.node.short, name=node.name, role=node.place.role)
        return self._admission(node)

    def _admission(self, node: Node) -> Admission:
        state = self._ledger.state
        return Admission(
            node=node,
            certificate=issue(
                self._ledger.keys.ca_key, state.root.ca_certificates[0], node.key, node.node
            ),
            roots=state.roots,
            head=state.head_envelope,
            grants=state.grants_envelope,
            leaf=state.leaf(node.node),
        )

    async def confirm(self, node: NodeId) -> Node:
        """The newcomer has stored everything and is ready; raises NotFound."""

        def work() -> Node:
            with self._ledger.database.write() as connection:
                return mark_ready(connection, node, now_s=self._ledger.now_s)

        return await self._ledger.hop(work)

    async def nodes(self) -> list[Node]:
        """Every node that has not left, by name."""
        return await self._ledger.read(present_nodes)

    async def remove_node(self, name: str, *, confirm: bool = False, by: str) -> Node:
        """Take a node (by name or id) out of the fleet and deny it at once.

        Raises NotFound, Conflict, TakesAway unless `confirm`.
        """

        def change(connection: Connection) -> tuple[Node, Denials]:
            node = find_node(connection, name)
            remove_node(connection, node, now_s=self._ledger.now_s)
            return node, [(DENIED_NODE, bytes(node.node))]

        node, _ = await self._ledger.change(
            change,
            reason=f"{name} was removed by {by}",
            confirm=confirm,
            denied=lambda result: result[1],
        )
        log.info("node_removed", node=node.node.short, name=node.name, by=by)
        return node
