"""What a node can do beyond the version of the protocol, by the names that go into Hello.

A feature is in force on a connection when both sides name it (SPEC.md 8.2). Messages that belong
to one say so (`Message.FEATURE`) and are sent only while it is.
"""

from __future__ import annotations

from typing import Final

SWARM: Final = "swarm"
"""Spans may be asked for as *any of these*: the server chooses."""

HEADS: Final = "heads"
"""Nodes tell one another by a digest which head they have, and send one where it is lacking."""

LANES: Final = "lanes"
"""Spans may go through a second connection, whose records are as large as they are."""

HOLDERS: Final = "holders"
"""Central and REPOs say who else holds or fetches a version, to whoever may read it."""

DELTAS: Final = "deltas"
"""Pieces of a manifest may be told by what they have in common with others."""

FEATURES: Final = (SWARM, HEADS, LANES, HOLDERS, DELTAS)
"""All that this implementation speaks."""
