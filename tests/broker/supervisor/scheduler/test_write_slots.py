"""Write slots: as many as the storage takes, in the order that they are to be given in, and none is lost."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from ingest_model import IngestModel

from tiledbroker.protocol import messages
from tiledbroker.protocol.messages import SlotGranted, SlotRecalled, SlotReleased, SlotWanted
from tiledbroker.supervisor._publishers import Publisher
from tiledbroker.supervisor.scheduler._effects import SendToWorker
from tiledbroker.supervisor.scheduler._write_slots import HELD_SECONDS, WriteSlots


def granted(sent: list[SendToWorker]) -> list[int]:
    return [each.worker for each in sent if isinstance(each.message, SlotGranted)]


def recalled(sent: list[SendToWorker]) -> list[int]:
    return [each.worker for each in sent if isinstance(each.message, SlotRecalled)]


def test_a_worker_that_is_alone_gets_a_slot_and_keeps_it() -> None:
    slots = WriteSlots()
    assert slots.request(1, "a", 0.0) == [SendToWorker(1, SlotGranted("a", shared=False))]
    assert slots.grant(1.0) == []


def test_a_kept_slot_is_recalled_once_another_worker_wants_one() -> None:
    slots = WriteSlots()
    slots.request(1, "a", 0.0)
    assert slots.request(2, "b", 0.1) == [SendToWorker(1, SlotRecalled("a"))]
    assert slots.request(3, "c", 0.2) == []
    # Worker 3 waits, so worker 2 need not be asked for the slot.
    assert slots.release(1, "", 0.3) == [SendToWorker(2, SlotGranted("b", shared=True))]
    assert slots.release(2, "", 0.4) == [SendToWorker(3, SlotGranted("c", shared=False))]


def test_slots_are_granted_in_the_order_in_which_they_are_wanted() -> None:
    slots = WriteSlots(1)
    slots.request(1, "a", 0.0)
    for number in (5, 2, 9):
        slots.request(number, "x", 0.0)
    order = [number for holder in (1, 5, 2) for number in granted(slots.release(holder, "", 0.0))]
    assert order == [5, 2, 9]


def grants(slots: WriteSlots, places: dict[int, float | None], count: int) -> list[int]:
    """Whom so many slots are granted to, one after the other, while each worker asks again once it has written."""
    order: list[int] = []
    sent = [each for number, place in places.items() for each in slots.request(number, str(number), 0.0, order=place)]
    while len(order) < count:
        (number,) = granted(sent)
        order.append(number)
        released = slots.release(number, "", 0.0)
        sent = slots.request(number, str(number), 0.0, order=places[number]) + released
    return order


def test_the_run_that_has_begun_first_gets_half_of_the_slots_of_ended_runs() -> None:
    order = grants(WriteSlots(1), {number: 100.0 - number for number in range(20)}, 41)
    assert order.count(19) == 20
    # The others wait for their turns, and get them.
    assert [number for number in order if number != 19] == [*range(19), 0, 1]


def test_open_runs_are_not_late_because_of_many_ended_ones() -> None:
    places: dict[int, float | None] = {number: float(number) for number in range(50)}
    order = grants(WriteSlots(1), {**places, 50: None, 51: None}, 40)
    assert order[1::2] == [50, 51] * 10
    assert set(order[0::2]) < set(range(50))


def test_postgresql_takes_two_and_every_other_storage_one() -> None:
    for storage, expected in (("", 1), ("sqlite", 1), ("duckdb", 1), ("mysql", 1), ("postgresql", 2)):
        slots = WriteSlots()
        slots.request(1, "a", 0.0)
        slots.release(1, storage, 0.0)
        assert slots.slots == expected
    # What a later worker has not seen is not forgotten.
    slots.release(1, "", 0.0)
    assert slots.slots == 2


def test_a_limit_wins_over_the_storage_and_can_change() -> None:
    slots = WriteSlots(3)
    slots.release(1, "sqlite", 0.0)
    assert slots.slots == 3
    slots.change_limit(None)
    assert slots.slots == 1


def test_a_slot_that_is_held_for_long_does_not_stop_the_others() -> None:
    slots = WriteSlots(1)
    slots.request(1, "a", 0.0)
    slots.request(2, "b", 0.0)
    assert granted(slots.grant(HELD_SECONDS - 0.1)) == []
    assert granted(slots.grant(HELD_SECONDS)) == [2]
    slots.request(3, "c", HELD_SECONDS)
    # When the first one is done at last, two would write otherwise.
    assert granted(slots.release(1, "", HELD_SECONDS + 0.1)) == []
    assert granted(slots.release(2, "", HELD_SECONDS + 0.1)) == [3]


@given(st.lists(st.sampled_from([None, 1.0, 2.0, 3.0]), min_size=2, max_size=12))
def test_no_worker_waits_for_ever(places: list[float | None]) -> None:
    order = grants(WriteSlots(1), dict(enumerate(places)), 20 * len(places))
    for number in range(len(places)):
        turns = [-1, *(turn for turn, granted_to in enumerate(order) if granted_to == number), len(order)]
        # Every second slot at least goes to runs of its kind, and every second of these to who has waited longest.
        assert max(later - earlier for earlier, later in itertools.pairwise(turns)) <= 4 * len(places) + 4


@given(st.lists(st.tuples(st.sampled_from(["request", "release", "die"]), st.integers(1, 5))), st.integers(1, 3))
def test_never_more_write_than_there_are_slots_and_nobody_is_forgotten(
    steps: list[tuple[str, int]], limit: int
) -> None:
    slots = WriteSlots(limit)
    waiting: list[int] = []
    holding: set[int] = set()
    for act, number in steps:
        sent: list[SendToWorker] = []
        if act == "request" and number not in waiting and number not in holding:
            waiting.append(number)
            sent = slots.request(number, str(number), 0.0)
        elif act == "release" and number in holding:
            holding.discard(number)
            sent = slots.release(number, "", 0.0)
        elif act == "die":
            holding.discard(number)
            waiting = [each for each in waiting if each != number]
            sent = slots.forget(number, 0.0)
        for each in granted(sent):
            assert each == waiting.pop(0)
            holding.add(each)
        assert set(recalled(sent)) <= holding
        assert len(holding) <= limit
        assert len(holding) == limit or not waiting
    assert slots.waiting == len(waiting)


def test_the_slot_of_a_worker_that_dies_goes_to_the_next() -> None:
    model = IngestModel()
    model.scheduler.finish_survey()
    publisher = Publisher(b"alice", "", "127.0.0.1", name="alice", connected_at=0.0)
    for uid in "ab":
        model.send(publisher, messages.documents(uid, 0, [("start", 1, b"...")]))
    first, second = (model.start(uid) for uid in "ab")
    for worker in (first, second):
        model.say(worker, SlotWanted(worker.uid))
    assert [type(message) for message in first.inbox if not isinstance(message, messages.Documents)] == [
        SlotGranted,
        SlotRecalled,
    ]
    assert not any(isinstance(message, SlotGranted) for message in second.inbox)
    model.end(first, -9)
    assert second.inbox[-1] == SlotGranted("b", shared=False)
    # The slot of a worker that is gone cannot be given away twice.
    model.say(first, SlotReleased("a"))
    assert model.scheduler.write_slots.waiting == 0
