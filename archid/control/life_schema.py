"""The requests about the life of what a node holds: fetched, switched, kept, removed."""

from __future__ import annotations

from typing import Final

from archid.control.life_shapes import ACTIVATED, COLLECTED, FETCHED_VERSION, PIN, ROLLED_BACK
from archid.control.method import NAME, PLACE, Method
from archid.control.shapes import BOOLEAN, array, opened, strict

LIFE_METHODS: Final = (
    Method(
        "fetch",
        params=strict(name=NAME),
        result=opened(versions=array(FETCHED_VERSION)),
        changes=True,
    ),
    Method(
        "activate",
        params=strict(release=NAME, early=BOOLEAN),
        result=ACTIVATED,
        changes=True,
        roles=("ice",),
    ),
    Method(
        "rollback",
        params=strict(release=NAME, reason=PLACE),
        result=ROLLED_BACK,
        changes=True,
        roles=("ice",),
    ),
    Method("gc", params=strict(dry_run=BOOLEAN), result=COLLECTED, changes=True),
    Method("pin", params=strict(name=NAME), result=opened(pins=array(PIN)), changes=True),
    Method("unpin", params=strict(name=NAME), result=opened(pins=array(PIN)), changes=True),
    Method("pins", params=strict(), result=opened(pins=array(PIN))),
)
