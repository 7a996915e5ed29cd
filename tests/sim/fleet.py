"""A whole fleet in simulated time: what it is made of, what happens to it, what can be measured.

`python -m tests.sim.fleet SEED` plays the story of `story` with 200 nodes and prints the hash of
everything that happened; `python -m tests.sim.fleet --figures NODES` prints what bench/README.md
quotes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

from protocol.envelope import Envelope
from protocol.facts import NodeFacts
from protocol.gossip import Announcement
from protocol.grants import GrantsTree
from protocol.head import Head
from protocol.ids import DocumentId, NodeId
from protocol.limits import MAX_HEAD_BYTES
from protocol.state import NodeState, open_state
from protocol.trust import TrustedDocuments
from tests.sim.delivery import Delivery
from tests.sim.fleet_node import SimNode
from tests.sim.network import Link, Network
from tests.unit.protocol.signed_fleet import (
    NOW_S,
    SignedFleet,
    Signer,
    digest,
    facts_of,
    items_of,
    sign,
)

OLD_GRANTS = tuple(DocumentId(digest(f"grants of day {day}")) for day in range(30))
"""A head names many: its size is that of a head after a month."""


@dataclass(frozen=True)
class FleetSpec:
    """Central, REPOs, and sites of ICE servers."""

    seed: int = 1
    repos: int = 5
    sites: int = 97
    site_size: int = 2
    spans: int = 12
    rate: float = 12.5e6
    max_peers: int = 4096


@dataclass
class Spread:
    """How one head went round."""

    order: tuple[int, int]
    signed_at: float
    arrived: dict[NodeId, float] = field(default_factory=dict)

    def seconds(self, share: float = 1.0) -> float:
        """Until so large a share of those whom it has reached had it."""
        times = sorted(self.arrived.values())
        return times[max(0, round(share * len(times)) - 1)] - self.signed_at


class SimFleet:
    """The nodes that there are, their disks, and the hand that signs."""

    def __init__(self, spec: FleetSpec) -> None:
        self.spec = spec
        self.net = Network(spec.seed)
        self.signed = SignedFleet("simulated")
        self.signers = self._signers()
        self.facts: dict[NodeId, NodeFacts] = {}
        for name, (role, site) in self._roles().items():
            facts = facts_of(self.signers[name], role, site)
            self.facts[facts.node] = facts
        self.names = {facts.name: facts.node for facts in self.facts.values()}
        self.trust: dict[NodeId, TrustedDocuments] = {}
        self.books: dict[NodeId, list[NodeId]] = {}
        self.spreads: list[Spread] = []
        self.wrongly_told: list[tuple[NodeId, NodeId]] = []
        self.spans_received: Counter[NodeId] = Counter()
        self.delivery = Delivery(self, spans=spec.spans, rate=spec.rate)
        self._incarnations: Counter[NodeId] = Counter()
        self._states: dict[tuple[NodeId, int, int], Announcement] = {}
        self._opened: dict[bytes, Envelope] = {}
        self._orders: dict[bytes, tuple[int, int]] = {}
        self._serial = 1
        self._enrol()

    # Who there is

    @property
    def central(self) -> NodeId:
        return self.names["central"]

    @cached_property
    def holders(self) -> list[NodeId]:
        return [node for node, facts in self.facts.items() if facts.reads_everything]

    def node(self, node: NodeId) -> SimNode:
        """A node that is there."""
        host = self.net.hosts[node]
        assert isinstance(host, SimNode)
        return host

    @property
    def present(self) -> list[SimNode]:
        return [self.node(node) for node in sorted(self.net.hosts)]

    def link(self, one: NodeId, other: NodeId) -> Link | None:
        """The connection that the first believes to have."""
        host = self.net.hosts.get(one)
        return host.links.get(other) if isinstance(host, SimNode) else None

    # What happens

    def start_all(self) -> None:
        """Everybody comes up within some seconds, knowing nobody but central."""
        for node in sorted(self.facts):
            wait_s = 0.0 if node == self.central else self.net.random.uniform(0.5, 5.0)
            self.net.later(wait_s, lambda node=node: self.start(node))  # type: ignore[misc]

    def start(self, node: NodeId) -> None:
        self._incarnations[node] += 1
        made = SimNode(self, self.facts[node], incarnation=self._incarnations[node])
        self.net.silent.discard(node)
        self.net.hosts[node] = made
        made.start(self.books.get(node, [] if node == self.central else [self.central]))
        self.delivery.granted(made)

    def vanish(self, node: NodeId, *, silent: bool) -> None:
        """It is gone at once; its disk keeps head, address book and spans."""
        self.books[node] = sorted(self.node(node).hints)
        self.net.vanish(node, silent=silent)
        self.delivery.vanished(node)

    def sign_head(self, *, with_release: bool = False) -> Spread:
        """Central signs the next head, maybe one that grants the release to every ICE server."""
        self._serial += 1
        head, grants = self._head(self._serial)
        spread = Spread((1, self._serial), self.net.now)
        self.spreads.append(spread)
        if with_release:
            self.delivery.since = spread.order
        self.node(self.central).sign(head.encode(), grants.encode())
        return spread

    # What nodes ask of their disk and of the world

    def head_arrived(self, node: SimNode) -> None:
        for spread in self.spreads:
            if node.order >= spread.order:
                spread.arrived.setdefault(node.node, self.net.now)

    def span_arrived(self, node: NodeId) -> None:
        self.spans_received[node] += 1

    def told(self, reader: NodeFacts, whose: NodeFacts) -> None:
        """Whether somebody was told what it is not to know."""
        near = whose.site != "" and whose.site == reader.site
        if not (reader.reads_everything or whose.reads_everything or near):
            self.wrongly_told.append((reader.node, whose.node))

    def opened(self, data: bytes) -> Envelope:
        """Parsed once for all: the bytes are the same everywhere; they are verified by each."""
        if data not in self._opened:
            self._opened[data] = Envelope.decode(data, max_bytes=MAX_HEAD_BYTES)
        return self._opened[data]

    def order_of(self, head: bytes) -> tuple[int, int]:
        if head not in self._orders:
            self._orders[head] = Head.decode(self.opened(head).payload).order
        return self._orders[head]

    def announced(
        self, facts: NodeFacts, incarnation: int, seq: int, head_order: tuple[int, int]
    ) -> Announcement:
        """A node's state, signed and verified as whoever receives it would."""
        state = NodeState(
            fleet=self.signed.fleet, node=facts.node, incarnation=incarnation, seq=seq,
            issued_s=NOW_S + int(self.net.now), software="simulated", addresses=("10.0.0.1:4777",),
            head_order=head_order, health="ok", reasons=(), free_bytes=10**12, releases=(),
            holdings=(),
        )  # fmt: skip
        envelope = sign(state, self.signers[facts.name])
        opened = open_state(envelope, facts.key)
        assert opened.node == facts.node
        return Announcement(facts, opened.order, (envelope.encode(), self._proofs[facts.node]))

    # Making it

    def _roles(self) -> dict[str, tuple[str, str]]:
        roles = {"central": ("central", "")}
        roles |= {f"repo-{n}": ("repo", "") for n in range(self.spec.repos)}
        for site in range(self.spec.sites):
            for number in range(self.spec.site_size):
                roles[f"site-{site}-{number}"] = ("ice", f"site-{site}")
        return roles

    def _signers(self) -> dict[str, Signer]:
        return {name: Signer(name) for name in self._roles()}

    def _enrol(self) -> None:
        leaves = {node: items_of(facts.name, [facts]) for node, facts in sorted(self.facts.items())}
        self._tree: GrantsTree
        self._tree, self._grants = self.signed.grants(leaves)
        root = self.signed.root()
        root_envelope = self.signed.sign_root(root)
        head, grants = self._head(1)
        for node in sorted(self.facts):
            trust = self.trust[node] = TrustedDocuments()
            trust.accept_first_root(root_envelope, root.fingerprint)
            trust.accept_head(head, now=NOW_S)
            trust.accept_grants(grants)
        self._proofs = {
            node: self._tree.leaf(node, self._grants.id).proof().encode() for node in self.facts
        }

    def _head(self, serial: int) -> tuple[Envelope, Envelope]:
        head = replace(
            self.signed.head(self._grants.id, *OLD_GRANTS, serial=serial),
            issued_s=NOW_S + int(self.net.now),
        )
        return self.signed.sign_head(head), self.signed.sign_grants(self._grants)


def all_have(fleet: SimFleet, order: tuple[int, int]) -> Callable[[], bool]:
    """Whether everybody who is there has this head or a newer one."""
    return lambda: all(node.order >= order for node in fleet.present)


def all_whole(fleet: SimFleet) -> Callable[[], bool]:
    """Whether everybody who is there has the whole release."""
    return lambda: all(fleet.delivery.whole(node.node) for node in fleet.present)


def quiet_spread(fleet: SimFleet) -> tuple[Spread, dict[str, tuple[int, int]]]:
    """One head in a fleet at rest: how fast, and messages and bytes by kind."""
    messages, size = Counter(fleet.net.messages), Counter(fleet.net.bytes)
    spread = fleet.sign_head()
    assert fleet.net.run(fleet.net.now + 60.0, all_have(fleet, spread.order))
    fleet.net.run(fleet.net.now + 15.0)
    kinds = {
        kind: (fleet.net.messages[kind] - messages[kind], fleet.net.bytes[kind] - size[kind])
        for kind in sorted(fleet.net.messages)
    }
    return spread, kinds


def story(fleet: SimFleet) -> None:
    """Start, a head, a cut that heals, a third gone at once with a release under way, their return.

    Raises AssertionError when something is not where it belongs at the end of a part.
    """
    net = fleet.net
    fleet.start_all()
    net.run(90.0)
    spread, _ = quiet_spread(fleet)

    # Half of the sites and two of the REPOs are cut off, and hear nothing of a head.
    cut = [node for node in fleet.holders if node != fleet.central][-2:]
    far = dict.fromkeys(cut, 1)
    for facts in fleet.facts.values():
        if facts.role == "ice" and int(facts.site.removeprefix("site-")) % 2:
            far[facts.node] = 1
    net.cut(far)
    net.run(net.now + 30.0)
    spread = fleet.sign_head()
    net.run(net.now + 150.0)
    assert all((node.order >= spread.order) == (node.node not in far) for node in fleet.present)
    net.cut({})
    assert net.run(net.now + 180.0, all_have(fleet, spread.order)), "after the cut"

    # A third vanishes while the release is on its way, half of them without a word.
    spread = fleet.sign_head(with_release=True)
    net.run(net.now + 2.0)
    others = sorted(node for node in net.hosts if node != fleet.central)
    gone = net.random.sample(others, len(fleet.facts) // 3)
    for number, node in enumerate(gone):
        fleet.vanish(node, silent=number % 2 == 0)
    assert net.run(net.now + 300.0, all_have(fleet, spread.order)), "a third gone"
    assert net.run(net.now + 900.0, all_whole(fleet)), "the release, a third gone"

    # They come back, and miss nothing.
    spread = fleet.sign_head()
    for node in gone:
        net.later(net.random.uniform(0.0, 10.0), lambda node=node: fleet.start(node))  # type: ignore[misc]
    net.run(net.now + 11.0)
    assert net.run(net.now + 300.0, all_have(fleet, spread.order)), "all back"
    assert net.run(net.now + 900.0, all_whole(fleet)), "the release, all back"
    net.run(net.now + 700.0)


def played(seed: int, **changes: int) -> SimFleet:
    """The story with one seed."""
    fleet = SimFleet(replace(FleetSpec(seed=seed), **changes))
    story(fleet)
    return fleet


def figures(nodes: int, seed: int = 1) -> str:
    """What a head costs in a fleet of so many nodes at rest."""
    fleet = SimFleet(FleetSpec(seed=seed, sites=(nodes - 6) // 2))
    fleet.start_all()
    fleet.net.run(90.0)
    spread, kinds = quiet_spread(fleet)
    lines = [
        (
            f"{len(fleet.facts)} nodes: half have it after {spread.seconds(0.5):.2f} s, all after"
            f" {spread.seconds():.2f} s"
        )
    ]
    for kind, (messages, size) in kinds.items():
        if messages:
            each = len(fleet.facts)
            lines.append(
                f"  {kind}: {messages / each:.2f} messages, {size / each:.0f} bytes a node"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "--figures":
        sys.stdout.write(figures(int(sys.argv[2])) + "\n")
    else:
        sys.stdout.write(played(int(sys.argv[1])).net.log_hash + "\n")
