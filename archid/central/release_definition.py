"""A release as a person writes it: TOML in, a frozen `ReleaseDefinition` out.

Everything that can be judged from the text alone is judged here, each mistake with its line and
key. Whether the scripts and servers exist is for `archid.central.release_plan`, which knows the
estate. `config/release-example.toml` is the commented example.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from archid.config_errors import ConfigError, describe_problems, parse_toml
from archid.errors import UsageError
from protocol.errors import FormatError
from protocol.limits import MAX_LABEL_BYTES, MAX_SERIAL
from protocol.paths import check_script_name

SCRIPT_KINDS: Final = ("feature", "sas", "loop")
REMEDY: Final = "Correct the file and apply it again; nothing was signed"
TARGET_KINDS: Final = ("site", "room", "node")
_WITH_VERSION: Final = re.compile(r"(.+)@([0-9]{1,16})", re.DOTALL)


@dataclass(frozen=True)
class ScriptChoice:
    """Which script, and which version of it; None means the newest there is."""

    name: str
    version: int | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


def check_label(text: str) -> None:
    """Raise ValueError, with a sentence, unless `text` can name a release, a site or a room."""
    if not text:
        raise ValueError("it is empty")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_LABEL_BYTES:
        raise ValueError(f"it has more than {MAX_LABEL_BYTES} bytes")
    if any(unicodedata.category(each)[0] == "C" for each in text):
        raise ValueError(f"{text!r} holds a character that cannot be shown")
    if text != text.strip() or unicodedata.normalize("NFC", text) != text:
        raise ValueError(
            f"{text!r} starts or ends with a space, or is not in Unicode normalisation form C"
        )


def _label(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} must be text in quotes")
    check_label(value)
    return value


def _release_name(value: object) -> str:
    name = _label(value)
    # Releases appear in every room as a folder entry of this name.
    try:
        check_script_name(name)
    except FormatError as error:
        raise ValueError(str(error)) from error
    return name


def _script(value: object) -> ScriptChoice:
    if isinstance(value, ScriptChoice):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} must be text in quotes: 'name', or 'name@version'")
    match = _WITH_VERSION.fullmatch(value)
    name, version = (match[1], int(match[2])) if match else (value, None)
    try:
        check_script_name(name)
    except FormatError as error:
        raise ValueError(str(error)) from error
    if version is not None and not 1 <= version <= MAX_SERIAL:
        raise ValueError(f"{value!r} names version {version}; versions are counted from 1")
    return ScriptChoice(name, version)


def _moment(value: object) -> datetime:
    example = "2026-10-14T09:00:00+02:00"
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(
                f"{value.isoformat()} does not say its offset from UTC; write it as in"
                f" {example}, or with a Z at the end for UTC"
            )
        moment = value.astimezone(UTC).replace(microsecond=0)
        if moment.timestamp() < 0:
            raise ValueError(f"{value.isoformat()} is before 1970")
        return moment
    if isinstance(value, date):
        raise ValueError(f"{value.isoformat()} has no time of day; write it as in {example}")
    raise ValueError(f"{value!r} must be a date and time without quotes, as in {example}")


def _room(value: object) -> str:
    text = _label(value)
    site, slash, room = text.partition("/")
    if not (site and slash and room) or "/" in room:
        raise ValueError(f"{text!r} must name the site and the room: 'site/room'")
    return text


def _each(check: Callable[[object], str]) -> Callable[[object], tuple[str, ...]]:
    def validate(value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{value!r} must be a list in brackets")
        checked = tuple(map(check, value))
        for index, item in enumerate(checked):
            if item in checked[:index]:
                raise ValueError(f"{item!r} is listed twice")
        return checked

    return validate


ReleaseName = Annotated[str, BeforeValidator(_release_name)]
Script = Annotated[ScriptChoice, BeforeValidator(_script)]
Moment = Annotated[datetime, BeforeValidator(_moment)]
Labels = Annotated[tuple[str, ...], BeforeValidator(_each(_label))]
Rooms = Annotated[tuple[str, ...], BeforeValidator(_each(_room))]


class _Table(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True
    )


class Targets(_Table):
    """Which servers: everything of a site, of a room, or single servers by name."""

    sites: Labels = ()
    rooms: Rooms = ()
    nodes: Labels = ()

    @model_validator(mode="after")
    def _some(self) -> Targets:
        if not (self.sites or self.rooms or self.nodes):
            raise ValueError("it names no server; give sites, rooms or nodes")
        return self

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """(kind, value) in a fixed order, as the database keeps them."""
        named = (("site", self.sites), ("room", self.rooms), ("node", self.nodes))
        return tuple((kind, value) for kind, values in named for value in sorted(values))


class ReleaseDefinition(_Table):
    """What a release file says, checked as far as the text alone allows."""

    name: ReleaseName
    feature: Script
    sas: Script
    loop: Script
    prefetch: Moment
    start: Moment
    end: Moment
    targets: Targets

    @model_validator(mode="after")
    def _in_order(self) -> ReleaseDefinition:
        if self.end <= self.start:
            raise ValueError(
                f"the release ends ({self.end.isoformat()}) at or before its start"
                f" ({self.start.isoformat()}); end must be later than start"
            )
        if self.prefetch > self.start:
            raise ValueError(
                f"prefetch ({self.prefetch.isoformat()}) is later than start"
                f" ({self.start.isoformat()}); servers need the scripts before they play them"
            )
        return self

    @property
    def scripts(self) -> dict[str, ScriptChoice]:
        """The choice for each kind of script."""
        return {"feature": self.feature, "sas": self.sas, "loop": self.loop}

    @property
    def prefetch_s(self) -> int:
        return int(self.prefetch.timestamp())

    @property
    def start_s(self) -> int:
        return int(self.start.timestamp())

    @property
    def end_s(self) -> int:
        return int(self.end.timestamp())


def parse_release(text: str, *, source: str) -> ReleaseDefinition:
    """Read a release file; `source` is what errors call it.

    Raises UsageError (code definition_invalid) that names each wrong key, its line and, for an
    unknown key, the nearest known one.
    """
    try:
        document = parse_toml(text, source=source)
    except ConfigError as error:
        raise _invalid(error) from error
    try:
        return ReleaseDefinition.model_validate(document)
    except ValidationError as error:
        problems = describe_problems(error, text, model=ReleaseDefinition, source=source)
        raise _invalid(problems) from error


def _invalid(error: ConfigError) -> UsageError:
    remedy = error.remedy or REMEDY
    return UsageError(error.message, remedy=remedy, code="definition_invalid")
