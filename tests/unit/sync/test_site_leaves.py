"""Nodes of a site keep one another's leaves: the newest ones, and nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from archid.sync.site_leaves import SiteLeaves
from protocol.errors import TrustError
from protocol.ids import NodeId
from tests.unit.sync.sync_nodes import SyncFleet, SyncNode, connect, event, release, running


@pytest.fixture
def fleet(tmp_path: Path) -> SyncFleet:
    return SyncFleet(tmp_path)


@pytest.fixture
def nodes(fleet: SyncFleet) -> Iterator[dict[str, SyncNode]]:
    places = {"repo": "", "salle": "lyon", "sas": "lyon", "nice": "nice"}
    made = {
        name: fleet.enrol(name, "ice" if site else "repo", site) for name, site in places.items()
    }
    fleet.sign()
    with ExitStack() as stack:
        yield {name: stack.enter_context(fleet.node(one)) for name, one in made.items()}


def keeping(node: SyncNode) -> SiteLeaves:
    return SiteLeaves(node.leaf, node.keeper, node.directory, node.states, node.events)


def owners(node: SyncNode) -> list[NodeId]:
    return sorted(owner for owner, _ in node.documents.leaves())


async def test_the_newest_leaf_of_a_neighbour_is_kept_and_no_other_cinemas(
    fleet: SyncFleet, nodes: dict[str, SyncNode]
) -> None:
    repo, salle, sas, nice = (nodes[name] for name in ("repo", "salle", "sas", "nice"))
    repo.hold_lists()
    async with salle.events.subscribe() as kept, running(keeping(salle).run) as nursery:
        for other in (repo, sas, nice):
            await connect(nursery, salle, other)
        await event(kept, "site_leaf.kept", node=sas.id.hex())
        assert owners(salle) == sorted([salle.id, sas.id])

        fleet.give(sas.identity, [release("film")])
        fleet.sign()
        repo.hold_lists()
        for node in (repo, salle):
            await node.take_head()
        newest = fleet.grants_roots[0]
        await event(kept, "site_leaf.kept", node=sas.id.hex(), grants_root=newest.hex())
        assert [one for one in salle.documents.leaves() if one[0] == sas.id] == [(sas.id, newest)]
        assert salle.documents.get_leaf(sas.id, newest) == fleet.leaf(sas.identity)
        nursery.cancel_scope.cancel()


async def test_a_leaf_of_another_site_is_not_kept(
    fleet: SyncFleet, nodes: dict[str, SyncNode]
) -> None:
    repo, salle, nice = (nodes[name] for name in ("repo", "salle", "nice"))
    site_leaves = keeping(repo)  # which may ask for any leaf
    async with running() as nursery:
        link = await connect(nursery, repo, nice)
        with pytest.raises(TrustError, match="another site"):
            await site_leaves._ask(link.left, nice.id, fleet.grants_roots[0], salle.facts)
        assert owners(repo) == [repo.id]
        nursery.cancel_scope.cancel()
