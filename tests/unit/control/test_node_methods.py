"""The methods that every node has, over a real library."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from archid.control.connection import Exchange
from archid.control.credentials import Caller
from archid.control.node_methods import MAX_VERIFYING, NodeMethods
from archid.control.node_status import NodeStatus
from archid.errors import Unavailable
from archid.store.bundles import Bundles
from archid.store.database import Database
from archid.store.documents import DocumentStore
from archid.store.index import MIGRATIONS, ChunkIndex
from archid.store.layout import StatePaths
from archid.store.layouts import Layouts
from archid.store.library import Library
from archid.store.tree_store import TreeStore
from archid.sync.fetcher import Fetcher
from tests.unit.store.trees import a_film, place, version_of

CALLER = Caller(pid=1, uid=1, gid=1, user_name="reader", may_change=False)


class HeldUp(Exchange):
    """A client that takes no event before it is let go, whatever is cancelled meanwhile."""

    def __init__(self) -> None:
        self.let_go = trio.Event()

    async def event(self, event: dict[str, Any]) -> None:  # noqa: ARG002 - none is looked at
        with trio.CancelScope(shield=True):
            await self.let_go.wait()


@pytest.fixture
def methods(tmp_path: Path) -> NodeMethods:
    """Of a node that holds one tree."""
    paths = StatePaths(tmp_path / "state", tmp_path / "scripts")
    paths.prepare()
    documents = DocumentStore(paths.documents)
    version = version_of(a_film())
    version.keep_documents(documents)
    place(version, paths.trees, paths.staging)
    library = Library(
        paths,
        documents=documents,
        trees=TreeStore(paths.trees, Layouts(documents)),
        index=ChunkIndex(Database(paths.node_db, MIGRATIONS)),
        bundles=Bundles(paths),
    )
    library.open()
    return NodeMethods(
        cast("NodeStatus", None),
        library=library,
        fetcher=cast("Fetcher", None),
        listing=_nothing,
        stop=lambda: None,
    )


async def _nothing() -> list[Any]:
    return []


async def test_only_a_few_clients_can_have_everything_read_at_a_time(methods: NodeMethods) -> None:
    verify = methods.handlers()["verify"]
    params = {"script": None, "manifest": None}
    exchange = HeldUp()
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_VERIFYING):
            nursery.start_soon(verify, CALLER, params, exchange)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unavailable) as caught:
            await verify(CALLER, params, exchange)
        assert caught.value.code == "busy"
        exchange.let_go.set()
    result = await verify(CALLER, params, exchange)
    assert result["ok"]
    assert len(result["trees"]) == 1


async def test_what_is_held_though_nothing_names_it_is_listed_too(methods: NodeMethods) -> None:
    """Such as the version before, which a rollback needs and which takes space."""
    methods._fetcher = cast("Fetcher", SimpleNamespace(progress={}))
    listed = await methods.handlers()["scripts"](CALLER, {}, HeldUp())
    [script] = listed["scripts"]
    assert (script["state"], script["releases"]) == ("held", [])
    assert (script["name"], script["version"]) == ("A film", 1)
