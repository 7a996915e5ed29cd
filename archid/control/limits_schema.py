"""The requests about limits, and the objects in their answers."""

from __future__ import annotations

from typing import Final

from archid.control.method import Method
from archid.control.shapes import (
    BYTES,
    COUNT,
    NUMBER,
    TEXT,
    TIME,
    Schema,
    array,
    nullable,
    opened,
    strict,
    text,
)
from archid.rates import RATE_KEYS

KEY: Final[Schema] = {"enum": list(RATE_KEYS)}
RATE: Final = nullable(BYTES)

UPLOAD_SLOTS: Final = opened(limit=COUNT, in_use=COUNT, waiting=COUNT, refused=COUNT)
LIMITS_IN_FORCE: Final = array(opened(key=KEY, rate_bytes_per_s=RATE))

LIMIT: Final = opened(
    key=KEY,
    rate_bytes_per_s=RATE,
    origin={"enum": ["default", "file", "weekly", "set"]},
    line=nullable(TEXT),
    by=nullable(TEXT),
    until_s=nullable(TIME),
    actual_bytes_per_s=NUMBER,
    busiest=nullable(TEXT),
)

LIMITS: Final = opened(
    limits=array(LIMIT),
    now_s=TIME,
    time_zone=TEXT,
    next_change_s=nullable(TIME),
    next=LIMITS_IN_FORCE,
    weekly=array(TEXT),
    upload_slots=UPLOAD_SLOTS,
)

LIMITS_METHODS: Final = (
    Method("limits.show", params=strict(), result=LIMITS),
    Method(
        "limits.set",
        params=strict(
            limits=array(text(max_length=200), max_items=len(RATE_KEYS)),
            until=nullable(text(max_length=100)),
        ),
        result=LIMITS,
        changes=True,
    ),
    Method(
        "limits.clear",
        params=strict(keys=array(text(max_length=100), max_items=len(RATE_KEYS))),
        result=LIMITS,
        changes=True,
    ),
)
