"""Run a facility's own normalizer once for each document, and take what it made from the journal ever after.

Such a normalizer may draw uids, read the clock or look at files, so it would make something else each time that a run
is folded: after a crash, for an audit, or with other column types. What it has made is therefore recorded before it is
written to Tiled. A fold of recorded documents does not even need the normalizer. Only when documents follow that are
not recorded, the normalizer is given the earlier ones again, so that it is in the state in which it would be. What it
makes of these is compared with the record: where it has drawn a uid, the recorded one takes the place of the new one in
everything that follows.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from .._errors import PluginError
from ._guest_normalizer import Documents, GuestNormalizer
from ._normalizer import Check, RunNormalizer

if TYPE_CHECKING:
    from tiledbroker import Record

# Results to read from the journal at once.
_READ_RESULTS: Final = 1_000
# The fields of modern documents that have an id or refer to one, but for the run's, which is not drawn.
_IDS: Final = ("uid", "descriptor", "stream_resource")
_UID: Final = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")


class NormalizedLog(Protocol):
    """The part of `tiledbroker.Journal` that is needed here."""

    @property
    def revise_below(self) -> int: ...
    def read(self, start: int, limit: int = ..., max_bytes: int = ...) -> list[Record]: ...
    def read_normalized(self, start: int, limit: int) -> dict[int, bytes]: ...
    def encode_result(self, result: Mapping[str, Any]) -> bytes: ...
    def decode_result(self, body: bytes) -> dict[str, Any]: ...


class RecordedNormalizer:
    """The normalizer of one run, with a record of what it has made of each document.

    Parameters
    ----------
    make
        Makes the normalizer of the run.
    log
        The run's journal, with the record so far; None if nothing is recorded.

    Attributes
    ----------
    check : function, optional
        Called with each document that the normalizer has made; raises if the document is invalid.
    notes, guessed_types
        See `RunNormalizer`.
    """

    def __init__(self, make: Callable[[], RunNormalizer | GuestNormalizer], log: NormalizedLog | None) -> None:
        self.check: Check | None = None
        self.notes: list[str] = []
        self.guessed_types: set[tuple[str, str]] = set()
        self._make = make
        self._log = log
        self._revise_below = 0 if log is None else log.revise_below
        self._normalizer: RunNormalizer | GuestNormalizer | None = None
        # Index of the next document that the normalizer has to be given.
        self._position = 0
        self._uids = _ReplacedUids()
        self._fresh: list[tuple[int, bytes]] = []
        # Results read from the journal, which are all that it has between these indexes.
        self._recorded: dict[int, bytes] = {}
        self._recorded_range = range(0)

    def normalize(self, idx: int, name: str, doc: dict[str, Any]) -> Documents:
        """Return the modern documents for the document with index `idx`.

        Raises
        ------
        DocumentInvalid
            A modern document does not follow its schema.
        PluginError
            The normalizer cannot be made.
        Exception
            Whatever the normalizer raises.
        """
        result = self._recall(idx) if idx >= self._revise_below else None
        if result is None:
            result = self._make_result(idx, name, doc)
        self.notes += [note for note in result["notes"] if note not in self.notes]
        self.guessed_types |= {(stream, key) for stream, key in result["guessed"]}
        documents: Documents = [(modern_name, modern) for modern_name, modern in result["documents"]]
        if self.check is not None:
            for modern_name, modern in documents:
                self.check(modern_name, modern)
        return documents

    def abandon(self, length: int) -> Documents:
        """Return the documents held back, for a run of `length` documents that ends without a stop document."""
        normalizer = self._catch_up(length)
        documents = normalizer.abandon()
        self.notes += [note for note in normalizer.notes if note not in self.notes]
        return [(name, self._uids.replace_in(doc)) for name, doc in documents]

    def take_fresh(self) -> list[tuple[int, bytes]]:
        """Return the results since the last call that the journal has to record, by index."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _recall(self, idx: int) -> dict[str, Any] | None:
        """Return the recorded result for a document; None if there is none."""
        if self._log is None:
            return None
        if idx not in self._recorded_range:
            self._recorded = self._log.read_normalized(idx, _READ_RESULTS)
            is_rest = len(self._recorded) < _READ_RESULTS
            self._recorded_range = range(idx, sys.maxsize if is_rest else max(self._recorded) + 1)
        body = self._recorded.get(idx)
        return None if body is None else self._log.decode_result(body)

    def _make_result(self, idx: int, name: str, doc: dict[str, Any]) -> dict[str, Any]:
        self._catch_up(idx)
        result = self._run_normalizer(idx, name, doc)
        if self._log is None:
            return result
        body = self._log.encode_result(result)
        self._fresh.append((idx, body))
        # As it will be read: what is not encoded as it is must not make a difference between now and then.
        return self._log.decode_result(body)

    def _catch_up(self, idx: int) -> RunNormalizer | GuestNormalizer:
        """Give the normalizer the documents before `idx`, and return it."""
        if self._normalizer is None:
            self._normalizer = self._make()
        while self._position < idx:
            records = [] if self._log is None else self._log.read(self._position)
            if not records:
                raise PluginError(f"the normalizer cannot be given document {self._position} again: it is not there")
            for record in records:
                if record.idx < idx:
                    self._run_normalizer(record.idx, record.name, record.document())
        return self._normalizer

    def _run_normalizer(self, idx: int, name: str, doc: dict[str, Any]) -> dict[str, Any]:
        """Return the result for the next document of the normalizer."""
        assert self._normalizer is not None
        self._position = idx + 1
        notes, guessed = len(self._normalizer.notes), set(self._normalizer.guessed_types)
        documents = self._normalizer(name, doc)
        result = {
            "notes": self._normalizer.notes[notes:],
            "guessed": sorted([stream, key] for stream, key in self._normalizer.guessed_types - guessed),
        }
        if (recorded := self._recall(idx)) is not None:
            self._uids.learn(documents, recorded["documents"])
        if self._uids:
            result = self._uids.replace(result)
            documents = [(modern_name, self._uids.replace_in(modern)) for modern_name, modern in documents]
        return {**result, "documents": [[modern_name, modern] for modern_name, modern in documents]}


class _ReplacedUids:
    """The uids that a normalizer has drawn anew, with the recorded ones that they stand for.

    They are replaced wherever they stand in a text. Documents may also have ids of another form; these are replaced
    where a document has or names an id, as the same text may mean something else in other places.
    """

    def __init__(self) -> None:
        self._recorded: dict[str, str] = {}
        self._recorded_ids: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._recorded or self._recorded_ids)

    def learn(self, made: Sequence[Any], recorded: Sequence[Any]) -> None:
        """Learn from the documents made now, and those made of the same document before."""
        for text, old in _text_pairs(made, recorded):
            if text != old:
                uids, old_uids = _UID.findall(text), _UID.findall(old)
                if len(uids) == len(old_uids) and _UID.sub("", text) == _UID.sub("", old):
                    self._recorded.update(pair for pair in zip(uids, old_uids, strict=True) if pair[0] != pair[1])
        if [name for name, _ in made] != [name for name, _ in recorded]:
            # A mended normalizer may make further documents, or fewer.
            return
        for (_, doc), (_, old_doc) in zip(made, recorded, strict=True):
            uid, old_uid = doc.get("uid"), old_doc.get("uid")
            if isinstance(uid, str) and isinstance(old_uid, str) and self.replace(uid) != old_uid:
                self._recorded_ids[uid] = old_uid

    def replace_in(self, doc: Mapping[str, Any]) -> dict[str, Any]:
        """Return a document with the recorded uids and ids."""
        ids = {field: self._recorded_ids.get(str(doc.get(field))) for field in _IDS}
        return {**self.replace(doc), **{field: uid for field, uid in ids.items() if uid is not None}}

    def replace(self, value: Any) -> Any:
        """Return a value with the recorded uids."""
        if isinstance(value, str):
            return _UID.sub(lambda found: self._recorded.get(found[0], found[0]), value)
        if isinstance(value, dict):
            return {self.replace(key): self.replace(item) for key, item in value.items()}
        return [self.replace(item) for item in value] if isinstance(value, list | tuple) else value


def _text_pairs(made: Any, recorded: Any) -> Iterator[tuple[str, str]]:
    """Yield the texts at the same places of two values, as far as the values have the same form."""
    if isinstance(made, str) and isinstance(recorded, str):
        yield made, recorded
    elif isinstance(made, dict) and isinstance(recorded, dict) and len(made) == len(recorded):
        for (key, item), (old_key, old_item) in zip(made.items(), recorded.items(), strict=True):
            if isinstance(key, str) and isinstance(old_key, str):
                yield key, old_key
            yield from _text_pairs(item, old_item)
    elif _is_sequence(made) and _is_sequence(recorded) and len(made) == len(recorded):
        for item, old_item in zip(made, recorded, strict=True):
            yield from _text_pairs(item, old_item)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
