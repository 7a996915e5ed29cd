"""The connections of a node and what went through them, as the control socket shows them."""

from __future__ import annotations

from typing import Any, Final

import trio

from archid.net.dialer import Dialer
from archid.net.peer import Peer
from archid.net.switchboard import Switchboard
from archid.net.traffic import NodeTraffic, Traffic

Json = dict[str, Any]

NOT_TRIED_YET: Final = "it has not been tried yet"
NO_TRAFFIC: Final = Traffic()


def connections(switchboard: Switchboard, dialer: Dialer) -> list[Json]:
    """Every admitted peer, and every address that is being dialled without success."""
    now = trio.current_time()
    found = [_admitted(peer, switchboard, now) for peer in switchboard.peers.values()]
    lost = {one.address: one for one in switchboard.book.nodes()}
    for dialled in dialer.dialled:
        if dialled.state == "admitted":
            continue
        before = lost.get(str(dialled.address))
        facts = before.facts if before is not None else None
        error = dialled.reason or (before.lost_reason if before is not None else None)
        found.append(
            {
                "node": None if facts is None else facts.node.hex(),
                "name": "" if facts is None else facts.name,
                "role": "" if facts is None else facts.role,
                "site": "" if facts is None else facts.site,
                "room": "" if facts is None else facts.room,
                "address": str(dialled.address),
                "direction": "outbound",
                "state": dialled.state,
                "since_s": int(dialled.since_s),
                **_amounts(NO_TRAFFIC),
                "content_in_bytes_per_s": 0.0,
                "content_out_bytes_per_s": 0.0,
                "lane": False,
                "software": "",
                "reason": error or (NOT_TRIED_YET if dialled.state == "waiting" else None),
                "last_error": error,
            }
        )
    return found


def traffic_by_node(switchboard: Switchboard) -> list[Json]:
    """For each node that was connected since the start, all its connections together."""
    return [
        _of_node(one, switchboard.peers.get(one.facts.node))
        for one in sorted(switchboard.book.nodes(), key=lambda one: one.facts.name)
    ]


def _of_node(one: NodeTraffic, peer: Peer | None) -> Json:
    facts = one.facts
    connected = peer is not None and not peer.closed.is_set()
    return {
        "node": facts.node.hex(),
        "name": facts.name,
        "role": facts.role,
        "site": facts.site,
        "room": facts.room,
        "connected": connected,
        "connections": one.connections,
        "address": one.address,
        **_amounts(one.past + peer.traffic if peer is not None else one.past),
        "lost_s": None if one.lost_s is None else int(one.lost_s),
        "last_error": one.lost_reason,
    }


def _admitted(peer: Peer, switchboard: Switchboard, now: float) -> Json:
    facts, traffic = peer.facts, peer.traffic
    before = switchboard.book.of(facts.node)
    return {
        "node": facts.node.hex(),
        "name": facts.name,
        "role": facts.role,
        "site": facts.site,
        "room": facts.room,
        "address": peer.remote,
        "direction": "outbound" if peer.dialled else "inbound",
        "state": "admitted",
        "since_s": int(peer.since_s),
        **_amounts(traffic),
        "span_bytes_received": traffic.span_bytes_received,
        "span_bytes_sent": traffic.span_bytes_sent,
        "content_in_bytes_per_s": peer.content_in.bytes_per_s(now=now),
        "content_out_bytes_per_s": peer.content_out.bytes_per_s(now=now),
        "lane": peer.lane is not None,
        "software": peer.hello.software,
        "reason": None,
        "last_error": before.lost_reason if before is not None else None,
    }


def _amounts(traffic: Traffic) -> Json:
    return {
        "received_bytes": traffic.received_bytes,
        "sent_bytes": traffic.sent_bytes,
        "content_received_bytes": traffic.span_bytes_received,
        "content_sent_bytes": traffic.span_bytes_sent,
        "gossip_received_bytes": traffic.gossip_bytes_received,
        "gossip_sent_bytes": traffic.gossip_bytes_sent,
    }
