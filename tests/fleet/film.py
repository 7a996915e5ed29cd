"""A film that plays: three small scripts, published and released to some cinemas."""

from __future__ import annotations

from tests.fleet.local import LocalFleet
from tests.fleet.scripts import LOOP, SAS, write_script

KINDS = ("feature", "sas", "loop")
LONG_AGO = "2026-01-01T00:00:00Z"
FAR_AWAY = "2097-01-01T00:00:00Z"


def publish_film(fleet: LocalFleet, name: str = "film") -> None:
    """Publish its feature, SAS script and loop."""
    for kind in KINDS:
        folder = fleet.base / "src" / name / kind
        write_script(folder, name, kind, LOOP if kind != "sas" else SAS)
        fleet.publish(folder, f"{name}-{kind}", kind)


def release_film(
    fleet: LocalFleet,
    name: str = "film",
    *,
    sites: str = '["lyon"]',
    prefetch: str = LONG_AGO,
    start: str = LONG_AGO,
) -> None:
    """Apply the release of it to these sites; it is fetched and switched to at once."""
    fleet.apply(
        name,
        scripts={kind: f"{name}-{kind}" for kind in KINDS},
        prefetch=prefetch,
        start=start,
        end="2098-01-01T00:00:00Z",
        sites=sites,
    )
