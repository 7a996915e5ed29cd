"""The objects in answers about the life of what a node holds: fetched, switched, kept, removed."""

from __future__ import annotations

from typing import Final

from archid.control.shapes import (
    BOOLEAN,
    BYTES,
    COUNT,
    HASH,
    KIND,
    RELEASE_ID,
    TEXT,
    TIME,
    array,
    nullable,
    opened,
)

FETCHED_VERSION: Final = opened(
    manifest=HASH,
    script=TEXT,
    held=BOOLEAN,
    size_bytes=nullable(BYTES),
    held_bytes=BYTES,
)

ACTIVATED: Final = opened(
    release=RELEASE_ID,
    name=TEXT,
    generation=COUNT,
    start_s=TIME,
    changed=BOOLEAN,
)

ROLLED_BACK: Final = opened(
    release=RELEASE_ID,
    name=TEXT,
    held_generation=COUNT,
    scripts=array(opened(kind=KIND, manifest=HASH, script=TEXT, version=nullable(COUNT))),
)

GARBAGE: Final = opened(
    kind={"enum": ["bundle", "tree", "staging", "manifest", "pieces", "lists", "pages"]},
    id=TEXT,
    name=TEXT,
    size_bytes=BYTES,
    why=TEXT,
)

COLLECTED: Final = opened(
    dry_run=BOOLEAN,
    size_bytes=BYTES,
    gone=array(GARBAGE),
    waiting=array(GARBAGE),
    failed=array(TEXT),
)

PIN: Final = opened(
    manifest=HASH,
    script=TEXT,
    version=nullable(COUNT),
    size_bytes=nullable(BYTES),
    held=BOOLEAN,
    name=TEXT,
    by=TEXT,
    at_s=TIME,
)
