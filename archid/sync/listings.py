"""Keeps the documents that only central and REPOs hold: Catalogue, Roster, Grants with all leaves.

After each new head the lists that it names are fetched page by page (unchanged pages are here
already), then the leaves that changed. A REPO that has all of it can bring every node of the
fleet up to date, and central too when central comes back from an old backup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import trio

from archid.errors import ArchidError
from archid.events import EventHub
from archid.log import get_logger
from archid.net.peer import Peer
from archid.store.documents import DocumentStore
from archid.store.errors import DocumentMissing
from archid.sync.one_error import one_error
from archid.sync.peers import PeerDirectory
from archid.sync.signal import Signal, either
from archid.sync.trust_keeper import Accepted, TrustKeeper
from protocol.canonical import Value
from protocol.documents import GrantsRoot
from protocol.errors import FormatError, ProtocolError
from protocol.facts import NodeFacts
from protocol.grants import LeafDocument, node_leaf_hash
from protocol.head import Head
from protocol.ids import DocumentId, ListId, NodeId
from protocol.merkle import MerkleTree, leaf_hash
from protocol.messages import (
    GetGrants,
    GetLeaf,
    GetList,
    GetPage,
    GrantsAnswer,
    LeafAnswer,
    ListAnswer,
    PageAnswer,
)
from protocol.paged import (
    CATALOGUE,
    GRANTS,
    ROSTER,
    CatalogueRow,
    GrantsRow,
    ListIndex,
    PageRef,
    RosterRow,
    decode_index,
    decode_page,
)
from protocol.refusals import GrantsNotAccepted

log = get_logger(__name__)

LEAF_REQUESTS: Final = 8
LEAF_ROOTS_KEPT: Final = 2
FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0


class Listings:
    """What the newest head lists, as far as it is here. `changed` fires when more has come."""

    def __init__(
        self,
        *,
        keeper: TrustKeeper,
        documents: DocumentStore,
        directory: PeerDirectory,
        events: EventHub,
    ) -> None:
        self.changed = Signal()
        self.catalogue: tuple[CatalogueRow, ...] = ()
        self.roster: tuple[RosterRow, ...] = ()
        self._facts: dict[NodeId, NodeFacts] = {}
        self._keeper = keeper
        self._documents = documents
        self._directory = directory
        self._events = events
        self._complete_for: tuple[int, int] | None = None

    def facts_of(self, node: NodeId) -> NodeFacts | None:
        """Who a node is by the Roster, None when it is not in it or no Roster is here."""
        return self._facts.get(node)

    async def run(self) -> None:
        """Follow the heads until cancelled."""
        heads, peers = self._keeper.changed, self._directory.changed
        wait_s = FIRST_RETRY_S
        while True:
            heads_seen, peers_seen = heads.version, peers.version
            asked = False
            if not self.is_complete:
                asked = await self._catch_up()
            if self.is_complete:
                wait_s = FIRST_RETRY_S
                await heads.wait(heads_seen)
                continue
            # Who was asked and had nothing is asked again; without a peer there is nobody to ask.
            with trio.move_on_after(wait_s if asked else math.inf) as timer:
                await either((heads, heads_seen), (peers, peers_seen))
            waited = timer.cancelled_caught
            wait_s = min(2 * wait_s, LONGEST_RETRY_S) if waited else FIRST_RETRY_S

    @property
    def is_complete(self) -> bool:
        """Whether everything under the newest head is here."""
        return self._keeper.order == self._complete_for

    async def load(self) -> None:
        """Read what is here already, after a start."""
        head = self._keeper.trust.head
        if head is None:
            return
        try:
            await self._adopt(head)
        except (ArchidError, ProtocolError) as error:
            log.info("listings_incomplete", why=str(error))

    async def _adopt(self, head: Head) -> None:
        catalogue = await trio.to_thread.run_sync(self._rows, CATALOGUE, head.catalogue)
        roster = await trio.to_thread.run_sync(self._rows, ROSTER, head.roster)
        rows = tuple(CatalogueRow.from_value(row) for row in catalogue)
        nodes = tuple(RosterRow.from_value(row) for row in roster)
        if (rows, nodes) != (self.catalogue, self.roster):
            self.catalogue, self.roster = rows, nodes
            self._facts = {row.facts.node: row.facts for row in nodes}
            self.changed.fire()

    async def _catch_up(self) -> bool:
        """Complete it from what is here, else from the holders of everything, one by one.

        Returns whether there was anybody to ask.
        """
        holders = self._directory.holders_of_everything()
        for peer in (None, *holders):
            head = self._keeper.trust.head
            if head is None:
                break
            try:
                await self._fetch_list(peer, CATALOGUE, head.catalogue)
                await self._fetch_list(peer, ROSTER, head.roster)
                await self._adopt(head)
                await self._fetch_grants(peer, head.grants_roots[0])
            except (ArchidError, ProtocolError) as error:
                if peer is not None:
                    log.info("listings_not_given", node=peer.node.short, why=str(error))
                continue
            if self._keeper.order == head.order:
                self._complete_for = head.order
                log.info("listings_complete", serial=head.serial, scripts=len(self.catalogue))
                self._events.publish("listings.complete", epoch=head.epoch, serial=head.serial)
                self.changed.fire()
                break
        return bool(holders)

    async def _fetch_list(self, peer: Peer | None, list_type: str, list_id: ListId) -> None:
        """Make sure that a list is here with all its pages.

        The index is put last, but pages may have been damaged since, so each is looked for.
        """
        try:
            data = await trio.to_thread.run_sync(self._documents.get_list, list_id)
        except DocumentMissing:
            if peer is None:
                raise
            answer = await peer.request(GetList(0, list_type, list_id), ListAnswer)
            if ListId.of(answer.index) != list_id:
                raise FormatError(f"{peer.facts.name} sent another list") from None
            data = answer.index
        index = self._checked(decode_index(data), list_type)
        for ref in await trio.to_thread.run_sync(self._missing_pages, index):
            if peer is None:
                raise DocumentMissing("pages", ref.id.hex())
            page = await peer.request(GetPage(0, list_type, list_id, ref.id), PageAnswer)
            decode_page(page.page, ref, list_type)
            await trio.to_thread.run_sync(self._documents.put_page, page.page)
        await trio.to_thread.run_sync(self._documents.put_list, data)

    def _missing_pages(self, index: ListIndex) -> list[PageRef]:
        return [ref for ref in index.pages if not self._documents.has_page(ref.id)]

    async def _fetch_grants(self, peer: Peer | None, grants_root: DocumentId) -> None:
        if self._keeper.trust.grants(grants_root) is None:
            if peer is None:
                raise DocumentMissing("grants", grants_root.hex())
            answer = await peer.request(GetGrants(0, grants_root), GrantsAnswer)
            await self._keeper.accept_grants(answer.envelope)
        grants = self._keeper.trust.grants(grants_root)
        if grants is None:
            raise GrantsNotAccepted(grants_root, named=False)
        await self._fetch_list(peer, GRANTS, grants.index)
        missing = await trio.to_thread.run_sync(self._carry_leaves, grants_root, grants)
        if missing and peer is None:
            raise DocumentMissing("leaves", missing[0].hex())
        if missing and peer is not None:
            with one_error():
                async with trio.open_nursery() as nursery:
                    for _ in range(min(LEAF_REQUESTS, len(missing))):
                        nursery.start_soon(self._fetch_leaves, peer, grants_root, missing)
        await trio.to_thread.run_sync(self._drop_old_leaves, self._keeper.accepted)

    async def _fetch_leaves(self, peer: Peer, grants_root: DocumentId, left: list[NodeId]) -> None:
        while left:
            node = left.pop()
            answer = await peer.request(GetLeaf(0, node, grants_root), LeafAnswer)
            await self._keeper.keep_leaf(answer.leaf, node, grants_root)

    def _carry_leaves(self, grants_root: DocumentId, grants: GrantsRoot) -> list[NodeId]:
        """Give every leaf that did not change its path to the new root; return the other nodes.

        The Grants list has the hash of each leaf, so only leaves that changed have to come over
        the network, however many nodes there are.
        """
        rows = [GrantsRow.from_value(row) for row in self._rows(GRANTS, grants.index)]
        tree = MerkleTree([row.leaf_hash for row in rows])
        if (tree.root, len(rows)) != (grants.tree, grants.leaf_count):
            raise FormatError("the list of leaves is not that of its Grants root")
        held: dict[NodeId, list[DocumentId]] = {}
        for node, root in self._documents.leaves():
            held.setdefault(node, []).append(root)
        missing = []
        for number, row in enumerate(rows):
            roots = held.get(row.node, [])
            if grants_root in roots:
                continue
            leaf = self._same_leaf(row, roots)
            if leaf is None:
                missing.append(row.node)
                continue
            carried = replace(
                leaf,
                leaf_index=number,
                leaf_count=len(rows),
                path=tree.path(number),
                grants_root=grants_root,
            )
            self._documents.put_leaf(row.node, grants_root, carried.encode())
        return missing

    def _same_leaf(self, row: GrantsRow, roots: Sequence[DocumentId]) -> LeafDocument | None:
        for root in roots:
            try:
                leaf = LeafDocument.decode(self._documents.get_leaf(row.node, root))
            except (DocumentMissing, ProtocolError):
                continue
            inner = MerkleTree([leaf_hash(item) for item in leaf.items]).root
            if node_leaf_hash(row.node, len(leaf.items), inner) == row.leaf_hash:
                return leaf
        return None

    def _drop_old_leaves(self, accepted: Accepted) -> None:
        """Leaves under older roots are of no use here: every node asks for the newest.

        What central signs meanwhile is newer than `accepted`. The leaves are listed before it is
        asked what those are, so that none that comes in between is taken for an old one.
        """
        held = list(self._documents.leaves())
        keep = {grants_root for grants_root, _ in accepted[:LEAF_ROOTS_KEPT]}
        keep.update(self._keeper.signed_here())
        for node, root in held:
            if root not in keep:
                self._documents.remove_leaf(node, root)

    def _rows(self, list_type: str, list_id: ListId) -> Sequence[Value]:
        index = self._checked(decode_index(self._documents.get_list(list_id)), list_type)
        rows: list[Value] = []
        for ref in index.pages:
            rows.extend(decode_page(self._documents.get_page(ref.id), ref, list_type))
        return rows

    def _checked(self, index: ListIndex, list_type: str) -> ListIndex:
        if index.list_type != list_type or index.fleet != self._keeper.trust.fleet:
            raise FormatError(f"a list is not the {list_type} of this fleet")
        return index
