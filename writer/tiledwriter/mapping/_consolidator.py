"""The base class of consolidators, which join the external files of a data key into one Tiled data source."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Final, TypeAlias
from urllib.parse import urlsplit

import numpy
from tiled.structures.array import ArrayStructure
from tiled.structures.bytes import BytesStructure
from tiled.structures.core import StructureFamily
from tiled.structures.data_source import Asset, DataSource, Management

from .._errors import DocumentError
from ._frames import FILE_URI, AnnouncedFrames, File, FrameOrder, Region, as_integer, as_range, file_of

Document: TypeAlias = Mapping[str, Any]

MAX_FILES: Final = 1_000_000
"""The largest number of files of one data key; without a limit, one small document could claim any number of files."""

_PEER_NAMES: Final = {
    "mimetypes": "supported_mimetypes",
    "asset_parameter": "default_asset_role",
    "consume": "consume_stream_datum",
    "add_resource": "update_from_stream_resource",
}
"""Names of attributes in the `ConsolidatorBase` of bluesky-tiled-plugins, by those here."""

_NOT_IN_URIS: Final = re.compile(r"^\s|[\x00-\x1f]")
_QUOTED: Final = re.compile("%[0-9A-Fa-f]{2}")
_WIDE_NUMBER: Final = re.compile(r"\{[^{}]*[0-9]{4}")


@dataclass(frozen=True)
class _Joined:
    """The position of a file's frames among those of all files of a data key: frame number `base` is at `place`."""

    base: int
    place: int


@dataclass
class _Files:
    """The numbered files of one resource, named by its URI and a template for their numbers."""

    uri: str
    template: str

    def name(self, number: int) -> str:
        """Return the URI of the file with this number."""
        tail = self.template.format(number)
        return self.uri + (tail.lstrip("/") if self.uri.endswith("/") else tail)


class Consolidator:
    """Base class of consolidators: one Tiled data source for the files of one external data key in one stream.

    To support a new kind of file, subclass this class or one of its subclasses: list the `mimetypes`, and implement
    `consume` and `data_source`. If a document describes data that Tiled cannot serve, the constructor and the methods
    raise DocumentError and leave the data source unchanged, so that earlier data stays available.

    Attributes and methods also have the names that they have in the `ConsolidatorBase` of bluesky-tiled-plugins, and a
    subclass may define either: `supported_mimetypes`, `default_asset_role`, `consume_stream_datum`,
    `update_from_stream_resource` and `get_data_source`.

    Parameters
    ----------
    stream_resource
        The first StreamResource document of the data key.
    descriptor
        The descriptor of the stream.

    Attributes
    ----------
    mimetypes
        The mimetypes that the class handles; empty for any.
    asset_parameter
        The name of the parameter by which Tiled's adapter receives the files.
    data_key
        The data key.
    mimetype
        The mimetype of the files.
    uri
        The URI of the first StreamResource.
    parameters
        The parameters of the StreamResource.
    metadata
        Metadata for the node.
    notes
        Notes on declarations that could not be followed.
    announced
        The frames that the run's documents have named, over all streams.
    frames
        The frames of the node. A class that does not count them here leaves it open to which events they belong.
    in_order_of_events
        Whether the frames are in the order of their events.
    contradicts_events
        Whether any StreamDatum has sequence numbers, but not one for each of its frames.
    """

    mimetypes: ClassVar[frozenset[str]] = frozenset()
    asset_parameter: ClassVar[str] = "data_uris"
    supported_mimetypes: ClassVar[frozenset[str]] = mimetypes
    default_asset_role: ClassVar[str] = asset_parameter

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        own = vars(cls)
        for ours, theirs in _PEER_NAMES.items():
            if ours in own:
                setattr(cls, theirs, own[ours])
            elif theirs in own:
                setattr(cls, ours, own[theirs])
        # Each class converts the result of its own method, so that both methods can call those of the base class.
        if "data_source" in own:
            cls.get_data_source = _with_result(own["data_source"], _as_data_source)  # type: ignore[method-assign, assignment]
        elif "get_data_source" in own:
            cls.data_source = _with_result(own["get_data_source"], plain_data_source)  # type: ignore[method-assign, assignment]

    @classmethod
    def variant(cls, stream_resource: Document) -> type[Consolidator]:  # noqa: ARG003 - subclasses look at it
        """Return the class for a resource, because one mimetype may stand for several layouts."""
        return cls

    @classmethod
    def handles(cls, mimetype: str) -> bool:
        """Return whether the class accepts files of a mimetype."""
        return not cls.mimetypes or mimetype in cls.mimetypes

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        self.data_key: str = stream_resource["data_key"]
        self.mimetype: str = stream_resource["mimetype"]
        self._described: Document = descriptor["data_keys"].get(self.data_key, {})
        if not self.handles(self.mimetype):
            what = f"a data source of {self.mimetype} type can not be handled by {type(self).__name__}"
            raise self._registration_error(what)
        self.uri: str = stream_resource["uri"]
        self.parameters: dict[str, Any] = dict(stream_resource["parameters"])
        self.metadata: dict[str, Any] = {}
        self.notes: list[str] = []
        if self.parameters.get("spec"):
            self.metadata["spec"] = self.parameters["spec"]
        self.announced = AnnouncedFrames()
        self.frames = FrameOrder()
        self.in_order_of_events = True
        self.contradicts_events = False
        self._rows = 0
        self._assets: dict[str, dict[str, Any]] = {}
        self._files: dict[File, _Files] = {}
        self._file_of_resource: dict[str, File] = {}
        # By file, in the order in which they are joined.
        self._joined: dict[File, _Joined] = {}

    @property
    def rows(self) -> int:
        """The number of rows (datums) so far."""
        return self._rows

    @property
    def problem(self) -> str:
        """The reason why Tiled cannot serve these files, according to the run's documents; "" if it can."""
        return ""

    def add_resource(self, stream_resource: Document) -> None:
        """Add another StreamResource of the same data key.

        Raises
        ------
        DocumentError
            The files of the resource cannot be joined to the others. This base class accepts one resource only.
        """
        raise self._registration_error(f"{type(self).__name__} takes one resource, not also {stream_resource['uid']!r}")

    def consume(self, stream_datum: Document) -> Region:
        """Add the rows of a StreamDatum.

        Returns
        -------
        Region
            The region of the array that changes.

        Raises
        ------
        DocumentError
            Tiled cannot serve these rows.
        """
        raise NotImplementedError

    def data_source(self) -> dict[str, Any]:
        """Return the current data source, in JSON types.

        Callers must not change it, because its parts are shared.
        """
        raise NotImplementedError

    consume_stream_datum = consume
    update_from_stream_resource = add_resource

    def get_data_source(self) -> DataSource[Any]:
        """Return the current data source, in Tiled's data class."""
        raise NotImplementedError

    @property
    def assets(self) -> list[Asset]:
        """The files so far, in Tiled's data class."""
        return [Asset(**asset) for asset in self._assets.values()]

    def get_datum_uri(self, number: int) -> str:
        """Return the URI of the file with this number; without a template, that of the resource."""
        files = next(reversed(self._files.values()), None)
        return self.uri if files is None else files.name(number)

    def _text(self, parameters: Document, name: str) -> str:
        """Return a parameter that is a text; "" if it is absent."""
        value = parameters.get(name)
        if value is not None and not isinstance(value, str):
            raise self._registration_error(f"{name} is {value!r:.200}, which is no text")
        return value or ""

    def _size(self, name: str) -> int:
        """Return a parameter that is a number of frames or files; 0 if it is absent."""
        value = self.parameters.get(name)
        size = 0 if value is None else as_integer(value)
        if size is None or not 0 <= size <= sys.maxsize:
            raise self._registration_error(f"{name} is {value!r:.200}, which is no number of frames or files")
        return size

    def _registration_error(self, what: str) -> DocumentError:
        advice = "Correct the documents with patches of the RunNormalizer."
        return DocumentError(f"External data of {self.data_key!r} cannot be registered: {what}. {advice}")

    def _add_note(self, text: str) -> None:
        note = f"Data key '{self.data_key}': {text}"
        if note not in self.notes:
            self.notes.append(note)

    def _checked_indices(self, stream_datum: Document) -> range:
        indices = as_range(stream_datum["indices"])
        if indices is None:
            # The message does not name the document: of documents decoded by column, only the first is available.
            raise self._registration_error(f"a stream_datum has {stream_datum['indices']!r} as indices")
        return indices

    def _locate_frames(self, stream_datum: Document, numbers: range) -> tuple[int, int]:
        """Return the number of the first of these frames in its file, and its position among the frames of all files.

        Some detectors number the frames of each file from 0, others continue from file to file. The latter is assumed
        if the first frame of a file has the number of frames in all files before.
        """
        file = self._file_of(stream_datum)
        # The run writer has done so already; a consolidator may also be used without one.
        self.announced.add_frames(file, numbers)
        joined = self._joined.get(file)
        if joined is None:
            place = sum(self.announced.frames_of(known).stop - where.base for known, where in self._joined.items())
            accepts_more = place > 0 and self.announced.frames_of(file).start == place
            joined = self._joined[file] = _Joined(place if accepts_more else 0, place)
            if accepts_more:
                self._add_note(
                    f"frame {place} is taken to be the first of further files, as there were {place} before."
                )
        number = numbers.start - joined.base
        if number < 0:
            raise self._registration_error(f"frame {numbers.start} comes before the first of its file, {joined.base}")
        return number, joined.place + number

    def _file_of(self, stream_datum: Document) -> File:
        """Return the file of a StreamDatum's resource; that of the latest resource if the datum names none."""
        file = self._file_of_resource.get(stream_datum.get("stream_resource", ""))
        return next(reversed(self._file_of_resource.values())) if file is None else file

    def _has_room(self, file: File, stop: int) -> bool:
        """Return whether the frames of a file can extend to position `stop` without overlapping the next file."""
        place = self._joined[file].place
        return all(where.place <= place or where.place >= stop for where in self._joined.values())

    def _compare_events(self, stream_datum: Document, seq_num: int | None) -> None:
        """Remember that a StreamDatum does not have one sequence number for each frame, though it has some."""
        if not as_range(stream_datum.get("indices")) and as_range(stream_datum.get("seq_nums")) == range(0):
            # No frames of no events: wherever these ranges begin, they are equal to `range(0)`.
            return
        self.contradicts_events = self.contradicts_events or (seq_num is None and names_events(stream_datum))

    def _append_frames(self, stream_datum: Document, count: int) -> int:
        """Count the frames of a StreamDatum after all others; return the row of the first one.

        The numbers of the files in a data source never change.
        """
        seq_num = first_seq_num(stream_datum, count)
        self._compare_events(stream_datum, seq_num)
        if count and self.frames.row_of(count, seq_num) != self._rows:
            self.in_order_of_events = False
            self._add_note("its frames are in the order in which they were announced, not in that of the events.")
        self.frames.add_frames(self._rows, count, seq_num, insert=False)
        first, self._rows = self._rows, self._rows + count
        return first

    def _add_assets(self, uris: Iterable[str]) -> None:
        """Add files, without repeating those that are already known."""
        common = {"is_directory": False, "parameter": self.asset_parameter}
        for uri in uris:
            if uri in self._assets:
                continue
            self._check_uri(uri)
            if len(self._assets) >= MAX_FILES:
                raise self._registration_error(f"it has more than {MAX_FILES} files")
            self._assets[uri] = {"data_uri": uri, **common, "num": len(self._assets)}

    def _check_uri(self, uri: str) -> None:
        """Refuse the URI of a file that Tiled would look for under another name.

        Tiled splits off queries and fragments, and leaves out line breaks. It neither decodes a URI nor looks at its
        host, which is noted, because the name may be meant as it is, and both hosts may have the same files.
        """
        is_file = uri[:5].lower() == "file:"
        if _NOT_IN_URIS.search(uri) or (is_file and ("#" in uri or "?" in uri)):
            what = f"{uri!r} has a '#', a '?' or a control character"
            raise self._registration_error(f"{what}, and Tiled opens the file named without it")
        if not is_file:
            return
        found = FILE_URI.match(uri)
        host = (found and found[1]) or "localhost"
        if host.lower() != "localhost":
            self._check_host(uri)
            self._add_note(f"Tiled looks on its own host for the files that its documents name on {host!r}.")
        if quoted := _QUOTED.search(uri):
            self._add_note(f"Tiled takes {quoted[0]!r} in its URIs for a part of the file's name.")

    def _check_host(self, uri: str) -> None:
        try:
            urlsplit(uri)
        except ValueError as error:
            raise self._registration_error(f"{uri!r} is no URI ({error})") from error

    def _add_repeated_assets(self, uris: list[str]) -> None:
        """Add files, repeating those that are already known.

        Tiled keeps each URI once, so a repeated file gets another spelling of its URI.
        """
        if len(self._assets) + len(uris) > MAX_FILES:
            raise self._registration_error(f"it has more than {MAX_FILES} files")
        for uri in uris:
            spelled = uri
            while spelled in self._assets:
                folder, _, name = spelled.rpartition("/")
                spelled = f"{folder}/./{name}"
            self._add_assets([spelled])

    def _add_numbered_files(self, stream_resource: Document, template: str) -> None:
        """Add a resource whose files are named by its URI and a template."""
        files = _Files(stream_resource["uri"], template)
        if _WIDE_NUMBER.search(template):
            raise self._registration_error(f"template {template!r:.200} asks for a number of a thousand digits or more")
        try:
            files.name(0)
        except (LookupError, ValueError) as error:
            raise self._registration_error(
                f"template {template!r} cannot be filled in with a number ({error})"
            ) from error
        file = self._file_of_resource[stream_resource["uid"]] = file_of(stream_resource)
        self._files[file] = files

    def _numbered_uris(self, stream_datum: Document, numbers: range) -> list[str]:
        if numbers.stop - numbers.start > MAX_FILES:
            raise self._registration_error(f"stream_datum {stream_datum.get('uid')!r} has more than {MAX_FILES} files")
        files = self._files[self._file_of(stream_datum)]
        return [files.name(number) for number in numbers]

    def _data_source(
        self, family: str, structure: Document, parameters: Document, properties: Document
    ) -> dict[str, Any]:
        layout = {"structure_family": family, "structure": structure, "mimetype": self.mimetype}
        reading = {
            "parameters": json_value(parameters),
            "properties": properties,
            "assets": list(self._assets.values()),
        }
        return {**layout, **reading, "management": "external"}


def compile_template(template: str, filename: str = "") -> str:
    """Return a template for a number in the style of `str.format`.

    Parameters
    ----------
    template
        A template in the style of `str.format` or of C's `printf`. The first '%s' stands for the file name, further
        ones for an empty string: "%s%s_%06d.tif" becomes "name_{:06d}.tif".
    filename
        The file name.
    """
    literal = filename.replace("{", "{{").replace("}", "}}")
    before, slot, after = template.replace("{:s}", "%s", 1).partition("%s")
    template = before + (literal if slot else "") + after.replace("%s", "")
    return re.sub(r"%([-+#0 ]*)(\d*)(?:\.(\d+))?d", _number_field, template)


def _number_field(match: re.Match[str]) -> str:
    flags, width, digits = match.groups()
    sign = "+" if "+" in flags else " " if " " in flags else ""
    if digits:
        return f"{{:0{max(int(digits), int(width or 0))}d}}"
    align, zero = ("<", "") if "-" in flags else ("", "0" if "0" in flags else "")
    return f"{{:{align}{sign}{zero}{width}d}}"


def first_seq_num(stream_datum: Document, count: int) -> int | None:
    """Return the sequence number of a StreamDatum's first event; None unless each frame has one event."""
    numbers = as_range(stream_datum.get("seq_nums"))
    return None if not numbers or len(numbers) != count else numbers.start


def names_events(stream_datum: Document) -> bool:
    """Return whether a StreamDatum has sequence numbers, valid or not; Bluesky puts 0 to 0 where it has none yet."""
    given = stream_datum.get("seq_nums")
    numbers = as_range(given)
    return given is not None and (numbers is None or numbers.stop > 0)


def _with_result(method: Callable[[Any], Any], convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def converted(self: Any) -> Any:
        return convert(method(self))

    converted.__doc__ = method.__doc__
    return converted


def _as_data_source(source: Document) -> DataSource[Any]:
    """Return a data source of `Consolidator.data_source` in Tiled's data class."""
    family = StructureFamily(source["structure_family"])
    structure: Any = source["structure"]
    if family == StructureFamily.array:
        structure = ArrayStructure.from_json(structure)
    elif family == StructureFamily.bytes:
        structure = BytesStructure()
    return DataSource(
        structure_family=family,
        structure=structure,
        mimetype=source["mimetype"],
        parameters=source["parameters"],
        properties=source["properties"],
        assets=[Asset(**asset) for asset in source["assets"]],
        management=Management(source["management"]),
    )


def plain_data_source(source: Any) -> dict[str, Any]:
    """Return a data source of Tiled's data class, or a mapping like it, in JSON types and without numbers of Tiled."""
    plain = _as_json(source)
    fields = ("structure_family", "structure", "mimetype", "parameters", "properties", "assets", "management")
    # Tiled numbers data sources and assets itself.
    assets = [{name: value for name, value in asset.items() if name != "id"} for asset in plain.get("assets") or ()]
    return {**{name: plain.get(name) or {} for name in fields}, "assets": assets}


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return _as_json(value.value)
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return json_value(value)


def json_value(value: Any) -> Any:
    """Convert a parameter to JSON types."""
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, numpy.ndarray | numpy.generic):
        return value.tolist()
    return [json_value(item) for item in value] if isinstance(value, list | tuple) else value
