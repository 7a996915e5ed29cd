"""The objects that appear in answers of the control socket, one schema for each.

The small vocabulary at the top writes JSON Schema; it says nothing about archid. Which request
answers with which object is `archid.control.schema`'s business.
"""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

DESIGN: Final = "https://json-schema.org/draft/2020-12/schema"
MAX_JSON_INTEGER: Final = 2**63 - 1


def text(*, max_length: int | None = None, min_length: int = 0) -> Schema:
    """A string, bounded where it comes from outside."""
    schema: Schema = {"type": "string"}
    if min_length:
        schema["minLength"] = min_length
    if max_length is not None:
        schema["maxLength"] = max_length
    return schema


def nullable(schema: Schema) -> Schema:
    """Either `schema` or null: known to be absent."""
    return {"anyOf": [schema, {"type": "null"}]}


def array(items: Schema, *, max_items: int | None = None) -> Schema:
    """A list of one kind of thing."""
    schema: Schema = {"type": "array", "items": items}
    if max_items is not None:
        schema["maxItems"] = max_items
    return schema


def opened(**properties: Schema) -> Schema:
    """An object that has all of these keys and may grow."""
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def strict(**properties: Schema) -> Schema:
    """An object that has exactly these keys: parameters of a request."""
    return {**opened(**properties), "additionalProperties": False}


TEXT: Final = text()
BOOLEAN: Final[Schema] = {"type": "boolean"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": MAX_JSON_INTEGER}
BYTES: Final[Schema] = COUNT
TIME: Final[Schema] = COUNT
DURATION: Final[Schema] = {"type": "number", "minimum": 0}
NUMBER: Final[Schema] = {"type": "number"}
HASH: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
RELEASE_ID: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{32}$"}

ROLE: Final[Schema] = {"enum": ["central", "repo", "ice"]}
KIND: Final[Schema] = {"enum": ["feature", "sas", "loop"]}
SERVER_KIND: Final[Schema] = {"enum": ["salle", "sas", ""]}
RELEASE_STATE: Final[Schema] = {"enum": ["active", "withdrawn"]}
DELIVERY_STATE: Final[Schema] = {
    "enum": [
        "planned",
        "fetching",
        "ready",
        "active",
        "ended",
        "withdrawn",
        "failed",
        "rolled_back",
    ]
}
HEALTH_LEVEL: Final[Schema] = {"enum": ["ok", "attention", "alarm"]}
CHANGE: Final[Schema] = {"enum": ["added", "removed", "changed", "unchanged"]}

AMOUNTS: Final[dict[str, Schema]] = {
    "received_bytes": BYTES,
    "sent_bytes": BYTES,
    "content_received_bytes": BYTES,
    "content_sent_bytes": BYTES,
    "gossip_received_bytes": BYTES,
    "gossip_sent_bytes": BYTES,
}

PEER: Final = opened(
    node=nullable(HASH),
    name=TEXT,
    role=TEXT,
    site=TEXT,
    room=TEXT,
    address=TEXT,
    direction={"enum": ["inbound", "outbound"]},
    state={"enum": ["connecting", "proving", "admitted", "waiting"]},
    since_s=TIME,
    **AMOUNTS,
    content_in_bytes_per_s=NUMBER,
    content_out_bytes_per_s=NUMBER,
    lane=BOOLEAN,
    software=TEXT,
    reason=nullable(TEXT),
    last_error=nullable(TEXT),
)

NODE_TRAFFIC: Final = opened(
    node=HASH,
    name=TEXT,
    role=TEXT,
    site=TEXT,
    room=TEXT,
    connected=BOOLEAN,
    connections=COUNT,
    address=TEXT,
    **AMOUNTS,
    lost_s=nullable(TIME),
    last_error=nullable(TEXT),
)

TRAFFIC: Final = opened(**AMOUNTS, nodes=array(NODE_TRAFFIC))

DELIVERY_SCRIPT: Final = opened(
    kind=KIND,
    script=TEXT,
    version=nullable(COUNT),
    manifest=HASH,
    state={"enum": ["waiting", "fetching", "placing", "held", "damaged", "failed"]},
    size_bytes=nullable(BYTES),
    held_bytes=BYTES,
    rate_bytes_per_s=nullable(NUMBER),
    remaining_s=nullable(NUMBER),
    reason=nullable(TEXT),
)

DELIVERY: Final = opened(
    release=RELEASE_ID,
    name=TEXT,
    generation=COUNT,
    state=DELIVERY_STATE,
    prefetch_s=TIME,
    start_s=TIME,
    end_s=TIME,
    activated_s=nullable(TIME),
    reason=nullable(TEXT),
    scripts=array(DELIVERY_SCRIPT),
)

SCRIPT: Final = opened(
    name=TEXT,
    kind=KIND,
    version=COUNT,
    manifest=HASH,
    state={"enum": ["held", "fetching", "missing", "damaged"]},
    files=COUNT,
    size_bytes=BYTES,
    held_bytes=BYTES,
    published_s=nullable(TIME),
    path=nullable(TEXT),
    releases=array(TEXT),
)

SCRUB: Final = opened(
    state={"enum": ["off", "waiting", "running"]},
    rate_bytes_per_s=BYTES,
    begun_s=TIME,
    checked_bytes=BYTES,
    found_damaged=COUNT,
    finished_s=nullable(TIME),
    next_s=nullable(TIME),
    damaged=COUNT,
    repaired=COUNT,
)

HEALTH: Final = opened(
    level=HEALTH_LEVEL,
    reasons=array(opened(level=HEALTH_LEVEL, code=TEXT, sentence=TEXT, remedy=nullable(TEXT))),
)

HEAD_ORDER: Final = opened(epoch=COUNT, serial=COUNT)

TRUST: Final = opened(
    root_version=COUNT,
    epoch=COUNT,
    serial=COUNT,
    issued_s=TIME,
    expires_s=TIME,
    expired=BOOLEAN,
    clock_offset_s=nullable(NUMBER),
)

JOURNAL_ENTRY: Final = opened(
    seq=COUNT,
    at_s=TIME,
    kind=TEXT,
    sentence=TEXT,
    fields={"type": "object"},
    hash=HASH,
)

TREE_REPORT: Final = opened(
    manifest=HASH,
    name=TEXT,
    kind=KIND,
    version=COUNT,
    ok=BOOLEAN,
    checked_bytes=BYTES,
    damage=array(opened(path=TEXT, reason=TEXT, sentence=TEXT)),
)

NODE_FACTS: Final[dict[str, Schema]] = {
    "node": HASH,
    "name": TEXT,
    "site": TEXT,
    "room": TEXT,
    "server_kind": SERVER_KIND,
}

RELEASE_SCRIPT_KEYS: Final[dict[str, Schema]] = {
    "kind": KIND,
    "script": TEXT,
    "version": COUNT,
    "manifest": HASH,
    "size_bytes": BYTES,
}

RELEASE_SCRIPT: Final = opened(**RELEASE_SCRIPT_KEYS)
PLANNED_SCRIPT: Final = opened(**RELEASE_SCRIPT_KEYS, change=CHANGE)
PLANNED_TARGET: Final = opened(**NODE_FACTS, change=CHANGE)
RELEASE_TARGET: Final = opened(
    **NODE_FACTS,
    state={"enum": [*DELIVERY_STATE["enum"], "unknown"]},
    reason=nullable(TEXT),
)

ROOM_KEYS: Final[dict[str, Schema]] = {
    "site": TEXT,
    "room": TEXT,
    "ready": BOOLEAN,
    "servers": array(TEXT),
    "sentence": TEXT,
}

FLEET_NODE: Final = opened(
    node=HASH,
    name=TEXT,
    role=ROLE,
    site=TEXT,
    room=TEXT,
    server_kind=SERVER_KIND,
    seen_s=nullable(TIME),
    silent=BOOLEAN,
    software=TEXT,
    health=nullable(HEALTH_LEVEL),
    reasons=array(TEXT),
    free_bytes=nullable(BYTES),
    head=nullable(HEAD_ORDER),
    releases=array(
        opened(
            release=RELEASE_ID,
            name=TEXT,
            generation=COUNT,
            state=TEXT,
            reason=nullable(TEXT),
        )
    ),
)
