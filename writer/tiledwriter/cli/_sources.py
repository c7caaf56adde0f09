"""Where settings come from: the configuration file with its lines, the environment and the command line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from .._config import Settings
from ._parser import suggestion_for
from ._variables import PREFIX, variable_of

# Variables of this project that are no settings: crash points, and those of the test suite.
_OTHER_VARIABLES: Final = frozenset({"TILEDWRITER_CRASH_AT", "TILEDWRITER_CRASH_ONCE"})
_TEST_PREFIX: Final = "TILEDWRITER_TEST_"
# Spellings of the prefix that people get wrong.
_NEARLY_PREFIX: Final = re.compile(r"TILED_?WRIT+ER_(?=.)")

Location: TypeAlias = tuple[str | int, ...]


class WrongConfiguration(Exception):
    """Raised when settings cannot be used; the message names the settings, where they are, and the reason."""


@dataclass(frozen=True)
class ConfigFile:
    """Contents of a configuration file, and the line of each key.

    Attributes
    ----------
    path
        The file; None if there is none.
    content
        Settings by name.
    lines
        Line numbers, counted from 1, by location, such as `("streams", "include", 0)`.
    """

    path: Path | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[Location, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Read a file.

        Raises
        ------
        WrongConfiguration
            The file cannot be read, or is not a YAML mapping with text as keys, each of them once.
        """
        loader = yaml.SafeLoader(_read_text(path))
        try:
            node = loader.get_single_node()
            content = None if node is None else loader.construct_document(node)
        except yaml.YAMLError as error:
            raise WrongConfiguration(_explain_yaml_error(path, error)) from error
        finally:
            loader.dispose()
        if node is None or content is None:
            return cls(path)
        if not isinstance(content, dict):
            raise WrongConfiguration(f"{path} is not a YAML mapping of settings, such as `listen: localhost:5579`")
        return cls(path, content, dict(_number_lines(path, node, ())))

    def place(self, location: Location) -> str:
        """Return the file and the line of a location, or of the nearest one above it."""
        while location and location not in self.lines:
            location = location[:-1]
        return f"{self.path}, line {self.lines[location]}" if location else str(self.path)


@dataclass(frozen=True)
class SettingSources:
    """Sources of settings, the first taking precedence over the next: flags, environment, file.

    Attributes
    ----------
    file
        The configuration file.
    variables
        Environment variables that are set, by setting.
    flags
        Names of the settings that the command line gives.
    target
        Name of the target whose section of the file is used; "" if none is.
    """

    file: ConfigFile
    variables: Mapping[str, str]
    flags: Collection[str]
    target: str = ""

    @classmethod
    def find(cls, config: Path | None, flags: Mapping[str, Any], target: str = "") -> SettingSources:
        """Read the configuration file, and find the variables that the environment has.

        Raises
        ------
        WrongConfiguration
            The configuration file cannot be used.
        """
        file = ConfigFile() if config is None else ConfigFile.read(config)
        found = {name: variable_of(name) for name in Settings.model_fields}
        variables = {name: variable for name, variable in found.items() if variable is not None}
        return cls(file, variables, [name for name, value in flags.items() if value is not None], target)

    @property
    def targets(self) -> Mapping[str, Mapping[str, Any]]:
        """Sections of the targets in the file, by name; those that are no mappings are left out."""
        found = self.file.content.get("targets")
        sections = found.items() if isinstance(found, dict) else ()
        return {str(name): section for name, section in sections if isinstance(section, dict)}

    @property
    def section(self) -> Mapping[str, Any]:
        """Section of the target."""
        return self.targets.get(self.target, {})

    def origins(self, location: Location) -> list[str]:
        """Return where the setting at a location is given, for people; an empty list for a default.

        Mappings are merged from several sources. One of their keys is attributed to the sources that have it.
        """
        if not location:
            return []
        name = str(location[0])
        found = []
        if name in self.flags:
            found.append("--" + name.replace("_", "-"))
        if name in self.variables and _contains(self._variable_value(name), location[1:]):
            found.append(self.variables[name])
        if name in self.section and _contains(self.section[name], location[1:]):
            found.append(self.file.place(("targets", self.target, *location)))
        if name in self.file.content and _contains(self.file.content[name], location[1:]):
            found.append(self.file.place(location))
        if not found and len(location) > 1:
            return self.origins(location[:-1])
        if found and not isinstance(self.section.get(name, self.file.content.get(name)), dict):
            # Only mappings are merged.
            return found[:1]
        return found

    def mapping_keys(self, name: str) -> set[str]:
        """Return the keys of a setting that is a mapping, from all sources."""
        values = [self.section.get(name), self.file.content.get(name)]
        values += [self._variable_value(name) if name in self.variables else None]
        return {str(key) for value in values if isinstance(value, Mapping) for key in value}

    def warnings(self) -> Iterator[str]:
        """Yield sentences on what is probably a mistake: unknown variables, and a file without settings."""
        if self.file.path is not None and not self.file.content:
            yield f"{self.file.path} holds no settings."
        known = {PREFIX + name.upper() for name in Settings.model_fields}
        for variable in sorted(os.environ):
            upper = variable.upper()
            if upper in known or upper in _OTHER_VARIABLES or upper.startswith(_TEST_PREFIX):
                continue
            spelled = _NEARLY_PREFIX.sub(PREFIX, upper, count=1)
            if spelled.startswith(PREFIX):
                end = suggest(spelled, known) or "."
                yield f"The environment variable {variable} is unknown and has no effect{end}"

    def _variable_value(self, name: str) -> Any:
        try:
            return json.loads(os.environ[self.variables[name]])
        except ValueError:
            return None


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" if one of the known names resembles the word, which may have hyphens."""
    return suggestion_for(word.replace("-", "_"), known)


def _contains(value: Any, location: Location) -> bool:
    for key in location:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        raise WrongConfiguration(f"there is no configuration file {path}") from error
    except IsADirectoryError as error:
        raise WrongConfiguration(
            f"{path} is a directory; --config needs a file, such as {path / 'config.yaml'}"
        ) from error
    except OSError as error:
        raise WrongConfiguration(f"the configuration file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WrongConfiguration(f"{path} is not a text file in UTF-8") from error


def _explain_yaml_error(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{path}, line {mark.line + 1}" if mark is not None else f"{path}"
    problem = str(getattr(error, "problem", None) or " ".join(str(error).split()))
    if "\\t" in problem:
        problem = "a tab, where YAML allows blanks only"
    return f"{place}: not YAML: {problem}"


def _number_lines(path: Path, node: yaml.Node, location: Location) -> Iterator[tuple[Location, int]]:
    """Yield the locations below a node with their lines.

    Raises
    ------
    WrongConfiguration
        A mapping has a key twice, of which YAML would use only the last one, or a setting's name is not text.
    """
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield (*location, i), item.start_mark.line + 1
            yield from _number_lines(path, item, (*location, i))
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or (not location and not key.tag.endswith(":str")):
            raise WrongConfiguration(f"{path}, line {line}: this is not the name of a setting")
        name = str(key.value)
        if name in seen:
            raise WrongConfiguration(f"{path}, line {line}: {name} is given twice, first in line {seen[name]}")
        seen[name] = line
        yield (*location, name), line
        yield from _number_lines(path, value, (*location, name))
