"""Routing of documents to runs, in the acquisition process, which sees all documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from .._errors import RoutingError
from ._codec import Encoder
from ._recent_assets import Asset, RecentAssets

_EVENTS: Final = frozenset({"event", "event_page", "bulk_events"})
_DATUMS: Final = frozenset({"datum", "datum_page", "bulk_datum"})
_ASSETS: Final = _DATUMS | {"resource", "stream_resource"}
_REFERRING: Final = _EVENTS | _DATUMS | {"stream_datum"}


Delivery: TypeAlias = tuple[str, str, bytes]
"""A document to be appended to a run: the run's uid, the document's name and its encoded body."""


class RunRouting:
    """Assignment of documents to open runs, by the uids that the documents refer to.

    Usually a document belongs to one run. A resource that names no run, as in old documents, or a run that is not open,
    belongs to every open run. So does a datum whose resource no open run has.

    If a document refers to a resource or datum that only another run has received, that asset is delivered first: for
    example the resource of a detector that was staged in an earlier run, or a datum of a concurrent run.

    Parameters
    ----------
    recent
        Recent resources and datums, to be shared between runs; a new collection by default.
    """

    def __init__(self, recent: RecentAssets | None = None) -> None:
        self._recent = RecentAssets() if recent is None else recent
        # By uid of a descriptor or resource: the runs that have it, each with the number of assets seen before the run
        # received it. Entries are deleted with their run.
        self._owners: dict[str, dict[str, int]] = {}
        self._references: dict[str, list[str]] = {}
        self._lent: dict[str, set[str]] = {}
        self._last_name = ""
        self._last_uid: str | None = None

    @property
    def open_runs(self) -> list[str]:
        """Uids of runs with a start document but no stop document yet."""
        return list(self._references)

    def route(self, name: str, document: Mapping[str, Any]) -> list[str]:
        """Return the uids of the runs that `document` belongs to.

        Raises
        ------
        RoutingError
            The document refers to an unknown uid, lacks a required field, or is repeated.
        """
        try:
            self._refuse_repetition(name, document)
            return self._route_document(name, document)
        except (KeyError, TypeError, AttributeError) as error:
            raise RoutingError(name, f"its field {error} is missing or invalid") from error

    def deliver(self, name: str, document: Mapping[str, Any], body: bytes) -> list[Delivery]:
        """Return the deliveries for a new document, in order: assets that its runs lack, then the document itself.

        Parameters
        ----------
        name, document
            The document.
        body
            The encoded document.

        Raises
        ------
        RoutingError
            As for `route`.
        """
        runs = self.route(name, document)
        deliveries = [(run_uid, name, body) for run_uid in runs]
        if name in _EVENTS and not self._recent.datums:
            return deliveries
        owed: list[Delivery] = []
        try:
            if name in _REFERRING:
                owed += [delivery for run_uid in runs for delivery in self._missing_assets(run_uid, name, document)]
            if name in _ASSETS:
                self._remember_asset(name, document, body, runs)
        except (KeyError, TypeError, AttributeError):
            # A field is missing, which the worker reports when it writes the document.
            pass
        return owed + deliveries

    def forget(self, run_uid: str) -> None:
        """Close a run, and forget its references."""
        self._lent.pop(run_uid, None)
        for reference in self._references.pop(run_uid, ()):
            owners = self._owners[reference]
            del owners[run_uid]
            if not owners:
                del self._owners[reference]

    def _refuse_repetition(self, name: str, document: Mapping[str, Any]) -> None:
        # A publisher that is subscribed twice receives each document twice in a row.
        uid = document.get("uid")
        if uid is None:
            uid = document.get("datum_id")
        if isinstance(uid, str) and uid == self._last_uid and name == self._last_name:
            raise RoutingError(name, f"{uid} was received twice in a row; is the publisher subscribed twice?")
        self._last_name = name
        self._last_uid = uid if isinstance(uid, str) else None

    def _route_document(self, name: str, document: Mapping[str, Any]) -> list[str]:
        if name == "event" or name == "event_page" or name == "stream_datum":
            return self._owners_of(name, document["descriptor"])
        if name == "datum" or name == "datum_page" or name == "bulk_datum":
            return self._route_datum(name, document["resource"])
        if name == "start":
            return [self._register_run(document)]
        if name == "stop":
            runs = [self._require_open_run(name, document["run_start"])]
            self.forget(runs[0])
            return runs
        if name == "descriptor":
            return self._add_owners(document["uid"], [self._require_open_run(name, document["run_start"])])
        if name == "resource" or name == "stream_resource":
            return self._route_resource(name, document)
        if name == "bulk_events":
            events = [event for page in document.values() for event in page]
            return self._combined_owners(name, {event["descriptor"] for event in events})
        raise RoutingError(name, "documents of this kind are unknown")

    def _register_run(self, document: Mapping[str, Any]) -> str:
        uid = document["uid"]
        if not isinstance(uid, str):
            raise RoutingError("start", f"its uid is a {type(uid).__name__}, not a string")
        if not uid:
            raise RoutingError("start", "its uid is empty")
        try:
            uid.encode()
        except UnicodeEncodeError as error:
            raise RoutingError("start", "its uid is not valid Unicode text") from error
        # The uid may be a subclass of str, such as `numpy.str_`, which msgspec does not encode in messages.
        uid = str.__str__(uid)
        if uid in self._references:
            raise RoutingError("start", f"run {uid} is already open; is the publisher subscribed twice?")
        self._references[uid] = []
        return uid

    def _route_resource(self, name: str, document: Mapping[str, Any]) -> list[str]:
        run_uid = document.get("run_start")
        runs = [run_uid] if run_uid in self._references else self.open_runs
        if not runs:
            raise RoutingError(name, f"it names {'no run' if run_uid is None else run_uid}, but no run is open")
        return self._add_owners(document["uid"], runs)

    def _route_datum(self, name: str, resource: str) -> list[str]:
        runs = list(self._owners.get(resource, ())) or self.open_runs
        if not runs:
            raise RoutingError(name, f"it refers to {resource}, but no run is open")
        return runs

    def _missing_assets(self, run_uid: str, name: str, document: Mapping[str, Any]) -> Iterator[Delivery]:
        """Yield the recent assets that a document refers to and that its run has not received."""
        if name == "stream_datum":
            yield from self._resource_owed(run_uid, document["stream_resource"])
        elif name not in _EVENTS:
            yield from self._resource_owed(run_uid, document["resource"])
        elif self._recent.datums:
            for datum_id, datum in self._datums_in(name, document):
                yield from self._datum_owed(run_uid, datum_id, datum)

    def _resource_owed(self, run_uid: str, uid: str) -> Iterator[Delivery]:
        resource = self._recent.resources.get(uid)
        if resource is not None and run_uid not in self._owners.get(uid, ()):
            self._add_owners(uid, [run_uid])
            yield run_uid, resource.name, resource.body

    def _datum_owed(self, run_uid: str, datum_id: str, datum: Asset) -> Iterator[Delivery]:
        lent = self._lent.setdefault(run_uid, set())
        since = self._owners.get(datum.resource, {}).get(run_uid)
        if datum_id not in lent and (since is None or datum.number <= since):
            lent.add(datum_id)
            yield from self._resource_owed(run_uid, datum.resource)
            yield run_uid, datum.name, datum.body

    def _datums_in(self, name: str, document: Mapping[str, Any]) -> Iterator[tuple[str, Asset]]:
        """Yield the recent datums that events refer to, with their datum ids."""
        if name == "bulk_events":
            values = [value for events in document.values() for event in events for value in event["data"].values()]
        elif name == "event_page":
            columns = [column for column in document["data"].values() if _may_have_text(column)]
            values = [value for column in columns for value in column]
        else:
            values = document["data"].values()
        for value in values:
            if isinstance(value, str) and (datum := self._recent.datums.get(value)) is not None:
                yield value, datum

    def _remember_asset(self, name: str, document: Mapping[str, Any], body: bytes, runs: list[str]) -> None:
        if name == "resource" or name == "stream_resource":
            # Name the resource's run, so that the worker of another run recognizes the resource as foreign.
            if document.get("run_start") is None:
                body = Encoder().encode({**document, "run_start": runs[0]})
            self._recent.add_resource(document["uid"], name, body)
            return
        ids = document["datum_id"] if name != "bulk_datum" else document["datum_ids"]
        self._recent.add_datums([ids] if isinstance(ids, str) else list(ids), name, body, document["resource"])

    def _require_open_run(self, name: str, run_uid: str) -> str:
        if run_uid not in self._references:
            raise RoutingError(name, f"run {run_uid} was not started here or has stopped")
        return run_uid

    def _add_owners(self, reference: str, runs: list[str]) -> list[str]:
        owners = self._owners.setdefault(reference, {})
        for run_uid in runs:
            if run_uid not in owners:
                owners[run_uid] = self._recent.count
                self._references[run_uid].append(reference)
        return runs

    def _owners_of(self, name: str, reference: str) -> list[str]:
        owners = self._owners.get(reference)
        if owners is None:
            raise RoutingError(name, f"it refers to {reference}, which no open run has")
        return list(owners)

    def _combined_owners(self, name: str, references: Iterable[str]) -> list[str]:
        runs = [run_uid for reference in references for run_uid in self._owners_of(name, reference)]
        if not runs:
            raise RoutingError(name, "it is empty")
        return list(dict.fromkeys(runs))


def _may_have_text(column: Any) -> bool:
    return getattr(getattr(column, "dtype", None), "kind", "O") in "OU"
