"""What was observed, with its figures, and the JSON that a program gets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from archid import __version__
from tests.demo.refusal import Asked

_NUMBER: Final = {"type": "number", "minimum": 0}
_COUNT: Final = {"type": "integer", "minimum": 0}
_TEXT: Final = {"type": "string"}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_ASKED: Final = _object(
    asker=_TEXT,
    peer=_TEXT,
    questions=_COUNT,
    refused=_COUNT,
    codes={"type": "object", "additionalProperties": _COUNT},
    payload_bytes=_COUNT,
    wire_bytes=_COUNT,
)
SCHEMA: Final = _object(
    ok={"type": "boolean"},
    failures=_array(_TEXT),
    software=_TEXT,
    seconds=_NUMBER,
    disk_bytes=_COUNT,
    errors_logged=_COUNT,
    nodes=_array(_object(name=_TEXT, role=_TEXT, site=_TEXT, address=_TEXT, pid=_COUNT)),
    joining_seconds=_NUMBER,
    scripts=_array(
        _object(
            name=_TEXT,
            kind=_TEXT,
            version=_COUNT,
            manifest=_TEXT,
            files=_COUNT,
            size_bytes=_COUNT,
            seconds=_NUMBER,
            bytes_per_s=_NUMBER,
        )
    ),
    deliveries=_array(
        _object(
            node=_TEXT,
            held_bytes=_COUNT,
            received_bytes=_COUNT,
            by_source={"type": "object", "additionalProperties": _COUNT},
            seconds=_NUMBER,
            bytes_per_s=_NUMBER,
        )
    ),
    comparisons=_array(
        _object(
            node=_TEXT,
            program=_TEXT,
            files=_COUNT,
            folders=_COUNT,
            links=_COUNT,
            bytes=_COUNT,
            differences=_array(_TEXT),
            seconds=_NUMBER,
        )
    ),
    refusals=_array(_ASKED),
    answered=_or_null(_ASKED),
    content_at_other=_COUNT,
    sharing=_array(
        _object(
            node=_TEXT,
            neighbour=_TEXT,
            received_bytes=_COUNT,
            sent_bytes=_COUNT,
            whole_bytes=_COUNT,
        )
    ),
    renewals=_array(
        _object(
            node=_TEXT,
            received_bytes=_COUNT,
            after_start_s={"type": "number"},
            looks=_COUNT,
            mixed=_COUNT,
        )
    ),
    rot=_or_null(
        _object(
            node=_TEXT,
            file=_TEXT,
            refused=_TEXT,
            alarm=_TEXT,
            repaired={"type": "boolean"},
            seconds=_NUMBER,
        )
    ),
    orphaned=_or_null(
        _object(
            node=_TEXT,
            central_pid=_COUNT,
            by_source={"type": "object", "additionalProperties": _COUNT},
            seconds=_NUMBER,
            files=_COUNT,
        )
    ),
    revoked=_or_null(
        _object(
            node=_TEXT,
            size_bytes=_COUNT,
            received_bytes=_COUNT,
            seconds=_NUMBER,
            reasons=_array(_TEXT),
        )
    ),
)
"""JSON Schema of `Summary.to_json`."""


@dataclass(frozen=True)
class Member:
    """A process of the fleet."""

    name: str
    role: str
    site: str
    address: str
    pid: int


@dataclass(frozen=True)
class Published:
    """One script."""

    name: str
    kind: str
    version: int
    manifest: str
    files: int
    size_bytes: int
    seconds: float
    """What the `archid publish` command took, its start included."""

    @property
    def bytes_per_s(self) -> float:
        return self.size_bytes / self.seconds


@dataclass(frozen=True)
class Delivered:
    """What one node got, and from whom."""

    node: str
    held_bytes: int
    by_source: dict[str, int]
    seconds: float
    """From the signature to the switch; for a REPO, from the publication of the first script."""

    @property
    def received_bytes(self) -> int:
        return sum(self.by_source.values())

    @property
    def bytes_per_s(self) -> float:
        return self.held_bytes / self.seconds


@dataclass(frozen=True)
class Compared:
    """One server's copy against the source."""

    node: str
    program: str
    files: int
    folders: int
    links: int
    bytes: int
    differences: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Shared:
    """What a server had from its neighbour, as both count it."""

    node: str
    neighbour: str
    received_bytes: int
    sent_bytes: int
    """By the neighbour's count."""
    whole_bytes: int
    """What the server had from everybody."""


@dataclass(frozen=True)
class Renewed:
    """How the second version came to one server."""

    node: str
    received_bytes: int
    after_start_s: float
    """When a reader saw it switch, by the set time."""
    looks: int
    mixed: int
    """How many of them saw two versions at once."""


@dataclass(frozen=True)
class Rotted:
    """What became of a flipped byte."""

    node: str
    file: str
    refused: str
    """With which code it was kept back."""
    alarm: str
    """What people were told."""
    repaired: bool
    seconds: float


@dataclass(frozen=True)
class Orphaned:
    """A server that got all without central."""

    node: str
    central_pid: int
    """The process that was killed."""
    by_source: dict[str, int]
    seconds: float
    files: int


@dataclass(frozen=True)
class Revoked:
    """A server that was cut off while it received."""

    node: str
    size_bytes: int
    received_bytes: int
    seconds: float
    """From the beginning of the command until the last peer had cut it."""
    reasons: list[str]
    """What its peers tell it since."""


@dataclass
class Summary:
    """Filled while the demo runs; what was not reached stays empty."""

    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    disk_bytes: int = 0
    errors_logged: int = 0
    nodes: list[Member] = field(default_factory=list)
    joining_seconds: float = 0.0
    scripts: list[Published] = field(default_factory=list)
    deliveries: list[Delivered] = field(default_factory=list)
    comparisons: list[Compared] = field(default_factory=list)
    refusals: list[Asked] = field(default_factory=list)
    answered: Asked | None = None
    """The same questions by a server that may ask them."""
    content_at_other: int = 0
    """Files of scripts that lie at the other cinema's servers."""
    sharing: list[Shared] = field(default_factory=list)
    renewals: list[Renewed] = field(default_factory=list)
    rot: Rotted | None = None
    orphaned: Orphaned | None = None
    revoked: Revoked | None = None
    complete: bool = False
    """Whether the demo came to its end."""

    @property
    def ok(self) -> bool:
        return self.complete and not self.failures

    def to_json(self) -> dict[str, Any]:
        """As `SCHEMA` says."""

        def with_rate(one: Published | Delivered) -> dict[str, Any]:
            return {
                **asdict(one),
                "seconds": round(one.seconds, 3),
                "bytes_per_s": round(one.bytes_per_s),
            }

        return {
            "ok": self.ok,
            "failures": self.failures,
            "software": f"archid {__version__}",
            "seconds": round(self.seconds, 3),
            "disk_bytes": self.disk_bytes,
            "errors_logged": self.errors_logged,
            "nodes": [asdict(one) for one in self.nodes],
            "joining_seconds": round(self.joining_seconds, 3),
            "scripts": [with_rate(one) for one in self.scripts],
            "deliveries": [
                {**with_rate(one), "received_bytes": one.received_bytes} for one in self.deliveries
            ],
            "comparisons": [
                {**asdict(one), "seconds": round(one.seconds, 3)} for one in self.comparisons
            ],
            "refusals": [one.to_json() for one in self.refusals],
            "answered": self.answered.to_json() if self.answered else None,
            "content_at_other": self.content_at_other,
            "sharing": [asdict(one) for one in self.sharing],
            "renewals": [
                {**asdict(one), "after_start_s": round(one.after_start_s, 4)}
                for one in self.renewals
            ],
            "rot": _rounded(self.rot),
            "orphaned": _rounded(self.orphaned),
            "revoked": _rounded(self.revoked),
        }


def _rounded(one: Rotted | Orphaned | Revoked | None) -> dict[str, Any] | None:
    return None if one is None else {**asdict(one), "seconds": round(one.seconds, 3)}
