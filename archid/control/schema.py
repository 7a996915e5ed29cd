"""What the control socket and `--json` say, as JSON Schemas (draft 2020-12).

One table, `METHODS`, names every request with its parameters, its result, its events and whether
it changes anything; the server refuses what does not fit before a handler sees it, and `--json`
prints the result unchanged. Commands that need no daemon have their output in `OUTPUTS`. The
shapes of single objects (a peer, a delivery) are in `archid.control.shapes`.

Parameters are closed: an unknown key is a caller's mistake. Results are open: a newer daemon may
add keys, and an older client ignores them. Ids are lower-case hexadecimal, `*_s` whole seconds
UTC unless they are durations, sizes bytes.
"""

from __future__ import annotations

from typing import Final

from archid.control.central_schema import CENTRAL_METHODS
from archid.control.life_schema import LIFE_METHODS
from archid.control.life_shapes import PIN
from archid.control.limits_schema import LIMITS_IN_FORCE, LIMITS_METHODS, UPLOAD_SLOTS
from archid.control.method import ALL_ROLES as ALL_ROLES  # noqa: PLC0414 - what others import
from archid.control.method import NAME, Method
from archid.control.shapes import (
    BOOLEAN,
    BYTES,
    COUNT,
    DELIVERY,
    DESIGN,
    HASH,
    HEAD_ORDER,
    HEALTH,
    JOURNAL_ENTRY,
    NODE_TRAFFIC,
    PEER,
    ROLE,
    SCRIPT,
    SCRUB,
    SERVER_KIND,
    TEXT,
    TIME,
    TRAFFIC,
    TREE_REPORT,
    TRUST,
    Schema,
    array,
    nullable,
    opened,
    strict,
    text,
)

STATUS: Final = opened(
    software=TEXT,
    role=ROLE,
    node=HASH,
    name=TEXT,
    site=TEXT,
    room=TEXT,
    server_kind=SERVER_KIND,
    fleet=HASH,
    fleet_name=TEXT,
    pid=COUNT,
    started_s=TIME,
    now_s=TIME,
    health=HEALTH,
    trust=nullable(TRUST),
    listen=array(TEXT),
    advertise=array(TEXT),
    peers=array(PEER),
    deliveries=array(DELIVERY),
    scrub=SCRUB,
    storage=opened(
        state=TEXT,
        scripts=TEXT,
        free_bytes=BYTES,
        total_bytes=BYTES,
        held_bytes=BYTES,
        trees=COUNT,
    ),
    traffic=TRAFFIC,
    limits=LIMITS_IN_FORCE,
    upload_slots=UPLOAD_SLOTS,
    pins=array(PIN),
)

LEFT: Final = opened(node=HASH, fleet=HASH, fleet_name=TEXT, removed=array(TEXT))

METHODS: Final[dict[str, Method]] = {
    method.name: method
    for method in (
        Method("status", params=strict(), result=STATUS),
        Method(
            "peers", params=strict(), result=opened(peers=array(PEER), nodes=array(NODE_TRAFFIC))
        ),
        Method("scripts", params=strict(), result=opened(scripts=array(SCRIPT))),
        Method(
            "verify",
            params=strict(script=nullable(NAME), manifest=nullable(HASH)),
            result=opened(ok=BOOLEAN, trees=array(TREE_REPORT)),
            events=opened(
                event={"const": "verify.progress"},
                manifest=HASH,
                name=TEXT,
                version=COUNT,
                checked_bytes=BYTES,
                total_bytes=BYTES,
            ),
        ),
        Method(
            "log",
            params=strict(
                since_s=nullable(TIME),
                kinds=array(text(max_length=64), max_items=32),
                limit={"type": "integer", "minimum": 1, "maximum": 10_000},
                follow=BOOLEAN,
            ),
            result=opened(
                entries=array(JOURNAL_ENTRY),
                total=COUNT,
                damage=nullable(opened(seq=COUNT, sentence=TEXT, remedy=nullable(TEXT))),
            ),
        ),
        Method(
            "events.subscribe",
            params=strict(prefixes=array(text(max_length=100), max_items=32)),
            result=opened(),
            events=opened(event=TEXT, at_s={"type": "number"}),
        ),
        Method(
            "leave",
            params=strict(purge=BOOLEAN),
            result=LEFT,
            changes=True,
            roles=("repo", "ice"),
        ),
        Method("stop", params=strict(), result=opened(stopping=BOOLEAN), changes=True),
        *CENTRAL_METHODS,
        *LIFE_METHODS,
        *LIMITS_METHODS,
    )
}

ERROR: Final = opened(error=opened(code=TEXT, message=TEXT, remedy=nullable(TEXT), exit_code=COUNT))

CHECK: Final = opened(
    check=TEXT,
    state={"enum": ["ok", "attention", "failed", "skipped"]},
    sentence=TEXT,
    remedy=nullable(TEXT),
)

OUTPUTS: Final[dict[str, Schema]] = {
    "error": ERROR,
    "version": opened(software=TEXT, python=TEXT),
    "init": opened(
        fleet=HASH,
        fleet_name=TEXT,
        node=HASH,
        name=TEXT,
        root_fingerprint=HASH,
        root_key_file=TEXT,
        state=TEXT,
    ),
    "join": opened(
        node=HASH,
        name=TEXT,
        role=ROLE,
        site=TEXT,
        room=TEXT,
        server_kind=SERVER_KIND,
        fleet=HASH,
        fleet_name=TEXT,
        state=TEXT,
    ),
    "config.check": opened(path=TEXT, ok=BOOLEAN, role=ROLE, warnings=array(TEXT)),
    "config.show": opened(
        path=TEXT,
        keys=array(opened(section=TEXT, key=TEXT, value={}, origin={"enum": ["file", "default"]})),
    ),
    "replay": opened(
        path=TEXT,
        ok=BOOLEAN,
        steps=COUNT,
        differs_at=nullable(COUNT),
        finished=BOOLEAN,
        missing_spans=COUNT,
    ),
    "backup": opened(
        file=TEXT,
        size_bytes=BYTES,
        sealed=BOOLEAN,
        fleet_name=TEXT,
        node=HASH,
        name=TEXT,
        made_s=TIME,
        head=HEAD_ORDER,
        root_version=COUNT,
    ),
    "restore": opened(
        fleet_name=TEXT,
        node=HASH,
        name=TEXT,
        made_s=TIME,
        head=HEAD_ORDER,
        root_version=COUNT,
        state=TEXT,
    ),
    "log.line": JOURNAL_ENTRY,
    "watch.line": opened(
        at_s=TIME, who=TEXT, what=TEXT, before=nullable(TEXT), after=nullable(TEXT)
    ),
    "doctor": opened(ok=BOOLEAN, checks=array(CHECK)),
    "leave": LEFT,
    **{method.name: method.result for method in METHODS.values()},
}


def document(name: str) -> Schema:
    """The JSON Schema of what `archid NAME --json` prints, as one self-contained document."""
    return {"$schema": DESIGN, "title": f"archid {name}", **OUTPUTS[name]}
