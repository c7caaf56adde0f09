"""Which run a document belongs to, settled where the documents are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ._errors import RoutingError


class RunRouting:
    """Assigns each document to the runs it belongs to, by the uids that documents refer to.

    Usually that is one run. A resource without `run_start` (as old documents have it), and its datums, belong to
    every run that was open when it came.
    """

    def __init__(self) -> None:
        # What each run's documents may refer to; an inner dict goes away with its run.
        self._owners: dict[str, list[str]] = {}
        self._references: dict[str, list[str]] = {}
        self._last_name = ""
        self._last_uid: str | None = None

    @property
    def open_runs(self) -> list[str]:
        """Runs whose start was seen and whose stop was not."""
        return list(self._references)

    def route(self, name: str, document: Mapping[str, Any]) -> list[str]:
        """Uids of the runs that `document` belongs to.

        Raises
        ------
        RoutingError
            The document refers to nothing that was seen, or comes a second time.
        """
        try:
            self._refuse_repetition(name, document)
            return self._route(name, document)
        except (KeyError, TypeError, AttributeError) as error:
            raise RoutingError(name, f"it has no usable {error}") from error

    def forget(self, run_uid: str) -> None:
        """Treat a run as closed."""
        for reference in self._references.pop(run_uid, ()):
            owners = self._owners[reference]
            owners.remove(run_uid)
            if not owners:
                del self._owners[reference]

    def _refuse_repetition(self, name: str, document: Mapping[str, Any]) -> None:
        # A publisher that is subscribed twice gets each document twice in a row.
        uid = document.get("uid")
        if uid is None:
            uid = document.get("datum_id")
        if isinstance(uid, str) and uid == self._last_uid and name == self._last_name:
            raise RoutingError(name, f"{uid} came twice in a row; is the publisher subscribed twice?")
        self._last_name = name
        self._last_uid = uid if isinstance(uid, str) else None

    def _route(self, name: str, document: Mapping[str, Any]) -> list[str]:
        if name == "event" or name == "event_page" or name == "stream_datum":
            return self._owners_of(name, document["descriptor"])
        if name == "datum" or name == "datum_page":
            return self._owners_of(name, document["resource"])
        if name == "start":
            return [self._start(document)]
        if name == "stop":
            runs = [self._open(name, document["run_start"])]
            self.forget(runs[0])
            return runs
        if name == "descriptor":
            return self._refer(document["uid"], [self._open(name, document["run_start"])])
        if name == "resource" or name == "stream_resource":
            return self._resource(name, document)
        if name == "bulk_events":
            events = [event for page in document.values() for event in page]
            return self._union(name, {event["descriptor"] for event in events})
        if name == "bulk_datum":
            return self._owners_of(name, document["resource"])
        raise RoutingError(name, "there is no such kind of document")

    def _start(self, document: Mapping[str, Any]) -> str:
        uid = document["uid"]
        if not isinstance(uid, str):
            raise RoutingError("start", f"its uid is a {type(uid).__name__}, not a string")
        if not uid:
            raise RoutingError("start", "its uid is empty, as that of another run may be")
        try:
            uid.encode()
        except UnicodeEncodeError as error:
            raise RoutingError("start", "its uid is no Unicode text") from error
        uid = str.__str__(uid)  # NumPy's strings are no strings to the network
        if uid in self._references:
            raise RoutingError("start", f"run {uid} is already open; is the publisher subscribed twice?")
        self._references[uid] = []
        return uid

    def _resource(self, name: str, document: Mapping[str, Any]) -> list[str]:
        run_uid = document.get("run_start")
        runs = self.open_runs if run_uid is None else [self._open(name, run_uid)]
        if not runs:
            raise RoutingError(name, "it names no run, and no run is open")
        return self._refer(document["uid"], runs)

    def _open(self, name: str, run_uid: str) -> str:
        if run_uid not in self._references:
            raise RoutingError(name, f"run {run_uid} was not started here, or has stopped")
        return run_uid

    def _refer(self, reference: str, runs: list[str]) -> list[str]:
        owners = self._owners.setdefault(reference, [])
        for run_uid in runs:
            if run_uid not in owners:
                owners.append(run_uid)
                self._references[run_uid].append(reference)
        return runs

    def _owners_of(self, name: str, reference: str) -> list[str]:
        owners = self._owners.get(reference)
        if owners is None:
            raise RoutingError(name, f"it refers to {reference}, which was not seen here")
        return owners.copy()

    def _union(self, name: str, references: Iterable[str]) -> list[str]:
        runs = [run_uid for reference in references for run_uid in self._owners_of(name, reference)]
        if not runs:
            raise RoutingError(name, "it is empty")
        return list(dict.fromkeys(runs))
