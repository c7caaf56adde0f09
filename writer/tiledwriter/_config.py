"""Settings of the supervisor, from a YAML file, the environment and the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, get_args
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from tiledbroker import default_journal_dir
from tiledbroker._wording import format_command
from tiledbroker.jetstream import LogAddress
from tiledbroker.ownership import DEFAULT_TIMING, RUNS_SUBDIRECTORY, SHORTEST_LEASE_SECONDS
from tiledbroker.protocol import ServerCurve, is_local, normalize_address
from tiledbroker.supervisor import (
    DEFAULT_ADDRESS,
    DEFAULT_MAX_CONNECTIONS,
    DEFAULT_MAX_DOCUMENT,
    DEFAULT_MAX_OPEN_RUNS,
    DEFAULT_MAX_RESUMED,
    DEFAULT_MAX_WORKERS,
    DEFAULT_SILENCE,
    DEFAULT_WINDOW,
    ClientLimits,
    WorkerLimits,
)

from ._given_path import path_of
from ._logging import LogForm, LogOptions
from .mapping import (
    LATE_AUDIT_SECONDS,
    MAX_ARRAY_SIZE,
    POISON_AFTER_SECONDS,
    QUIET_PERIOD_SECONDS,
    AccessTagLimits,
    PathMap,
    Plugins,
    StreamFilter,
    WritingOptions,
    check_patch_names,
    import_plugin_module,
    installed_consolidators,
    load_consolidators,
    load_patches,
    may_exist,
)
from .status import HttpOptions, parse_http_address, read_token
from .worker import PARK_AFTER_SECONDS, TiledAddress, WorkerOptions

# Default memory limit of a worker in MiB.
WORKER_MEMORY_MIB: Final = 2048

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"([!-~]([ -~\t]*[!-~])?)?")
# Header names that the HTTP client sets itself.
_OWN_HEADERS: Final = frozenset({"connection", "content-length", "content-type", "host", "transfer-encoding"})

_SIZE: Final = re.compile(r"\s*\d*\.?\d+\s*[A-Za-z]*\s*")
_SIZE_SCHEMA: Final = WithJsonSchema(
    {"anyOf": [{"type": "string", "pattern": f"^{_SIZE.pattern}$"}, {"type": "integer", "minimum": 0}]}
)


def _check_size(value: object) -> object:
    """Refuse a text of which `ByteSize` would take the beginning only, such as "5%" (5 bytes) or "1,5 GiB" (1 byte)."""
    if isinstance(value, str) and not _SIZE.fullmatch(value):
        raise ValueError(f"{value!r} is not a size such as 500MB, 2GiB or a number of bytes")
    return value


def _types_in(annotation: Any) -> set[Any]:
    """Return all types in an annotation, such as those of a union."""
    return {annotation}.union(*map(_types_in, get_args(annotation)))


_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?)\s*(s|min|h|d|w|)")
_UNIT_SECONDS: Final = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}


def parse_duration(value: object) -> object:
    """Return the seconds of a text such as "14d", "12h", "90min" or "3600"; anything else as it is."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is not a duration such as 14d, 12h, 90min or a number of seconds")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


_DURATION_SCHEMA: Final = WithJsonSchema({"type": ["number", "string"], "exclusiveMinimum": 0})


class PluginCheck(Enum):
    """How to look at the plugins that settings name.

    Attributes
    ----------
    NONE
        Not at all.
    NAMES
        Import only those that seem to be misspelt, to find out why.
    IMPORT
        Import all of them.
    """

    NONE = "none"
    NAMES = "names"
    IMPORT = "import"


_TARGET_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")
# The relay of all targets has these.
_NOT_OF_A_TARGET: Final = frozenset(
    {
        *("listen", "curve", "insecure", "targets"),
        *("window", "max_document", "max_connections", "max_open_runs"),
    }
)
# Publishers that connect to this host have these; those of a site's log do not.
_NOT_WITH_A_LOG: Final = ("listen", "curve", "insecure", "window", "max_connections")
_FOR_A_LOG: Final = ("source_credentials", "source_tls", "source_tls_client", "keep_in_log")
_RESERVED_NAMES: Final = frozenset({"finished", "retry"})


class StreamPatterns(BaseModel):
    """Which streams are written, by shell-style patterns of their names. `exclude` takes precedence over `include`."""

    model_config = ConfigDict(extra="forbid")

    include: Annotated[list[str], Field(min_length=1)] = ["*"]
    exclude: list[str] = []


class Settings(BaseSettings):
    """Settings of `tiledwriter-supervisor`. Each can also be set as `TILEDWRITER_<NAME>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="TILEDWRITER_", extra="forbid", hide_input_in_errors=True)
    yaml_file: ClassVar[Path | None] = None
    needs_server: ClassVar[bool] = True
    plugin_check: ClassVar[PluginCheck] = PluginCheck.IMPORT
    section: ClassVar[dict[str, Any]] = {}
    _target: str = ""

    listen: str = Field(DEFAULT_ADDRESS, description="Address to listen on for publishers.")
    curve: Path | None = Field(
        None, description="Directory with the keys of the supervisor and of the clients that it accepts."
    )
    insecure: bool = Field(False, description="Listen to other hosts without keys: any of them can write.")
    tiled: str | None = Field(None, description="URI of the Tiled container that runs are written to.")
    profile: str | None = Field(None, description="Profile of Tiled's client, instead of a URI.")
    api_key_file: Path | None = Field(
        None, description="File with Tiled's API key, read again when Tiled no longer accepts the key."
    )
    targets: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Several Tiled servers or containers that each run is written to: settings of each, by its name.",
    )
    journal_dir: Path = Field(
        default_factory=default_journal_dir, description="Directory of the journals, on a local disk."
    )
    lease_dir: Path | None = Field(
        None,
        description="Directory that all ingest hosts of this service mount: who holds the lease in it, serves.",
    )
    lease_seconds: float = Field(
        DEFAULT_TIMING.lease_seconds,
        ge=SHORTEST_LEASE_SECONDS,
        description="Seconds without a renewal after which the lease is lost, and another host takes over.",
    )
    standby: bool = Field(
        False,
        description="Wait while another host holds the lease, instead of ending; "
        "with source, get runs only if all other hosts stand by.",
    )
    source: str | None = Field(
        None, description="Servers of a site's log in NATS JetStream to read, as nats://a,b,c, instead of listening."
    )
    source_credentials: Path | None = Field(
        None,
        description="File with NAME:PASSWORD, or with the seed or credentials of a NATS user, for source.",
    )
    source_tls: Path | None = Field(
        None, description="File with the certificates that those of the servers of source are signed with."
    )
    source_tls_client: Path | None = Field(
        None, description="File with the certificate of this host and its key, if the servers of source ask for one."
    )
    keep_in_log: Annotated[PositiveFloat, BeforeValidator(parse_duration), _DURATION_SCHEMA] = Field(
        86_400.0, description="Age, such as 1d or 12h, at which written runs are removed from the log of source."
    )
    min_free: Annotated[ByteSize, BeforeValidator(_check_size), _SIZE_SCHEMA] | None = Field(
        None,
        description="Free bytes, such as 500MB, of the journals' disk below which no documents are accepted.",
    )
    keep_written: Annotated[PositiveFloat, BeforeValidator(parse_duration), _DURATION_SCHEMA] | None = Field(
        None, description="Age, such as 14d or 12h, at which journals of written runs are deleted."
    )
    http: str | None = Field(
        None, description="Address of the status page and metrics: HOST:PORT, or PORT for this host only."
    )
    http_token_file: Path | None = Field(
        None, description="File with the token that allows retries of runs in quarantine from the status page."
    )
    http_names: list[str] = Field(
        default_factory=list,
        description="Names under which a proxy asks for the status page of this host, besides localhost and addresses.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level of messages to log."
    )
    log_format: LogForm = Field(
        "auto", description="Format of log lines; auto: journald if systemd reads them, else text."
    )
    max_workers: PositiveInt = Field(DEFAULT_MAX_WORKERS, description="Maximum number of worker processes.")
    max_resumed: PositiveInt = Field(
        DEFAULT_MAX_RESUMED, description="How many of them may write leftovers of earlier runs."
    )
    park_after: PositiveFloat = Field(
        PARK_AFTER_SECONDS, description="Seconds without Tiled after which an ended run gives up its worker."
    )
    worker_memory: NonNegativeInt = Field(
        WORKER_MEMORY_MIB, description="MiB of memory above which a worker is replaced; 0: no limit."
    )
    worker_silence: PositiveFloat = Field(
        DEFAULT_SILENCE, description="Seconds without an answer after which a worker is replaced."
    )
    window: PositiveInt = Field(DEFAULT_WINDOW, description="Bytes that a publisher may have in flight.")
    max_document: PositiveInt = Field(DEFAULT_MAX_DOCUMENT, description="Maximum size of a document in bytes.")
    max_connections: PositiveInt = Field(
        DEFAULT_MAX_CONNECTIONS, description="Maximum number of connected publishers per client."
    )
    max_open_runs: PositiveInt = Field(DEFAULT_MAX_OPEN_RUNS, description="Maximum number of open runs per client.")
    max_array_size: int = Field(
        MAX_ARRAY_SIZE, ge=0, description="Arrays in events of up to this many numbers become list columns."
    )
    quiet_period: PositiveFloat = Field(
        QUIET_PERIOD_SECONDS,
        description="Seconds without change of a table before a lost append is sent again; reads must lag by less.",
    )
    poison_after: PositiveFloat = Field(
        POISON_AFTER_SECONDS,
        description="Seconds of nothing but HTTP 500 to one request before its run is quarantined.",
    )
    late_audit: PositiveFloat = Field(
        LATE_AUDIT_SECONDS,
        description="Seconds after which a run is compared with its journal again, if answers were lost.",
    )
    write_slots: PositiveInt | None = Field(
        None, description="Workers that write to Tiled at a time. Default: as many as its storage takes."
    )
    headers: dict[str, SecretStr] = Field(
        default_factory=dict, description="HTTP headers to send with every request to Tiled."
    )
    path_map: dict[str, str] = Field(
        default_factory=dict, description="Paths at which the Tiled server sees directories of the acquisition host."
    )
    streams: StreamPatterns = Field(
        default_factory=StreamPatterns, description="Streams to write, and streams to leave out."
    )
    access_tags: dict[str, list[str]] = Field(
        default_factory=dict, description="Access tags that the runs of each client may ask for."
    )
    spec_to_mimetype: dict[str, str] = Field(
        default_factory=dict, description="Mimetypes of old resources by their spec."
    )
    normalizer: str | None = Field(None, description="A normalizer class, as module:attribute.")
    patches: dict[str, str] = Field(
        default_factory=dict, description="Functions that correct documents, as module:attribute, by document name."
    )
    plugins: list[str] = Field(
        default_factory=list,
        description="Modules to import, which register consolidators with bluesky-tiled-plugins.",
    )
    consolidators: dict[str, str] = Field(
        default_factory=dict,
        validate_default=True,
        description="Consolidator classes, as module:attribute, by mimetype.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        if cls.section:
            sources.append(InitSettingsSource(settings_cls, cls.section))
        if cls.yaml_file is not None:
            sources.append(YamlConfigSettingsSource(settings_cls, yaml_file=cls.yaml_file))
        return tuple(sources)

    @model_validator(mode="before")
    @classmethod
    def _level_in_capitals(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("log_level"), str):
            values["log_level"] = values["log_level"].upper()
        return values

    @field_validator(
        "curve",
        "api_key_file",
        "http_token_file",
        "journal_dir",
        "lease_dir",
        "source_credentials",
        "source_tls",
        "source_tls_client",
        mode="before",
    )
    @classmethod
    def _home_is_found(cls, path: Any) -> Any:
        return path_of(path) if isinstance(path, str | Path) else path

    @field_validator("*", mode="before")
    @classmethod
    def _boolean_is_no_number(cls, value: Any, field: ValidationInfo) -> Any:
        if isinstance(value, bool) and field.field_name is not None:
            types = _types_in(cls.model_fields[field.field_name].annotation)
            if bool not in types and not types.isdisjoint((int, float, ByteSize)):
                raise ValueError(f"{value} is no number: YAML reads yes, no, on and off as true and false")
        return value

    @field_validator("min_free")
    @classmethod
    def _size_is_a_plain_number(cls, size: int | None) -> int | None:
        # msgspec, which encodes the status, takes no subclasses of int.
        return None if size is None else int(size)

    @field_validator("listen")
    @classmethod
    def _address_in_one_form(cls, address: str) -> str:
        return normalize_address(address)

    @field_validator("http", mode="before")
    @classmethod
    def _http_is_an_address(cls, http: Any) -> Any:
        # YAML reads a port alone as a number.
        if isinstance(http, int) and not isinstance(http, bool):
            http = str(http)
        return str(parse_http_address(http)) if isinstance(http, str) else http

    @field_validator("targets")
    @classmethod
    def _targets_can_be_told_apart(cls, targets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, section in targets.items():
            if not _TARGET_NAME.fullmatch(name) or name in _RESERVED_NAMES:
                raise ValueError(
                    f"{name!r} cannot be the name of a target, which is that of a directory, too: take lower-case "
                    "letters, digits, - and _"
                )
            if common := sorted(_NOT_OF_A_TARGET & section.keys()):
                raise ValueError(f"{', '.join(common)} is for all targets together; it cannot be set for {name} alone")
        return targets

    @field_validator("tiled")
    @classmethod
    def _no_secret_in_the_uri(cls, uri: str | None) -> str | None:
        parts = urlsplit(uri or "")
        if parts.username is not None or "api_key" in parse_qs(parts.query):
            raise ValueError(
                "a URI is shown in logs and by ps, so it must not contain a key; put the key into TILED_API_KEY, or "
                "into a file that api_key_file names"
            )
        return uri

    @field_validator("tiled")
    @classmethod
    def _uri_is_an_address(cls, uri: str | None) -> str | None:
        if uri is not None:
            _require_web_address(uri)
        return uri

    @field_validator("headers")
    @classmethod
    def _headers_can_be_sent(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a valid header name")
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"{name} is set by tiledwriter itself")
            if not _HEADER_VALUE.fullmatch(value.get_secret_value()):
                raise ValueError(f"the value of {name} is not printable ASCII without leading or trailing blanks")
        return headers

    @field_validator("path_map")
    @classmethod
    def _paths_are_absolute(cls, rules: dict[str, str]) -> dict[str, str]:
        PathMap.of(rules)
        return rules

    @field_validator("plugins")
    @classmethod
    def _plugins_can_be_imported(cls, modules: list[str]) -> list[str]:
        for module in modules:
            if cls._must_import(module):
                import_plugin_module(module)
        return modules

    @field_validator("normalizer")
    @classmethod
    def _normalizer_can_be_made(cls, normalizer: str | None) -> str | None:
        if normalizer is not None and cls._must_import(normalizer):
            Plugins(normalizer).make_normalizer({})
        return normalizer

    @field_validator("patches")
    @classmethod
    def _patches_exist(cls, patches: dict[str, str]) -> dict[str, str]:
        check_patch_names(patches)
        if any(map(cls._must_import, patches.values())):
            load_patches(patches)
        return patches

    @field_validator("consolidators")
    @classmethod
    def _with_installed_consolidators(cls, consolidators: dict[str, str]) -> dict[str, str]:
        if any(map(cls._must_import, consolidators.values())):
            load_consolidators(consolidators)
        is_loaded = cls.plugin_check is PluginCheck.IMPORT
        return {**installed_consolidators(except_for=consolidators, load=is_loaded), **consolidators}

    @classmethod
    def _must_import(cls, reference: str) -> bool:
        """Return whether a plugin is to be imported: all, or those that seem to be misspelt."""
        if cls.plugin_check is PluginCheck.NAMES:
            return not may_exist(reference)
        return cls.plugin_check is PluginCheck.IMPORT

    @model_validator(mode="after")
    def _one_server(self) -> Settings:
        if self.needs_server and (self.tiled is None) == (self.profile is None):
            raise ValueError("give either --tiled URI or --profile NAME")
        if not (is_local(self.listen) or self.curve or self.insecure):
            keygen = format_command("tiledwriter-supervisor", "keygen", "DIR")
            raise ValueError(
                f"other hosts can reach {self.listen}, and any of them could write. Make keys with `{keygen}` and give "
                "--curve DIR, or give --insecure on a network you trust"
            )
        return self

    @field_validator("source")
    @classmethod
    def _source_in_one_form(cls, source: str | None) -> str | None:
        return None if source is None else str(LogAddress.parse(source))

    @model_validator(mode="after")
    def _source_alone(self) -> Settings:
        # What has no effect must not seem to have one.
        if self.source is None and (unused := self._find_changed(_FOR_A_LOG)):
            raise ValueError(f"{_join(unused)} {_be(unused)} for source, which is not set")
        if self.source is not None and (unused := self._find_changed(_NOT_WITH_A_LOG)):
            them = "it" if len(unused) == 1 else "them"
            raise ValueError(
                f"with source, documents come from the log, and publishers do not connect to this host: "
                f"{_join(unused)} would have no effect; remove {them}"
            )
        if self.source is not None and (self.targets or self._target):
            raise ValueError("source is for a service with one target; it cannot be used with targets")
        if self.source is not None and self.lease_dir is not None:
            raise ValueError("with source, leases are kept beside the log; remove lease_dir")
        return self

    def _find_changed(self, names: Sequence[str]) -> list[str]:
        """Return those of some settings that are no defaults. What is printed for a configuration has all of them."""
        return [name for name in names if not self.has_default(name)]

    @model_validator(mode="after")
    def _standby_for_a_lease(self) -> Settings:
        if self.standby and self.lease_dir is None and self.source is None:
            raise ValueError(
                "standby needs lease_dir: a directory that this host and the one that it stands by for both mount"
            )
        if self.lease_dir is not None and (self.targets or self._target):
            raise ValueError("lease_dir is for a service with one target; it cannot be used with targets")
        return self

    def shown(self) -> dict[str, Any]:
        """Return the settings as JSON values, with "***" for secrets."""
        shown = self.model_dump(mode="json")
        shown["headers"] = dict.fromkeys(self.headers, "***")
        # Sections may contain headers, too.
        shown["targets"] = dict.fromkeys(self.targets, "***")
        return shown

    def for_target(self, name: str) -> Settings:
        """Return the settings of the supervisor of one target, to which they were loaded with the target's section.

        Its journals are in a directory of that name below the common one, unless the section has a directory.
        """
        directory = path_of(self.section["journal_dir"]) if "journal_dir" in self.section else self.journal_dir / name
        settings = self.model_copy(update={"journal_dir": directory, "targets": {}})
        settings._target = name
        return settings

    def has_default(self, name: str) -> bool:
        """Return whether a setting has its default value."""
        field = type(self).model_fields[name]
        return bool(getattr(self, name) == field.get_default(call_default_factory=True))

    def server_curve(self) -> ServerCurve | None:
        """Return the supervisor's keys and the allowed clients; None allows any client.

        Raises
        ------
        KeyFileError
            A key cannot be used.
        """
        return None if self.curve is None else ServerCurve(self.curve)

    def client_limits(self) -> ClientLimits:
        """Return the limits for each client."""
        return ClientLimits(self.window, self.max_document, self.max_connections, self.max_open_runs)

    def worker_options(self) -> WorkerOptions:
        """Return the options that all workers share."""
        headers = {name: value.get_secret_value() for name, value in self.headers.items()}
        return WorkerOptions(
            TiledAddress(self.tiled, self.profile, headers, self.api_key_file),
            self.writing_options(),
            self.log_options(),
            self.park_after,
            self.log_address() if self.lease_dir is None else self.lease_dir / RUNS_SUBDIRECTORY,
        )

    def log_address(self) -> LogAddress | None:
        """Return the servers of the site's log; None if the service listens for publishers."""
        if self.source is None:
            return None
        return LogAddress.parse(
            self.source, credentials=self.source_credentials, tls_ca=self.source_tls, tls_client=self.source_tls_client
        )

    def log_options(self) -> LogOptions:
        """Return the level and format of the log."""
        return LogOptions(self.log_level, self.log_format, self._target)

    def worker_limits(self) -> WorkerLimits:
        """Return the limits at which the supervisor replaces a worker."""
        return WorkerLimits(self.worker_memory * 2**20 or None, self.worker_silence)

    def http_options(self) -> HttpOptions | None:
        """Return the options of the HTTP process; None if there is to be none.

        Raises
        ------
        TokenFileError
            The file with the token cannot be used.
        """
        if self.http is None:
            return None
        if self.http_token_file is not None:
            read_token(self.http_token_file)
        address = parse_http_address(self.http)
        return HttpOptions(
            address, self.journal_dir, self.http_token_file, tuple(self.http_names), self.log_level, self.log_format
        )

    def writing_options(self) -> WritingOptions:
        """Return the options for writing runs."""
        return WritingOptions(
            self.max_array_size,
            self.quiet_period,
            self.poison_after,
            self.late_audit,
            self.spec_to_mimetype,
            Plugins(self.normalizer, self.patches, self.consolidators, tuple(self.plugins)),
            StreamFilter(tuple(self.streams.include), tuple(self.streams.exclude)),
            PathMap.of(self.path_map),
            AccessTagLimits({client: tuple(tags) for client, tags in self.access_tags.items()}),
        )


def _join(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _require_web_address(uri: str) -> None:
    """Raise `ValueError` if Tiled's client could not connect to a URI at all."""
    advice = "give http://HOST:PORT or https://HOST, and what follows of the container's URI"
    if "://" not in uri and uri and not uri.startswith("/"):
        raise ValueError(f"{uri!r} has no scheme; did you mean http://{uri}?")
    try:
        parts = urlsplit(uri)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise ValueError(f"{uri!r} is not an address of Tiled ({error}); {advice}") from error
    if not usable or not uri.isprintable() or " " in uri:
        raise ValueError(f"{uri!r} is not an address of Tiled; {advice}")


def load_settings(
    config: Path | None,
    flags: dict[str, Any],
    *,
    server: bool = True,
    plugins: PluginCheck = PluginCheck.IMPORT,
    section: dict[str, Any] | None = None,
) -> Settings:
    """Load settings from a YAML file, the environment and flags.

    Flags take precedence over the environment, and the environment over the file. Mappings are merged key by key.

    Parameters
    ----------
    config
        YAML file; None if there is none.
    flags
        Settings from the command line by name; None values are ignored.
    server
        Raise an error if the settings do not name a Tiled server.
    plugins
        How to look at the plugins that the settings name.
    section
        Settings that take precedence over the others of the file, such as those of a target.

    Raises
    ------
    pydantic.ValidationError
        A setting is missing, unknown or malformed.
    """

    class FromFile(Settings):
        yaml_file: ClassVar[Path | None] = config
        needs_server: ClassVar[bool] = server
        plugin_check: ClassVar[PluginCheck] = plugins

    FromFile.section = section or {}
    try:
        return FromFile(**{name: value for name, value in flags.items() if value is not None})
    except SettingsError as error:
        # An environment variable that should be JSON is not.
        problem = PydanticCustomError("settings", "{problem}", {"problem": f"{error}, which must be JSON"})
        raise ValidationError.from_exception_data("Settings", [{"type": problem, "input": None}]) from error
