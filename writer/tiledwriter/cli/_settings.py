"""Settings of the commands, with configuration errors reported in one line that says where the mistake is."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from tiledbroker import AddressError, __version__

from .._config import PluginCheck, Settings, StreamPatterns, load_settings
from .._plain_text import plain
from ._sources import Location, SettingSources, WrongConfiguration, suggest
from ._target_name import split_target

__all__ = [
    "LoadedSettings",
    "WrongConfiguration",
    "print_settings",
    "read_settings",
    "read_targets",
    "setting_flags",
    "settings_of",
]

log = logging.getLogger("tiledwriter.settings")

# Models of the settings that are mappings with keys of their own, for suggestions.
_NESTED: Final[Mapping[str, type[BaseModel]]] = {"streams": StreamPatterns}


@dataclass(frozen=True)
class LoadedSettings:
    """Settings, and the sources that they come from.

    Attributes
    ----------
    values
        The settings.
    sources
        Where they come from.
    """

    values: Settings
    sources: SettingSources

    def warn(self) -> None:
        """Log what is probably a mistake, although the settings can be used."""
        for sentence in self.sources.warnings():
            log.warning("%s", sentence)

    def describe(self) -> str:
        """Return one line for the log: version, Tiled's address, journals, and the settings that are not defaults."""
        settings = self.values
        tiled = f"profile {settings.profile}" if settings.tiled is None else settings.tiled
        other = {
            name: value
            for name, value in settings.shown().items()
            if name not in {"tiled", "profile", "journal_dir"} and not settings.has_default(name)
        }
        shown = ", ".join(f"{name}={json.dumps(value)}" for name, value in other.items()) or "all default"
        return plain(f"tiledwriter {__version__}; Tiled: {tiled}; journals: {settings.journal_dir}; settings: {shown}")


def setting_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings among the arguments of a command, by name."""
    return {name: value for name, value in vars(arguments).items() if name in Settings.model_fields}


def settings_of(
    config: Path | None, flags: dict[str, Any], *, server: bool = True, plugins: PluginCheck = PluginCheck.IMPORT
) -> Settings:
    """Return the settings from a YAML file, the environment and flags, and log warnings; see `read_settings`.

    Raises
    ------
    WrongConfiguration
        The file does not exist, or the settings cannot be used.
    """
    loaded = read_settings(config, flags, server=server, plugins=plugins)
    loaded.warn()
    return loaded.values


def read_settings(
    config: Path | None, flags: dict[str, Any], *, server: bool = True, plugins: PluginCheck = PluginCheck.IMPORT
) -> LoadedSettings:
    """Return the settings from a YAML file, the environment and flags, with their sources.

    Parameters
    ----------
    config
        YAML file; FILE:TARGET for one of the targets in it; None if there is none.
    flags, server, plugins
        See `load_settings`.

    Raises
    ------
    WrongConfiguration
        The file does not exist, or the settings cannot be used, or it has targets and none of them is named.
    """
    file, target = split_target(config)
    sources = SettingSources.find(file, flags, target)
    _check_targets(sources)
    if not target and sources.targets:
        names = [f"{file}:{name}" for name in sources.targets]
        raise WrongConfiguration(f"{file} has several targets; name one of them: --config {' or '.join(names)}")
    try:
        settings = load_settings(file, flags, server=server, plugins=plugins, section=dict(sources.section))
        return LoadedSettings(settings.for_target(target) if target else settings, sources)
    except ValidationError as error:
        problems = [_format_problem(sources, dict(item)) for item in error.errors()]
        if sources.file.path is not None and not sources.file.content:
            problems.append(f"{sources.file.path} holds no settings")
        raise WrongConfiguration(plain("; ".join(problems))) from error
    except AddressError as error:
        raise WrongConfiguration(plain(_prefix(sources, ("listen",)) + str(error))) from error
    except (yaml.YAMLError, OSError, TypeError, ValueError) as error:
        raise WrongConfiguration(f"{config or 'the environment'} cannot be used: {' '.join(str(error).split())}") from (
            error
        )


def read_targets(config: Path | None, flags: dict[str, Any]) -> dict[str, LoadedSettings]:
    """Return the settings of each target in a configuration, by name; nothing if it has none, or names one of them.

    Raises
    ------
    WrongConfiguration
        The settings cannot be used, or two targets would be in each other's way.
    """
    file, target = split_target(config)
    names = [] if target or file is None else list(SettingSources.find(file, flags).targets)
    targets = {name: read_settings(Path(f"{file}:{name}"), flags) for name in names}
    for setting, describe in _DISTINCT.items():
        seen: dict[str, str] = {}
        for name, loaded in targets.items():
            value = describe(loaded.values)
            if value and value in seen:
                raise WrongConfiguration(
                    f"{file}: the targets {seen[value]} and {name} have the same {setting}, {value}"
                )
            seen[value] = name
    return targets


# Settings in which targets must differ: two supervisors would write the same nodes, or use the same files or port.
_DISTINCT: Final[Mapping[str, Callable[[Settings], str]]] = {
    "Tiled": lambda settings: (settings.tiled or f"profile {settings.profile}").rstrip("/"),
    "journal_dir": lambda settings: str(settings.journal_dir.absolute()),
    "http": lambda settings: settings.http or "",
}


def _check_targets(sources: SettingSources) -> None:
    """Raise `WrongConfiguration` if a target does not exist, or another source has a setting of its section, too."""
    if "targets" in sources.variables:
        raise WrongConfiguration(f"{sources.variables['targets']}: targets can be given in a configuration file only")
    given = sources.file.content.get("targets")
    if given is not None and (not isinstance(given, dict) or len(sources.targets) < max(1, len(given))):
        place = sources.file.place(("targets",))
        raise WrongConfiguration(
            f"{place}: targets must be a mapping of names to settings, such as `new: {{tiled: ...}}`"
        )
    if not sources.target:
        return
    if sources.target not in sources.targets:
        known = ", ".join(sources.targets) or "none"
        raise WrongConfiguration(
            f"{sources.file.path} has no target {sources.target}{suggest(sources.target, sources.targets)} "
            f"(its targets: {known})"
        )
    # A journal directory for all targets is that above the directories of those that have none of their own.
    for name in sources.section.keys() - {"journal_dir"}:
        other = [f"--{name.replace('_', '-')}"] if name in sources.flags else []
        other += [sources.variables[name]] if name in sources.variables else []
        if other:
            place = sources.file.place(("targets", sources.target, name))
            raise WrongConfiguration(f"{name} is given by {other[0]} for all targets, and in {place} for one of them")


def _format_problem(sources: SettingSources, item: dict[str, Any]) -> str:
    location: Location = tuple(item.get("loc") or ())
    if item.get("type") == "extra_forbidden":
        return _format_unknown(sources, location)
    if item.get("type") == "settings":
        return _format_no_json(sources, str(item["msg"]))
    message = str(item.get("msg", "")).removeprefix("Value error, ")
    message = message.replace("Input should be", "must be", 1) if message.startswith("Input should be") else message
    if not location:
        named = [name for name in Settings.model_fields if re.search(rf"\b{name}\b", message)]
        given = [f"{name} comes from {origin}" for name in named for origin in sources.origins((name,))]
        return f"{message} ({', '.join(given)})" if given else message
    name = ".".join(map(str, location))
    if any(origin.startswith("--") for origin in sources.origins(location)):
        # The option names the setting.
        return f"{_prefix(sources, location)}{message}"
    return f"{_prefix(sources, location)}{name}: {message}"


def _format_unknown(sources: SettingSources, location: Location) -> str:
    nested = _NESTED.get(str(location[0])) if len(location) > 1 else Settings
    known = () if nested is None else nested.model_fields
    name = ".".join(map(str, location))
    return f"{_prefix(sources, location)}there is no setting {name}{suggest(str(location[-1]), known)}"


def _format_no_json(sources: SettingSources, message: str) -> str:
    """Return a message for a variable that is not JSON; pydantic-settings names only the setting, in quotes."""
    for name, variable in sources.variables.items():
        if f'"{name}"' in message:
            return f"{variable}: it must be JSON, such as {json.dumps(_example_of(name))} ({name})"
    return message


def _example_of(name: str) -> Any:
    examples = {"path_map": {"/data": "/mnt/data"}, "streams": {"exclude": ["baseline"]}, "access_tags": {"*": ["tag"]}}
    return examples.get(name, {"name": "value"})


def _prefix(sources: SettingSources, location: Location) -> str:
    origins = sources.origins(location)
    return f"{' and '.join(origins)}: " if origins else ""


# What is printed


def print_settings(loaded: LoadedSettings) -> None:
    """Print the effective settings as YAML, with the source of each as a comment and without secrets."""
    if loaded.sources.file.path is not None:
        print(f"# configuration file: {plain(str(loaded.sources.file.path))}")
    for name, value in loaded.values.shown().items():
        origins = [plain(origin) for origin in loaded.sources.origins((name,))]
        if name == "consolidators" and set(value) - loaded.sources.mapping_keys(name):
            origins.append("entry points of installed packages")
        print("\n".join(_dump_setting(name, value, " and ".join(origins) or "default")))


def _dump_setting(name: str, value: Any, origin: str) -> Iterator[str]:
    if isinstance(value, str):
        # JSON is YAML, and keeps a text with line breaks in one line.
        quoted = yaml.safe_dump([value], default_flow_style=True, width=2**20, allow_unicode=True).strip()[1:-1]
        yield f"{name}: {json.dumps(value) if not value.isprintable() else quoted}  # {origin}"
        return
    first, *rest = yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=2**20).splitlines()
    yield f"{first}  # {origin}"
    yield from rest


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration file."""
    schema = Settings.model_json_schema()
    properties = schema["properties"]
    level = properties["log_level"]
    # Lower case is accepted as well; see `Settings`.
    level["enum"] = [*level["enum"], *(str(name).lower() for name in level["enum"])]
    # A section has the same settings.
    properties["targets"]["additionalProperties"] = {"$ref": "#"}
    for name, field in Settings.model_fields.items():
        properties[name].pop("title", None)
        if field.default is PydanticUndefined:
            # A default that is computed, for example from the user's home directory.
            properties[name].pop("default", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of tiledwriter-supervisor",
        **{key: value for key, value in schema.items() if key not in {"title", "description"}},
    }
