"""Every document finds its run, by what it refers to."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledbroker import Encoder, RoutingError, decode
from tiledbroker.log._recent_assets import MAX_DATUMS, MAX_RESOURCES, RecentAssets
from tiledbroker.log._routing import RunRouting


@pytest.fixture
def routing() -> RunRouting:
    return RunRouting()


def open_run(routing: RunRouting, run: str, descriptor: str | None = None) -> None:
    routing.route("start", {"uid": run})
    if descriptor is not None:
        routing.route("descriptor", {"uid": descriptor, "run_start": run})


def remembers_nothing(routing: RunRouting) -> bool:
    return not routing._owners and not routing._references and not routing.open_runs


def test_all_documents_of_one_run(routing: RunRouting) -> None:
    documents: list[tuple[str, dict[str, Any]]] = [
        ("start", {"uid": "run"}),
        ("descriptor", {"uid": "d", "run_start": "run"}),
        ("resource", {"uid": "r", "run_start": "run"}),
        ("datum", {"datum_id": "r/0", "resource": "r"}),
        ("datum_page", {"datum_id": ["r/1"], "resource": "r"}),
        ("bulk_datum", {"datum_ids": ["r/2"], "resource": "r", "datum_kwarg_list": [{}]}),
        ("stream_resource", {"uid": "sr", "run_start": "run"}),
        ("stream_datum", {"uid": "sr/0", "stream_resource": "sr", "descriptor": "d"}),
        ("event", {"uid": "e", "descriptor": "d"}),
        ("event_page", {"uid": ["e2"], "descriptor": "d"}),
        ("bulk_events", {"primary": [{"uid": "e3", "descriptor": "d"}]}),
        ("stop", {"uid": "s", "run_start": "run"}),
    ]
    for name, document in documents:
        assert routing.route(name, document) == ["run"], name
    assert remembers_nothing(routing)


def test_interleaved_runs_are_told_apart(routing: RunRouting) -> None:
    open_run(routing, "a", "da")
    open_run(routing, "b", "db")
    assert routing.open_runs == ["a", "b"]
    assert routing.route("event", {"descriptor": "db"}) == ["b"]
    assert routing.route("event", {"descriptor": "da"}) == ["a"]
    assert routing.route("stop", {"run_start": "a"}) == ["a"]
    assert routing.open_runs == ["b"]
    assert routing.route("event", {"descriptor": "db"}) == ["b"]


def test_a_resource_of_no_run_and_its_datums_belong_to_every_open_run(routing: RunRouting) -> None:
    open_run(routing, "a")
    open_run(routing, "b")
    assert routing.route("resource", {"uid": "r"}) == ["a", "b"]
    open_run(routing, "later")
    assert routing.route("datum", {"resource": "r"}) == ["a", "b"]
    routing.route("stop", {"run_start": "a"})
    assert routing.route("datum_page", {"resource": "r"}) == ["b"]
    routing.route("stop", {"run_start": "b"})
    assert routing.route("datum", {"resource": "r"}) == ["later"]
    routing.forget("later")
    with pytest.raises(RoutingError):
        routing.route("datum_page", {"resource": "r"})
    assert remembers_nothing(routing)


def test_a_resource_whose_run_is_none_is_a_resource_of_no_run(routing: RunRouting) -> None:
    open_run(routing, "a")
    assert routing.route("resource", {"uid": "r", "run_start": None}) == ["a"]


def test_a_resource_given_again_belongs_to_its_run_once(routing: RunRouting) -> None:
    open_run(routing, "a")
    routing.route("resource", {"uid": "r", "run_start": "a"})
    routing.route("datum", {"datum_id": "r/0", "resource": "r"})
    routing.route("resource", {"uid": "r", "run_start": "a"})
    assert routing.route("datum", {"resource": "r"}) == ["a"]
    routing.forget("a")
    assert remembers_nothing(routing)


def test_bulk_events_belong_to_all_runs_they_mention(routing: RunRouting) -> None:
    open_run(routing, "a", "da")
    open_run(routing, "b", "db")
    pages = {"primary": [{"descriptor": "da"}, {"descriptor": "da"}], "baseline": [{"descriptor": "db"}]}
    assert sorted(routing.route("bulk_events", pages)) == ["a", "b"]


def test_callers_cannot_change_what_is_remembered(routing: RunRouting) -> None:
    open_run(routing, "a", "d")
    for _ in range(2):
        runs = routing.route("event", {"descriptor": "d"})
        assert runs == ["a"]
        runs.clear()


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("event", {"descriptor": "unknown"}),
        ("event_page", {"descriptor": "unknown"}),
        ("stream_datum", {"descriptor": "unknown"}),
        ("datum", {"resource": "unknown"}),
        ("datum_page", {"resource": "unknown"}),
        ("bulk_datum", {"resource": "unknown"}),
        ("bulk_events", {"primary": [{"descriptor": "unknown"}]}),
        ("bulk_events", {}),
        ("descriptor", {"uid": "d", "run_start": "unknown"}),
        ("resource", {"uid": "r", "run_start": "unknown"}),
        ("stream_resource", {"uid": "r", "run_start": "unknown"}),
        ("stop", {"run_start": "unknown"}),
        ("resource", {"uid": "r"}),
        ("surprise", {"uid": "a"}),
        ("", {}),
    ],
)
def test_a_reference_to_nothing_that_was_seen_is_refused(
    routing: RunRouting, name: str, document: dict[str, Any]
) -> None:
    with pytest.raises(RoutingError, match=repr(name)) as refusal:
        routing.route(name, document)
    assert refusal.value.name == name
    assert remembers_nothing(routing)


NAMES = [
    "start",
    "descriptor",
    "event",
    "event_page",
    "bulk_events",
    "resource",
    "datum",
    "datum_page",
    "bulk_datum",
    "stream_resource",
    "stream_datum",
    "stop",
]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "resource"])
def test_a_document_without_its_fields_is_refused(routing: RunRouting, name: str) -> None:
    open_run(routing, "a", "d")
    with pytest.raises(RoutingError):
        routing.route(name, {})


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.recursive(
        st.none() | st.integers() | st.sampled_from(["a", "d", "r"]),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from(["uid", "run_start", "descriptor", "resource"]), inner)
        ),
        max_leaves=6,
    ),
)
def test_a_document_of_any_form_is_routed_or_refused(name: str, document: Any) -> None:
    routing = RunRouting()
    open_run(routing, "a", "d")
    try:
        runs = routing.route(name, document)
    except RoutingError:
        assert routing.open_runs == ["a"]
    else:
        assert all(isinstance(run, str) for run in runs)
        assert runs


def test_a_start_that_comes_twice_is_refused_and_the_run_goes_on(routing: RunRouting) -> None:
    open_run(routing, "a", "d")
    with pytest.raises(RoutingError, match="subscribed twice"):
        routing.route("start", {"uid": "a"})
    assert routing.route("event", {"descriptor": "d"}) == ["a"]


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("event", {"uid": "e", "descriptor": "d"}),
        ("datum", {"datum_id": "r/0", "resource": "r"}),
    ],
)
def test_a_document_that_comes_twice_in_a_row_is_refused(
    routing: RunRouting, name: str, document: dict[str, Any]
) -> None:
    open_run(routing, "a", "d")
    routing.route("resource", {"uid": "r", "run_start": "a"})
    assert routing.route(name, document) == ["a"]
    with pytest.raises(RoutingError, match="subscribed twice"):
        routing.route(name, document)


def test_pages_whose_uids_are_arrays_are_told_apart(routing: RunRouting) -> None:
    open_run(routing, "a", "d")
    for uids in (["e", "f"], ["g", "h"], ["g", "i"]):
        assert routing.route("event_page", {"uid": numpy.array(uids), "descriptor": "d"}) == ["a"]


def test_a_page_that_is_filled_anew_is_not_taken_for_its_predecessor(routing: RunRouting) -> None:
    open_run(routing, "a", "d")
    page: dict[str, Any] = {"uid": ["e"], "descriptor": "d"}
    assert routing.route("event_page", page) == ["a"]
    page["uid"][0] = "f"
    assert routing.route("event_page", page) == ["a"]


def test_documents_without_uids_may_follow_each_other(routing: RunRouting) -> None:
    open_run(routing, "a", "d")
    for _ in range(2):
        assert routing.route("event", {"descriptor": "d"}) == ["a"]


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("event", {"descriptor": "d"}),
        ("datum", {"resource": "r"}),
        ("descriptor", {"uid": "d2", "run_start": "a"}),
        ("resource", {"uid": "r2", "run_start": "a"}),
        ("stop", {"run_start": "a"}),
    ],
)
def test_documents_after_the_stop_are_refused(routing: RunRouting, name: str, document: dict[str, Any]) -> None:
    open_run(routing, "a", "d")
    routing.route("resource", {"uid": "r", "run_start": "a"})
    routing.route("stop", {"run_start": "a"})
    with pytest.raises(RoutingError):
        routing.route(name, document)


def test_what_a_run_refers_to_is_forgotten_with_it(routing: RunRouting) -> None:
    for number in range(100):
        run = f"run {number}"
        open_run(routing, run, f"descriptor {number}")
        for resource in range(10):
            routing.route("resource", {"uid": f"resource {number} {resource}", "run_start": run})
        routing.route("resource", {"uid": f"shared {number}"})
        routing.route("stop", {"run_start": run})
        assert remembers_nothing(routing)


def test_forgetting_what_is_not_known_is_harmless(routing: RunRouting) -> None:
    routing.forget("unknown")
    assert remembers_nothing(routing)


@pytest.mark.parametrize(("uid", "problem"), [("", "is empty"), ("run-\ud800", "is not valid Unicode text")])
def test_a_uid_that_names_no_run_or_cannot_be_sent_opens_none(routing: RunRouting, uid: str, problem: str) -> None:
    with pytest.raises(RoutingError, match=problem):
        routing.route("start", {"uid": uid})
    assert remembers_nothing(routing)


def test_a_uid_of_numpy_is_plain_text(routing: RunRouting) -> None:
    (uid,) = routing.route("start", {"uid": numpy.str_("run")})
    assert type(uid) is str
    assert routing.route("descriptor", {"uid": "d", "run_start": numpy.str_("run")}) == ["run"]


# What several runs refer to


class Runs:
    """What each run gets, by way of one routing."""

    def __init__(self, recent: RecentAssets | None = None) -> None:
        self.routing = RunRouting(recent)
        self.got: dict[str, list[str]] = {}

    def __call__(self, name: str, **document: Any) -> None:
        body = Encoder().encode(document)
        for run_uid, kind, content in self.routing.deliver(name, document, body):
            delivered = decode(content)
            self.got.setdefault(run_uid, []).append(f"{kind} {delivered.get('uid') or delivered.get('datum_id')}")

    def begin(self, run: str) -> None:
        self("start", uid=run)
        self("descriptor", uid=f"d-{run}", run_start=run)

    def end(self, run: str) -> list[str]:
        """All that the run got between its descriptor and its stop."""
        self("stop", uid=f"s-{run}", run_start=run)
        return self.got[run][2:-1]

    def event(self, run: str, uid: str, **data: Any) -> None:
        self("event", uid=uid, descriptor=f"d-{run}", data=data)


@pytest.mark.parametrize("run_start", ["a", None])
def test_a_resource_of_an_earlier_run_comes_before_its_datums(run_start: str | None) -> None:
    runs = Runs()
    runs.begin("a")
    runs("resource", uid="r", run_start=run_start)
    runs("datum", datum_id="r/0", resource="r")
    assert runs.end("a") == ["resource r", "datum r/0"]
    runs.begin("b")
    runs("datum", datum_id="r/1", resource="r")
    runs.event("b", "e", img="r/1")
    runs("datum_page", datum_id=["r/2"], resource="r")
    assert runs.end("b") == ["resource r", "datum r/1", "event e", "datum_page ['r/2']"]


def test_a_stream_resource_of_an_earlier_run_comes_before_its_stream_datums() -> None:
    runs = Runs()
    runs.begin("a")
    runs("stream_resource", uid="s", run_start="a")
    runs.end("a")
    runs.begin("b")
    for n in range(2):
        runs("stream_datum", uid=f"s/{n}", stream_resource="s", descriptor="d-b")
    assert runs.end("b") == ["stream_resource s", "stream_datum s/0", "stream_datum s/1"]


def test_a_resource_that_comes_again_with_the_uid_of_an_earlier_run_is_the_open_runs() -> None:
    runs = Runs()
    runs.begin("b")
    runs("resource", uid="r", run_start="a")
    runs("datum", datum_id="r/0", resource="r")
    assert runs.end("b") == ["resource r", "datum r/0"]


def test_datums_of_a_run_that_is_open_go_to_another_run_once_its_events_refer_to_them() -> None:
    runs = Runs()
    runs.begin("a")
    runs.begin("b")
    runs("resource", uid="r", run_start="a")
    for n in range(4):
        runs("datum", datum_id=f"r/{n}", resource="r")
        runs.event("b" if n in (1, 3) else "a", f"e{n}", img=f"r/{n}", x=1.5)
    for n in range(2):
        runs.event("b", f"again {n}", img="r/0")
    assert runs.end("a") == ["resource r", "datum r/0", "event e0", "datum r/1", "datum r/2", "event e2", "datum r/3"]
    expected = ["resource r", "datum r/1", "event e1", "datum r/2", "datum r/3", "event e3"]
    assert runs.end("b") == [*expected, "datum r/0", "event again 0", "event again 1"]


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("event_page", {"uid": ["e"], "descriptor": "d-b", "data": {"x": numpy.zeros(1), "img": ["r/0"]}}),
        ("bulk_events", {"primary": [{"uid": "e", "descriptor": "d-b", "data": {"img": "r/0"}}]}),
    ],
)
def test_datums_follow_pages_of_events_too(name: str, document: dict[str, Any]) -> None:
    runs = Runs()
    runs.begin("a")
    runs("resource", uid="r", run_start="a")
    runs("bulk_datum", datum_ids=["r/0"], resource="r", datum_kwarg_list=[{}])
    runs.end("a")
    runs.begin("b")
    runs(name, **document)
    assert [text.split()[0] for text in runs.end("b")] == ["resource", "bulk_datum", name]


def test_a_datum_of_a_resource_that_nobody_saw_goes_to_the_open_runs() -> None:
    runs = Runs()
    runs.begin("b")
    runs("datum", datum_id="r/0", resource="r")
    runs("stream_datum", uid="s/0", stream_resource="s", descriptor="d-b")
    assert runs.end("b") == ["datum r/0", "stream_datum s/0"]


def test_a_routing_that_is_made_anew_knows_the_resources_of_the_one_before() -> None:
    recent = RecentAssets()
    before = Runs(recent)
    before.begin("a")
    before("resource", uid="r", run_start="a")
    before.end("a")
    after = Runs(recent)
    after.begin("b")
    after("datum", datum_id="r/0", resource="r")
    assert after.end("b") == ["resource r", "datum r/0"]


def test_the_oldest_assets_are_forgotten() -> None:
    recent = RecentAssets()
    runs = Runs(recent)
    runs.begin("a")
    for n in range(MAX_RESOURCES + 5):
        runs("resource", uid=f"r{n}", run_start="a")
        runs("datum", datum_id=f"r{n}/0", resource=f"r{n}")
    runs("datum_page", datum_id=[f"page/{n}" for n in range(2 * MAX_DATUMS)], resource="r0")
    assert len(recent.resources) == MAX_RESOURCES
    assert len(recent.datums) == MAX_DATUMS
    assert "r4" not in recent.resources
    assert "r5" in recent.resources


@pytest.mark.parametrize("document", [{"descriptor": "d-b"}, {"descriptor": "d-b", "stream_resource": []}])
def test_a_stream_datum_without_its_fields_goes_to_its_run(document: dict[str, Any]) -> None:
    runs = Runs()
    runs.begin("b")
    runs("stream_datum", **document)
    assert runs.end("b") == ["stream_datum None"]
