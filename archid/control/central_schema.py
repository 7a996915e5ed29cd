"""The requests that only central answers: scripts, releases, tokens, roots and the fleet."""

from __future__ import annotations

from typing import Final

from archid.control.method import NAME, PLACE, Method
from archid.control.shapes import (
    BOOLEAN,
    BYTES,
    COUNT,
    DURATION,
    FLEET_NODE,
    HASH,
    HEAD_ORDER,
    KIND,
    PLANNED_SCRIPT,
    PLANNED_TARGET,
    RELEASE_ID,
    RELEASE_SCRIPT,
    RELEASE_STATE,
    RELEASE_TARGET,
    ROLE,
    ROOM_KEYS,
    SERVER_KIND,
    TEXT,
    TIME,
    array,
    nullable,
    opened,
    strict,
    text,
)
from protocol.limits import MAX_ROOT_BYTES

MAX_DEFINITION_CHARACTERS: Final = 512 * 1024

RELEASE_SUMMARY_KEYS: Final = {
    "release": RELEASE_ID,
    "name": TEXT,
    "generation": COUNT,
    "state": RELEASE_STATE,
    "prefetch_s": TIME,
    "start_s": TIME,
    "end_s": TIME,
    "target_count": COUNT,
    "size_bytes": BYTES,
}

NEXT_ROOT_KEYS: Final = {
    "version": COUNT,
    "epoch": COUNT,
    "replaced": array(TEXT),
    "cas": COUNT,
}

RELEASE_PLAN: Final = opened(
    plan=HASH,
    signed=BOOLEAN,
    action={"enum": ["create", "change", "none"]},
    release=nullable(RELEASE_ID),
    name=TEXT,
    generation=COUNT,
    previous_generation=nullable(COUNT),
    prefetch_s=TIME,
    start_s=TIME,
    end_s=TIME,
    changes=array(opened(field=TEXT, before=nullable(TEXT), after=nullable(TEXT))),
    scripts=array(PLANNED_SCRIPT),
    targets=array(PLANNED_TARGET),
    warnings=array(TEXT),
    head=nullable(HEAD_ORDER),
)

PUBLISHED: Final = opened(
    manifest=HASH,
    script=TEXT,
    kind=KIND,
    version=COUNT,
    unchanged=BOOLEAN,
    files=COUNT,
    folders=COUNT,
    links=COUNT,
    size_bytes=BYTES,
    new_bytes=BYTES,
    chunks=COUNT,
    pieces=COUNT,
    duration_s=DURATION,
)

TOKEN: Final = opened(
    token=TEXT,
    id=TEXT,
    role={"enum": ["repo", "ice"]},
    name=TEXT,
    site=TEXT,
    room=TEXT,
    server_kind=SERVER_KIND,
    expires_s=TIME,
    addresses=array(TEXT),
)

TOKEN_ROW: Final = opened(
    id=TEXT,
    role={"enum": ["repo", "ice"]},
    name=TEXT,
    site=TEXT,
    room=TEXT,
    server_kind=SERVER_KIND,
    created_s=TIME,
    expires_s=TIME,
    state={"enum": ["open", "used", "expired"]},
    used_s=nullable(TIME),
    node=nullable(HASH),
)

CENTRAL_METHODS: Final = (
    Method(
        "publish",
        params=strict(
            script=text(max_length=1000),
            kind=KIND,
            files=COUNT,
            size_bytes=BYTES,
            listing=nullable(HASH),  # null: read everything
        ),
        result=PUBLISHED,
        changes=True,
        takes_input=True,
        roles=("central",),
    ),
    Method(
        "release.apply",
        params=strict(
            definition=text(max_length=MAX_DEFINITION_CHARACTERS),
            filename=text(max_length=4096),
            sign=BOOLEAN,
            plan=nullable(HASH),
        ),
        result=RELEASE_PLAN,
        changes=True,
        roles=("central",),
    ),
    Method(
        "release.list",
        params=strict(),
        result=opened(releases=array(opened(**RELEASE_SUMMARY_KEYS))),
        roles=("central",),
    ),
    Method(
        "release.show",
        params=strict(release=NAME),
        result=opened(
            **RELEASE_SUMMARY_KEYS,
            scripts=array(RELEASE_SCRIPT),
            targets=array(RELEASE_TARGET),
            rooms=array(opened(**ROOM_KEYS)),
            applied_s=TIME,
        ),
        roles=("central",),
    ),
    Method(
        "release.withdraw",
        params=strict(release=NAME, confirm=BOOLEAN),
        result=opened(release=RELEASE_ID, name=TEXT, servers=array(TEXT), head=HEAD_ORDER),
        changes=True,
        roles=("central",),
    ),
    Method(
        "revoke",
        params=strict(node=NAME, confirm=BOOLEAN),
        result=opened(node=HASH, name=TEXT, role=ROLE, head=HEAD_ORDER),
        changes=True,
        roles=("central",),
    ),
    Method(
        "trust_database",
        params=strict(),
        result=opened(head=HEAD_ORDER),
        changes=True,
        roles=("central",),
    ),
    Method(
        "root.prepare",
        params=strict(
            roles=array(text(max_length=32), max_items=16),
            ca=BOOLEAN,
            drop_old_cas=BOOLEAN,
            epoch=BOOLEAN,
            at_once=BOOLEAN,
            root_keys=array(HASH, max_items=16),
        ),
        result=opened(**NEXT_ROOT_KEYS, root=TEXT, threshold=COUNT),
        changes=True,
        roles=("central",),
    ),
    Method(
        "root.install",
        params=strict(envelope=text(max_length=2 * MAX_ROOT_BYTES)),
        result=opened(**NEXT_ROOT_KEYS, head=HEAD_ORDER),
        changes=True,
        roles=("central",),
    ),
    Method(
        "fleet",
        params=strict(),
        result=opened(
            nodes=array(FLEET_NODE),
            rooms=array(opened(release=TEXT, **ROOM_KEYS)),
            head=HEAD_ORDER,
        ),
        roles=("central",),
    ),
    Method(
        "why",
        params=strict(node=NAME, release=NAME),
        result=opened(
            node=TEXT,
            release=TEXT,
            generation=COUNT,
            state=TEXT,
            sentence=TEXT,
            remedy=nullable(TEXT),
            solved=BOOLEAN,
            evidence=array(TEXT),
            seen_s=nullable(TIME),
        ),
        roles=("central",),
    ),
    Method(
        "token.create",
        params=strict(
            role={"enum": ["repo", "ice"]},
            name=NAME,
            site=PLACE,
            room=PLACE,
            server_kind=SERVER_KIND,
            lifetime_s={"type": "integer", "minimum": 1, "maximum": 366 * 86400},
        ),
        result=TOKEN,
        changes=True,
        roles=("central",),
    ),
    Method(
        "token.list",
        params=strict(),
        result=opened(tokens=array(TOKEN_ROW)),
        roles=("central",),
    ),
)
