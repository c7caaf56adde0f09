"""Writes runs to Tiled from the acquisition process, for sites without an ingest host."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Final

from tiledbroker import Encoder
from tiledbroker._rate_limited_log import RateLimitedLog
from tiledbroker.log import RECENT_ASSETS, RunRouting

from ..catalog import check_version
from ..mapping import MAX_ARRAY_SIZE, DocumentPatch, RunNormalizer, installed_consolidators, load_consolidators
from ._backup import Backup, DictionaryBackup, JSONLinesBackup
from ._callback_run import CallbackRun, RunOptions

log = logging.getLogger(__name__)

BATCH_SIZE: Final = 10_000
DEFAULT_PATIENCE_SECONDS: Final = 45.0

_ASSETS: Final = frozenset({"resource", "datum", "datum_page"})


class TiledWriter:
    """A RunEngine callback that writes runs to Tiled while they are measured: `RE.subscribe(TiledWriter(client))`.

    The RunEngine waits for Tiled in every call that sends something. If it must not wait, subscribe a
    `tiledbroker.ZMQPublisher` instead and run the supervisor.

    If writing a run fails (its document cannot be interpreted, the server refuses something, or does not answer for
    `patience` seconds), Tiled gets nothing more of that run, in particular no stop document, so that an incomplete run
    cannot pass for a complete one. With a backup, the whole run goes there, the error is logged, and the RunEngine
    continues. Without a backup, or if the backup fails, the error is raised once, and the run's further documents are
    ignored. Other runs are not affected.

    Parameters
    ----------
    client
        The container to write into, as `tiled.client` returns it.
    normalizer
        A class that translates old documents into modern ones. For each run it is called with `patches` and
        `spec_to_mimetype`. It may be `RunNormalizer`, a subclass, or a class that emits documents to the function given
        to its `subscribe`. None or False if the documents are modern already.
    patches, spec_to_mimetype
        See `RunNormalizer`.
    backup_directory
        Directory for failed runs: one file of JSON lines each, named by the first part of the run's uid.
    backup_dictionary
        Mapping for failed runs: a list of documents each, under the first part of the run's uid.
    batch_size
        Number of events of a stream, and of frames of a data key, sent together; 1 sends each at once. The rest is sent
        at the stop.
    max_array_size
        Arrays in events with up to this many numbers become list columns if the server's tables support these; a
        negative number means all arrays.
    validate
        Deprecated. Have the reading client validate each run after it is written; an error counts as a failure.
    ignore_errors
        Patterns of validation errors to ignore.
    patience
        Seconds for which a request is retried.
    audit
        Whether each run is compared with what was sent before it gets its stop document. Otherwise only a run is
        compared for which a request had to be repeated, or which was in Tiled before.

    Attributes
    ----------
    client
        The container, as a client that knows the data sources of its nodes.
    patches, spec_to_mimetype, backup_directory, backup_dictionary, ignore_errors
        The arguments. A change applies to the runs that start after it.

    Raises
    ------
    TiledTooOld
        The server does not support what this class writes.
    ValueError
        `validate` is set, but the client cannot validate runs.
    """

    def __init__(
        self,
        client: Any,
        *,
        normalizer: Callable[..., Any] | None = RunNormalizer,
        patches: Mapping[str, DocumentPatch] | None = None,
        spec_to_mimetype: Mapping[str, str] | None = None,
        backup_directory: str | Path | None = None,
        backup_dictionary: MutableMapping[str, Any] | None = None,
        batch_size: int = BATCH_SIZE,
        max_array_size: int = MAX_ARRAY_SIZE,
        validate: bool | None = None,
        ignore_errors: Sequence[str] | None = None,
        patience: float = DEFAULT_PATIENCE_SECONDS,
        audit: bool = False,
    ) -> None:
        if client is not None:
            check_version(client)
            client = client.include_data_sources()
        if validate:
            _check_validation(client)
        if backup_directory:
            Path(backup_directory).mkdir(parents=True, exist_ok=True)
        self.client = client
        self.patches = patches or {}
        self.spec_to_mimetype = spec_to_mimetype or {}
        self.backup_directory = backup_directory
        self.backup_dictionary = backup_dictionary
        self.ignore_errors = ignore_errors or []
        self._normalizer = normalizer
        self._consolidators = load_consolidators(installed_consolidators({}))
        self._batch_size = batch_size
        self._max_array_size = max_array_size
        self._validate = bool(validate)
        self._patience = patience
        self._audit = audit
        self._encoder = Encoder()
        self._routing = RunRouting(RECENT_ASSETS)
        self._runs: dict[str, CallbackRun] = {}
        self._limited_log = RateLimitedLog(log)

    @classmethod
    def from_uri(cls, uri: str, **options: Any) -> TiledWriter:
        """Write into the container at `uri`. Options of other names go to `tiled.client.from_uri`."""
        from tiled.client import from_uri

        own = cls._own_options(options)
        return cls(from_uri(uri, **options), **own)

    @classmethod
    def from_profile(cls, profile: str, **options: Any) -> TiledWriter:
        """Write into a profile's container. Options of other names go to `tiled.client.from_profile`."""
        from tiled.client import from_profile

        own = cls._own_options(options)
        return cls(from_profile(profile, **options), **own)

    @classmethod
    def _own_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Remove the constructor's options from `options` and return them."""
        names = [name for name, kind in signature(cls).parameters.items() if kind.kind is Parameter.KEYWORD_ONLY]
        return {name: options.pop(name) for name in names if name in options}

    def __call__(self, name: str, doc: Mapping[str, Any]) -> None:
        """Process a document, which is neither changed nor kept.

        The stop document of a run whose start did not come is ignored, and so is an asset that names no run, if no run
        is open: a callback may be subscribed in the middle of a run.

        Raises
        ------
        tiledbroker.RoutingError
            The document belongs to no run that is open here.
        Exception
            Its run failed and has no backup.
        """
        if self._concerns_others(name, doc):
            log.info("A %s document is ignored, because it belongs to no run that has started here.", name)
            return
        body = self._encoder.encode(doc)
        deliveries = self._routing.deliver(name, doc, body)
        for kind in self._encoder.take_replaced():
            self._limited_log.log(logging.WARNING, kind, "A %s in a %s document is replaced by its repr.", kind, name)
        errors = [error for delivery in deliveries if (error := self._pass_on(*delivery)) is not None]
        if errors:
            raise errors[0]

    def _concerns_others(self, name: str, doc: Mapping[str, Any]) -> bool:
        if name == "stop":
            return doc.get("run_start") not in self._runs
        return name in _ASSETS and "run_start" not in doc and not self._runs

    def _pass_on(self, run_uid: str, name: str, body: bytes) -> BaseException | None:
        """Pass a document to its run; return the error, if any, since other runs may need the document, too."""
        if name == "start":
            self._runs[run_uid] = CallbackRun(run_uid, self._run_options(), self._make_backups(run_uid))
        try:
            self._runs[run_uid](name, body)
        except BaseException as error:
            return error
        finally:
            if name == "stop":
                del self._runs[run_uid]
        return None

    def _run_options(self) -> RunOptions:
        return RunOptions(
            client=self.client,
            normalizer=self._normalizer,
            patches=dict(self.patches),
            spec_to_mimetype=dict(self.spec_to_mimetype),
            consolidators=self._consolidators,
            batch_size=self._batch_size,
            max_array_size=self._max_array_size,
            validate=self._validate,
            ignore_errors=list(self.ignore_errors),
            patience=self._patience,
            audit=self._audit,
        )

    def _make_backups(self, run_uid: str) -> list[Backup]:
        backups: list[Backup] = []
        if self.backup_directory:
            backups.append(JSONLinesBackup(Path(self.backup_directory), run_uid))
        if self.backup_dictionary is not None:
            backups.append(DictionaryBackup(self.backup_dictionary, run_uid))
        return backups


def _check_validation(client: Any) -> None:
    warnings.warn(
        "The `validate` argument of TiledWriter is deprecated; call `validate` on the run read from Tiled instead.",
        DeprecationWarning,
        stacklevel=3,
    )
    run_class = client.structure_clients.get("BlueskyRun")
    if run_class is None or not any(hasattr(kind, "validate") for kind in (run_class, *_all_subclasses(run_class))):
        raise ValueError("validate=True needs a client whose runs can validate: install bluesky-tiled-plugins.")


def _all_subclasses(kind: type) -> list[type]:
    found: list[type] = []
    below: type
    for below in type.__subclasses__(kind):
        found += [below, *_all_subclasses(below)]
    return found
