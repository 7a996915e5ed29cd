"""What an operator can set, as frozen slices that are handed to whoever needs them.

One TOML file holds everything; `load_config` reads it once, and each part of the daemon gets its
own slice (`config.network`, `config.storage`, ...) and never the whole. Unknown keys are refused:
a misspelt key that is silently ignored is found out on the evening of a premiere. What a
single value may be is in `archid.config_fields`, how a mistake is worded in
`archid.config_errors`, how ``archid config show`` gets its rows in `archid.config_view`; the
commented examples are ``config/*.toml``.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from archid.addresses import Address
from archid.config_errors import ConfigError, check_version, describe_problems, parse_toml
from archid.config_fields import (
    MAX_SOCKET_PATH_BYTES as MAX_SOCKET_PATH_BYTES,  # noqa: PLC0414 - the listener needs it too
)
from archid.config_fields import (
    AbsolutePath,
    DatabaseUrl,
    DialledAddresses,
    Duration,
    GroupName,
    ListenAddresses,
    MetricsAddress,
    NodeName,
    PeerCount,
    RateLimit,
    Size,
    SlotCount,
    SocketPath,
    TimeZone,
    WeeklyGrid,
)
from archid.errors import Denied
from archid.rates import Rates

CONFIG_VERSION: Final = 1
DEFAULT_CONFIG_PATH: Final = Path("/etc/archid/archid.toml")
MAX_CONFIG_BYTES: Final = 256 * 1024


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
    max_peers: PeerCount = 4096


class LimitsSettings(_Section):
    """How much may go over which line at which hours."""

    up_rate: RateLimit = Field(default=None, alias="up")
    down_rate: RateLimit = Field(default=None, alias="down")
    outside_up_rate: RateLimit = Field(default=None, alias="outside_up")
    outside_down_rate: RateLimit = Field(default=None, alias="outside_down")
    per_site_up_rate: RateLimit = Field(default=None, alias="per_site_up")
    per_site_down_rate: RateLimit = Field(default=None, alias="per_site_down")
    per_peer_up_rate: RateLimit = Field(default=None, alias="per_peer_up")
    per_peer_down_rate: RateLimit = Field(default=None, alias="per_peer_down")
    weekly: WeeklyGrid = ()
    time_zone: TimeZone = ""
    upload_slots: SlotCount = 200

    @property
    def rates(self) -> Rates:
        """Those that hold while no line of `weekly` says otherwise."""
        return Rates(
            up=self.up_rate,
            down=self.down_rate,
            outside_up=self.outside_up_rate,
            outside_down=self.outside_down_rate,
            per_site_up=self.per_site_up_rate,
            per_site_down=self.per_site_down_rate,
            per_peer_up=self.per_peer_up_rate,
            per_peer_down=self.per_peer_down_rate,
        )


class StorageSettings(_Section):
    """Where its files are."""

    state: AbsolutePath = Path("/var/lib/archid")
    scripts: AbsolutePath = Path("/srv/archid")
    keep_free_bytes: Size = Field(default=2**30, alias="keep_free")
    keep_ungranted: Duration = timedelta(days=7)
    scrub_bytes_per_s: Size = Field(default=8_000_000, alias="scrub_rate")
    scrub_every: Duration = timedelta(days=7)

    @model_validator(mode="after")
    def _some_time_between_passes(self) -> StorageSettings:
        if not self.scrub_every:
            raise ValueError('scrub_every must be longer than nothing; scrub_rate = "0B" ends it')
        return self

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
    fetch_plans: bool = Field(default=False, strict=True)


class MetricsSettings(_Section):
    """Where Prometheus reads this node's figures."""

    listen: MetricsAddress = None


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
    limits: LimitsSettings = LimitsSettings()
    storage: StorageSettings = StorageSettings()
    player: PlayerSettings = PlayerSettings()
    control: ControlSettings = ControlSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    central: CentralSettings = CentralSettings()

    @model_validator(mode="after")
    def _only_centrals_have_central(self) -> Config:
        if "central" in self.model_fields_set and self.node.role != "central":
            raise ValueError(
                f"the section [central] is there, but [node] role is '{self.node.role}'; only the"
                " role 'central' reads it"
            )
        return self


def warnings(config: Config) -> list[str]:
    """What is allowed and should be known, a sentence each."""
    found = []
    address = config.metrics.listen
    if address is not None and not address.is_loopback:
        found.append(
            f"[metrics] listen is {address}: whoever reaches that address can read this node's"
            " figures, there is no password"
        )
    return found


def parse_config(text: str, *, source: str) -> Config:
    """The configuration in `text`; `source` is what errors call it. Raises ConfigError."""
    document = parse_toml(text, source=source)
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
