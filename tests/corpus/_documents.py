"""Documents written by hand, for what no RunEngine of today emits any more."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ._entry import Documents

BEGIN = 1_700_000_000.0
STEP = 0.25


def new_uid() -> str:
    """As RunEngine makes them."""
    return str(uuid.uuid4())


def key(dtype: str = "number", shape: Sequence[int | None] | None = (), **more: Any) -> dict[str, Any]:
    """A data key."""
    return {"source": "SIM", "dtype": dtype, "shape": shape if shape is None else list(shape), **more}


def external(shape: Sequence[int | None], dtype_numpy: str | None = "<u2", **more: Any) -> dict[str, Any]:
    """A data key whose data is in files."""
    typed = {} if dtype_numpy is None else {"dtype_numpy": dtype_numpy}
    return {"source": "SIM", "dtype": "array", "shape": list(shape), "external": "FILESTORE:", **typed, **more}


class RunDocuments:
    """The documents of one run, collected one by one; the clock goes on a quarter of a second with each."""

    def __init__(self, **start: Any) -> None:
        self.documents: Documents = []
        self.uid = new_uid()
        self._now = BEGIN
        self._streams: dict[str, str] = {}
        self.add("start", {"uid": self.uid, "time": self.tick(), "scan_id": 1, **start})

    def tick(self) -> float:
        """The time, which is later with each call."""
        self._now += STEP
        return self._now

    def add(self, name: str, document: Mapping[str, Any]) -> None:
        """Add any document."""
        self.documents.append((name, dict(document)))

    def descriptor(self, data_keys: Mapping[str, Any], name: str = "primary", **more: Any) -> str:
        """Declare a stream, or declare it anew; returns the descriptor's uid."""
        uid = new_uid()
        standard = {"configuration": {}, "hints": {}, "object_keys": {"device": list(data_keys)}}
        common = {"uid": uid, "run_start": self.uid, "time": self.tick(), "name": name, "data_keys": dict(data_keys)}
        self.add("descriptor", {**standard, **common, **more})
        self._streams[uid] = name
        return uid

    def make_event(self, descriptor: str, seq_num: int, data: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """An event document, not added."""
        now = self.tick()
        common = {"uid": new_uid(), "descriptor": descriptor, "seq_num": seq_num, "time": now}
        return {**common, "data": dict(data), "timestamps": dict.fromkeys(data, now - 0.1), "filled": {}, **more}

    def event(self, descriptor: str, seq_num: int, data: Mapping[str, Any], **more: Any) -> None:
        """Add an event."""
        self.add("event", self.make_event(descriptor, seq_num, data, **more))

    def events(self, descriptor: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add events numbered from 1."""
        for seq_num, row in enumerate(rows, 1):
            self.event(descriptor, seq_num, row)

    def resource(self, spec: str, root: str, file: str, /, **kwargs: Any) -> str:
        """Add a resource; returns its uid."""
        uid = new_uid()
        where = {"root": root, "resource_path": file, "path_semantics": "posix"}
        self.add("resource", {"uid": uid, "run_start": self.uid, "spec": spec, **where, "resource_kwargs": kwargs})
        return uid

    def datum(self, resource: str, number: int, **kwargs: Any) -> str:
        """Add a datum; returns its id."""
        datum_id = f"{resource}/{number}"
        self.add("datum", {"datum_id": datum_id, "resource": resource, "datum_kwargs": kwargs})
        return datum_id

    def stream_resource(self, data_key: str, mimetype: str, uri: str, **parameters: Any) -> str:
        """Add a stream resource; returns its uid."""
        uid = new_uid()
        where = {"data_key": data_key, "mimetype": mimetype, "uri": uri, "parameters": parameters}
        self.add("stream_resource", {"uid": uid, "run_start": self.uid, **where})
        return uid

    def stream_datum(self, resource: str, descriptor: str, start: int, stop: int) -> None:
        """Add a stream datum."""
        ids = {"uid": f"{resource}/{start}", "stream_resource": resource, "descriptor": descriptor}
        indices, seq_nums = {"start": start, "stop": stop}, {"start": start + 1, "stop": stop + 1}
        self.add("stream_datum", {**ids, "indices": indices, "seq_nums": seq_nums})

    def stop(self, **more: Any) -> Documents:
        """End the run; returns all documents."""
        counts: dict[str, int] = {}
        for name, document in self.documents:
            if name == "event":
                stream = self._streams[document["descriptor"]]
                counts[stream] = counts.get(stream, 0) + 1
        common = {"uid": new_uid(), "run_start": self.uid, "time": self.tick(), "exit_status": "success"}
        self.add("stop", {**common, "num_events": counts, **more})
        return self.documents
