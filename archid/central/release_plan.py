"""What a release is made of, and the plan of a change that a person reads and agrees to.

A plan's digest covers everything it says and the generation that it was compared with, so that
applying it later notices when something changed in between. How a plan is worked out is in
`archid.central.release_planning`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from blake3 import blake3

from protocol.canonical import Value, pack
from protocol.ids import ManifestId, NodeId, ReleaseId

Action = Literal["create", "change", "none"]
Change = Literal["added", "removed", "changed", "unchanged"]
_PLAN_CONTEXT: Final = "archid v1 release plan"


@dataclass(frozen=True, order=True)
class Server:
    """One node of the estate, as far as a release is concerned."""

    name: str
    node: NodeId
    role: str
    site: str = ""
    room: str = ""
    server_kind: str = ""


@dataclass(frozen=True)
class Version:
    """One published version of a script."""

    version: int
    manifest: ManifestId
    size_bytes: int


@dataclass(frozen=True)
class KnownScript:
    """A script and all of its versions, in ascending order; there is at least one."""

    name: str
    kind: str
    versions: tuple[Version, ...]


@dataclass(frozen=True)
class Estate:
    """What there is to release, and where to."""

    servers: tuple[Server, ...]
    scripts: Mapping[str, KnownScript]

    @property
    def ice_servers(self) -> tuple[Server, ...]:
        return tuple(server for server in self.servers if server.role == "ice")


@dataclass(frozen=True)
class ReleaseScript:
    """One of the three scripts of a release, with its version settled."""

    kind: str
    script: str
    version: int
    manifest: ManifestId
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.script}@{self.version}"


@dataclass(frozen=True)
class CurrentRelease:
    """A release as it was applied last."""

    release: ReleaseId
    name: str
    generation: int
    state: str
    prefetch_s: int
    start_s: int
    end_s: int
    scripts: Mapping[str, ReleaseScript]
    servers: Mapping[NodeId, Server]
    """The servers that have it now."""
    changed_s: int = 0


@dataclass(frozen=True)
class FieldChange:
    """One line of the plan: a field, what it says and what it will say."""

    field: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class ReleasePlan:
    """What applying would do. `digest` names this plan and nothing else."""

    name: str
    release: ReleaseId | None
    previous_generation: int | None
    generation: int
    prefetch_s: int
    start_s: int
    end_s: int
    scripts: tuple[ReleaseScript, ...]
    previous_scripts: Mapping[str, ReleaseScript]
    servers: tuple[Server, ...]
    gained: tuple[Server, ...]
    lost: tuple[Server, ...]
    changes: tuple[FieldChange, ...]
    targets: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def action(self) -> Action:
        if self.previous_generation is None:
            return "create"
        return "change" if self.generation != self.previous_generation else "none"

    @property
    def digest(self) -> bytes:
        """32 bytes over what the plan says and the generation that it starts from."""
        scripts: list[Value] = [
            [each.kind, each.script, each.version, bytes(each.manifest)] for each in self.scripts
        ]
        content: list[Value] = [
            self.name,
            self.release,
            self.previous_generation,
            self.generation,
            self.prefetch_s,
            self.start_s,
            self.end_s,
            scripts,
            [bytes(server.node) for server in self.servers],
            [bytes(server.node) for server in self.lost],
            [list(row) for row in self.targets],
        ]
        return blake3(pack(content), derive_key_context=_PLAN_CONTEXT).digest()

    def change_of_script(self, script: ReleaseScript) -> Change:
        """How this script compares with the one of its kind before."""
        before = self.previous_scripts.get(script.kind)
        if before is None:
            return "added"
        return "unchanged" if before.manifest == script.manifest else "changed"

    def to_json(self) -> dict[str, object]:
        """As the control socket and ``--json`` show it, all but `signed` and `head`."""
        gained = {server.node for server in self.gained}
        shown: list[tuple[Server, Change]] = [(server, "removed") for server in self.lost]
        for server in self.servers:
            kept: Change = "unchanged" if self.action == "none" else "changed"
            shown.append((server, "added" if server.node in gained else kept))
        return {
            "plan": self.digest.hex(),
            "action": self.action,
            "release": None if self.release is None else self.release.hex(),
            "name": self.name,
            "generation": self.generation,
            "previous_generation": self.previous_generation,
            "prefetch_s": self.prefetch_s,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "changes": [
                {"field": each.field, "before": each.before, "after": each.after}
                for each in self.changes
            ],
            "scripts": [
                script_json(each) | {"change": self.change_of_script(each)} for each in self.scripts
            ],
            "targets": [server_json(each) | {"change": change} for each, change in sorted(shown)],
            "warnings": list(self.warnings),
        }


def script_json(script: ReleaseScript) -> dict[str, object]:
    """One script of a release, as the control socket shows it."""
    return {
        "kind": script.kind,
        "script": script.script,
        "version": script.version,
        "manifest": script.manifest.hex(),
        "size_bytes": script.size_bytes,
    }


def server_json(server: Server) -> dict[str, object]:
    """One server of a release, as the control socket shows it."""
    return {
        "node": server.node.hex(),
        "name": server.name,
        "site": server.site,
        "room": server.room,
        "server_kind": server.server_kind,
    }
