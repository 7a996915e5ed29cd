"""Which services a node starts: the one place where roles differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Role: TypeAlias = Literal["central", "repo", "ice"]


@dataclass(frozen=True)
class Services:
    """What a role runs besides what every node runs (gossip, spans, fetcher, control socket)."""

    control_plane: bool
    """Definitions, signing, publishing and joining; only one node of a fleet has it."""
    holds_everything: bool
    """Replicates Catalogue, Roster, all leaves and every published script."""
    deliveries: bool
    """Holds what it is granted, and switches releases for a player."""


SERVICES: Final[Mapping[Role, Services]] = {
    "central": Services(control_plane=True, holds_everything=True, deliveries=False),
    "repo": Services(control_plane=False, holds_everything=True, deliveries=False),
    "ice": Services(control_plane=False, holds_everything=False, deliveries=True),
}
