"""Results that fit the schemas, for handlers of the tests."""

from __future__ import annotations

from typing import Any

HASH = "ab" * 32
OTHER_HASH = "cd" * 32
RELEASE = "0f" * 16
NOW_S = 1_790_000_000

PEER: dict[str, Any] = {
    "node": HASH,
    "name": "repo-paris",
    "role": "repo",
    "site": "",
    "room": "",
    "address": "[2001:db8::7]:4777",
    "direction": "outbound",
    "state": "admitted",
    "since_s": NOW_S - 3_700,
    "received_bytes": 301_233_408,
    "sent_bytes": 88_412,
    "content_received_bytes": 300_000_000,
    "content_sent_bytes": 0,
    "gossip_received_bytes": 20_100,
    "gossip_sent_bytes": 8_000,
    "content_in_bytes_per_s": 41_200_000.0,
    "content_out_bytes_per_s": 0.0,
    "software": "0.1.0",
    "reason": None,
    "last_error": None,
}

NODE_TRAFFIC: dict[str, Any] = {
    "node": HASH,
    "name": "repo-paris",
    "role": "repo",
    "site": "",
    "room": "",
    "connected": True,
    "connections": 2,
    "address": "[2001:db8::7]:4777",
    "received_bytes": 401_233_408,
    "sent_bytes": 98_412,
    "content_received_bytes": 400_000_000,
    "content_sent_bytes": 0,
    "gossip_received_bytes": 30_100,
    "gossip_sent_bytes": 9_000,
    "lost_s": NOW_S - 3_710,
    "last_error": "[2001:db8::7]:4777 ended the connection: it is stopping",
}

DELIVERY: dict[str, Any] = {
    "release": RELEASE,
    "name": "blue-hour",
    "generation": 3,
    "state": "fetching",
    "prefetch_s": NOW_S - 86_400,
    "start_s": NOW_S + 86_400,
    "end_s": NOW_S + 40 * 86_400,
    "activated_s": None,
    "reason": None,
    "scripts": [
        {
            "kind": "feature",
            "script": "blue-hour-feature",
            "version": 2,
            "manifest": HASH,
            "state": "fetching",
            "size_bytes": 301_000_000,
            "held_bytes": 120_400_000,
            "rate_bytes_per_s": 41_200_000.0,
            "remaining_s": 4.4,
            "reason": None,
        },
        {
            "kind": "sas",
            "script": "blue-hour-sas",
            "version": 1,
            "manifest": OTHER_HASH,
            "state": "held",
            "size_bytes": 12_000_000,
            "held_bytes": 12_000_000,
            "rate_bytes_per_s": None,
            "remaining_s": None,
            "reason": None,
        },
        {
            "kind": "loop",
            "script": "house-loop",
            "version": None,
            "manifest": HASH,
            "state": "waiting",
            "size_bytes": None,
            "held_bytes": 0,
            "rate_bytes_per_s": None,
            "remaining_s": None,
            "reason": "no peer that holds it is connected",
        },
    ],
}

STATUS: dict[str, Any] = {
    "software": "0.1.0",
    "role": "ice",
    "node": HASH,
    "name": "lyon-3-salle",
    "site": "lyon-confluence",
    "room": "3",
    "server_kind": "salle",
    "fleet": OTHER_HASH,
    "fleet_name": "ICE Europe",
    "pid": 4711,
    "started_s": NOW_S - 90_061,
    "now_s": NOW_S,
    "health": {
        "level": "attention",
        "reasons": [
            {
                "level": "attention",
                "code": "clock_behind",
                "sentence": "This machine's clock is 61 minutes behind the newest head",
                "remedy": "Set the clock; deliveries go on meanwhile",
            }
        ],
    },
    "trust": {
        "root_version": 1,
        "epoch": 0,
        "serial": 41,
        "issued_s": NOW_S - 600,
        "expires_s": NOW_S + 604_200,
        "expired": False,
        "clock_offset_s": 3_660.0,
    },
    "listen": ["[::]:4777"],
    "advertise": ["lyon-3.example.net:4777"],
    "peers": [
        PEER,
        {
            **PEER,
            "node": None,
            "name": "",
            "role": "",
            "address": "central.example.net:4777",
            "state": "waiting",
            "software": "",
            "received_bytes": 0,
            "sent_bytes": 0,
            "content_received_bytes": 0,
            "gossip_received_bytes": 0,
            "gossip_sent_bytes": 0,
            "content_in_bytes_per_s": 0.0,
            "reason": "the address cannot be reached; next try in 20 seconds",
        },
    ],
    "deliveries": [DELIVERY],
    "pins": [],
    "storage": {
        "state": "/var/lib/archid",
        "scripts": "/srv/archid",
        "free_bytes": 412_000_000_000,
        "total_bytes": 500_000_000_000,
        "held_bytes": 13_400_000_000,
        "trees": 12,
    },
    "traffic": {
        "received_bytes": 401_233_408,
        "sent_bytes": 98_412,
        "content_received_bytes": 400_000_000,
        "content_sent_bytes": 0,
        "gossip_received_bytes": 30_100,
        "gossip_sent_bytes": 9_000,
        "nodes": [NODE_TRAFFIC],
    },
}

SCRIPT: dict[str, Any] = {
    "name": "blue-hour-feature",
    "kind": "feature",
    "version": 2,
    "manifest": HASH,
    "state": "held",
    "files": 1_204,
    "size_bytes": 301_000_000,
    "held_bytes": 301_000_000,
    "published_s": NOW_S - 86_400,
    "path": "/srv/archid/scripts/blue-hour-feature",
    "releases": ["blue-hour"],
}
