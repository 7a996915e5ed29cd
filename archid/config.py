"""What an operator can set, as frozen slices that are handed to whoever needs them.

One TOML file holds everything; `load_config` reads it once, and each part of the daemon gets its
own slice (`config.network`, `config.storage`, ...) and never the whole. Unknown keys are refused:
a misspelt key that is silently ignored is found out on the evening of a premiere. How a mistake
is worded is in `archid.config_errors`, how ``archid config show`` gets its rows in
`archid.config_view`; the commented examples are ``config/*.toml``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from archid.addresses import Address, parse_address
from archid.config_errors import ConfigError, check_version, describe_problems, describe_toml_error
from archid.errors import Denied
from archid.quantities import parse_duration, parse_size

CONFIG_VERSION: Final = 1
DEFAULT_CONFIG_PATH: Final = Path("/etc/archid/archid.toml")
MAX_CONFIG_BYTES: Final = 256 * 1024
MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path of unix(7), without its final zero

_GROUP: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_NODE_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def _from_text(parse: Callable[[str], object]) -> Callable[[object], object]:
    """Parse strings and refuse everything else, so that 7 is never taken for "7d"."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} must be text in quotes")
        return parse(value)

    return validate


def _each(parse: Callable[[str], object]) -> Callable[[object], object]:
    def validate(value: object) -> object:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{value!r} must be a list in brackets")
        parsed = tuple(map(_from_text(parse), value))
        for index, item in enumerate(parsed):
            if item in parsed[:index]:
                raise ValueError(f"'{item}' is listed twice")
        return parsed

    return validate


def _absolute_path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts or "\0" in text:
        raise ValueError(f"{text!r} is not an absolute path without '..'")
    return path


def _socket_path(text: str) -> Path:
    path = _absolute_path(text)
    if len(bytes(path)) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"{text!r} is longer than the {MAX_SOCKET_PATH_BYTES} bytes that Linux allows for the"
            " path of a socket"
        )
    return path


def _listen_address(text: str) -> Address:
    return parse_address(text, any_port=True)


def _dialled_address(text: str) -> Address:
    address = parse_address(text)
    if address.is_wildcard:
        raise ValueError(f"{text!r} means every interface of a machine; nobody could dial it")
    return address


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text and not pattern.fullmatch(text):
            raise ValueError(f"{text!r} is not {what}")
        return text

    return parse


def _database_url(text: str) -> str:
    if text and not text.startswith(("sqlite:///", "postgresql://", "postgresql+")):
        # the text itself may hold a password, so it is not repeated
        raise ValueError("it is not a URL that starts with sqlite:/// or postgresql://")
    return text


AbsolutePath = Annotated[Path, BeforeValidator(_from_text(_absolute_path))]
SocketPath = Annotated[Path, BeforeValidator(_from_text(_socket_path))]
Duration = Annotated[timedelta, BeforeValidator(_from_text(parse_duration))]
Size = Annotated[int, BeforeValidator(_from_text(parse_size))]
GroupName = Annotated[
    str, BeforeValidator(_from_text(_matching(_GROUP, "the name of a Unix group")))
]
NodeName = Annotated[
    str,
    BeforeValidator(
        _from_text(
            _matching(_NODE_NAME, "a node's name: up to 64 letters, digits and any of . _ -")
        )
    ),
]
DatabaseUrl = Annotated[str, BeforeValidator(_from_text(_database_url))]
ListenAddresses = Annotated[tuple[Address, ...], BeforeValidator(_each(_listen_address))]
DialledAddresses = Annotated[tuple[Address, ...], BeforeValidator(_each(_dialled_address))]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        arbitrary_types_allowed=True,
        validate_default=False,
    )


class NodeSettings(_Section):
    """Which node this is."""

    role: Literal["central", "repo", "ice"]
    name: NodeName = ""


class NetworkSettings(_Section):
    """Where it listens and whom it dials."""

    listen: ListenAddresses = (Address("::"),)
    advertise: DialledAddresses = ()
    peers: DialledAddresses = ()


class StorageSettings(_Section):
    """Where its files are."""

    state: AbsolutePath = Path("/var/lib/archid")
    scripts: AbsolutePath = Path("/srv/archid")
    keep_free_bytes: Size = Field(default=2**30, alias="keep_free")

    @model_validator(mode="after")
    def _keep_apart(self) -> StorageSettings:
        # the player's group may read all of `scripts`, and nobody else anything of `state`
        if self.state.is_relative_to(self.scripts) or self.scripts.is_relative_to(self.state):
            raise ValueError(
                f"state ({self.state}) and scripts ({self.scripts}) must be two folders,"
                " neither inside the other"
            )
        return self


class PlayerSettings(_Section):
    """Who may read the scripts."""

    group: GroupName = ""


class ControlSettings(_Section):
    """The socket that the `archid` command talks to."""

    socket: SocketPath = Path("/run/archid/control.sock")
    group: GroupName = "archid"
    admin_group: GroupName = "archid-admin"


class LogSettings(_Section):
    """What the daemon writes to its standard error output."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class CentralSettings(_Section):
    """What only central has."""

    database: DatabaseUrl = ""
    head_lifetime: Duration = timedelta(days=7)
    head_refresh: Duration = timedelta(hours=6)
    token_lifetime: Duration = timedelta(days=7)

    @model_validator(mode="after")
    def _refresh_in_time(self) -> CentralSettings:
        if not timedelta(minutes=1) <= self.head_refresh <= self.head_lifetime / 2:
            raise ValueError(
                "head_refresh must be at least 1m and at most half of head_lifetime, so that one"
                " refresh can fail without a head that expires"
            )
        if not self.token_lifetime:
            raise ValueError("token_lifetime must be longer than nothing")
        return self


class Config(_Section):
    """The whole file. Only the code that composes the daemon or a command sees it."""

    version: Literal[1]
    node: NodeSettings
    network: NetworkSettings = NetworkSettings()
    storage: StorageSettings = StorageSettings()
    player: PlayerSettings = PlayerSettings()
    control: ControlSettings = ControlSettings()
    log: LogSettings = LogSettings()
    central: CentralSettings = CentralSettings()

    @model_validator(mode="after")
    def _only_centrals_have_central(self) -> Config:
        if "central" in self.model_fields_set and self.node.role != "central":
            raise ValueError(
                f"the section [central] is there, but [node] role is '{self.node.role}'; only the"
                " role 'central' reads it"
            )
        return self


def parse_config(text: str, *, source: str) -> Config:
    """The configuration in `text`; `source` is what errors call it. Raises ConfigError."""
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise describe_toml_error(error, source=source) from error
    check_version(document, text, supported=CONFIG_VERSION, source=source)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise describe_problems(error, text, model=Config, source=source) from error


def load_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises ConfigError (a UsageError) that names the file, the line, the key and what is allowed,
    and Denied if the file may not be read.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no configuration file {path}",
            remedy="Copy the example for this role from the config folder, or name another file"
            " with --config",
            code="config_missing",
        ) from error
    except PermissionError as error:
        raise Denied(
            f"The configuration file {path} may not be read by this user",
            remedy="Run the command as root or as a member of the file's group",
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as a file ({error.strerror})") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes; it is no configuration")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: this is not UTF-8 text", remedy="Save the file as UTF-8"
        ) from error
    return parse_config(text, source=str(path))
