"""Has the other cinema's server ask a peer for what it may not have.

The questions go out over a connection that the peer admits, with that server's own key and with the
right ids, and the same questions with an entitled server's key are answered: so what is refused
is refused for who asks, and for nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archid.cli import figures
from protocol.ids import NodeId
from protocol.messages import GetSpan
from tests.fleet.insider import InsiderKnowledge
from tests.fleet.local import FleetNode
from tests.fleet.probe import ProbeReport, Reply, probe_peer


@dataclass(frozen=True)
class Asked:
    """What one peer said to one node's questions."""

    asker: str
    peer: str
    report: ProbeReport
    has_all_leaves: bool

    @property
    def questions(self) -> int:
        return len(self.report.forbidden)

    @property
    def refused(self) -> int:
        return self.questions - len(self.report.given)

    @property
    def payload_bytes(self) -> int:
        return sum(reply.payload_bytes for reply in self.report.forbidden)

    @property
    def span_bytes(self) -> int:
        """Payload of spans alone: what a script is made of."""
        return sum(
            reply.payload_bytes
            for reply in self.report.forbidden
            if reply.request.startswith(GetSpan.__name__)
        )

    def failures(self) -> list[str]:
        """One sentence each for what should not have been, were this to be refused."""
        said = []
        # A server need not hold the leaf of one of another cinema; every node has the head.
        own = self.report.own if self.has_all_leaves else self.report.own[:1]
        if useless := [reply.request for reply in own if reply.code is not None]:
            said.append(
                f"{self.peer} did not answer {self.asker} what every member may ask"
                f" ({', '.join(useless)}), so its refusals mean nothing"
            )
        if given := self.report.given:
            said.append(
                f"{self.peer} gave {self.asker} what it may not have: {_listed(given)}"
                f" ({figures.size(self.payload_bytes)} of payload)"
            )
        return said

    def to_json(self) -> dict[str, Any]:
        codes = Counter(
            reply.code.name_text for reply in self.report.forbidden if reply.code is not None
        )
        return {
            "asker": self.asker,
            "peer": self.peer,
            "questions": self.questions,
            "refused": self.refused,
            "codes": dict(sorted(codes.items())),
            "payload_bytes": self.payload_bytes,
            "wire_bytes": self.report.wire_bytes,
        }


def ask_as(asker: FleetNode, peer: FleetNode, central: FleetNode, entitled: NodeId) -> Asked:
    """Ask `peer` everything as `asker`, whose daemon is stopped. Raises ArchidError."""
    known = InsiderKnowledge.of(central.state)
    report = probe_peer(asker.state, peer.address, known, scripts=known.scripts, entitled=entitled)
    return Asked(asker.name, peer.name, report, has_all_leaves=peer.role != "ice")


def content_of(state: Path) -> list[str]:
    """Everything of scripts that lies in a node's state folder, by path: trees and documents."""
    found = []
    for place in ("trees", "staging", "documents/manifests", "documents/pieces"):
        folder = state / place
        found += [str(path) for path in folder.rglob("*") if not path.name.startswith(".")]
    return found


def _listed(replies: Sequence[Reply]) -> str:
    names = sorted({reply.request.split(" (")[0] for reply in replies})
    return ", ".join(names)
