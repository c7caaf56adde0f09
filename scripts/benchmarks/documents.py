"""Documents that are measured with."""

from __future__ import annotations

from typing import Any

from event_model import compose_run

Emitted = list[tuple[str, dict[str, Any]]]


def run_of(events: int, keys: int = 5) -> Emitted:
    """A run with one stream of so many events, each with so many numbers."""
    names = [f"key_{number}" for number in range(keys)]
    data_keys = {name: {"source": "bench", "dtype": "number", "shape": []} for name in names}
    run = compose_run(validate=False)
    stream = run.compose_descriptor(name="primary", data_keys=data_keys, validate=False)
    timestamps = dict.fromkeys(names, 1.7e9)
    emitted: Emitted = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for number in range(events):
        data = dict.fromkeys(names, number + 0.5)
        event = stream.compose_event(data=data, timestamps=dict(timestamps), validate=False)
        emitted.append(("event", event))
    return [*emitted, ("stop", run.compose_stop(validate=False))]
