"""What is shipped when, after which answer: decided without a thread, a socket or a clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shipping import MAX_DOCUMENT, NOTHING, URL, WINDOW, Fault, MemoryRun, MemorySpool, Publication, World

from tiledbroker import ProtocolError, SpoolDamaged
from tiledbroker.protocol import messages
from tiledbroker.protocol.messages import (
    ANOTHER_RUN,
    GAP,
    LATER,
    NO_HELLO,
    Abandoned,
    Documents,
    Durable,
    Hello,
    Ping,
    Pong,
    Refused,
    RunState,
    Welcome,
    Written,
)
from tiledbroker.publisher._session import (
    ASK_INTERVAL_SECONDS,
    BATCH_BYTES,
    BATCH_DOCUMENTS,
    FULL_BATCH_DOCUMENTS,
    HELLO_INTERVAL_SECONDS,
    LATER_SECONDS,
    LINGER_SECONDS,
    MAX_ASK_INTERVAL_SECONDS,
    MAX_LINGER_SECONDS,
    NAME_TIMEOUT_SECONDS,
    PING_INTERVAL_SECONDS,
    RECHECK_SECONDS,
    REREAD_SECONDS,
    SILENCE_SECONDS,
    ShippingSession,
)
from tiledbroker.publisher._shipment import FEW_BYTES, FEW_DOCUMENTS


class Talk:
    """A session, a spool, and what a test says as the supervisor."""

    def __init__(self, *runs: MemoryRun) -> None:
        self.now = 100.0
        self.spool = MemorySpool(runs)
        self.session = ShippingSession(self.spool, "test/0", URL)
        self.session.open_connection(self.now)

    def send(self, count: int | None = None) -> list[messages.Message]:
        """Take what is due, as a socket that takes no more than `count` messages would."""
        self.session.update_runs()
        sent: list[messages.Message] = []
        for message in self.session.messages_due(self.now):
            if len(sent) == count:
                break
            sent.append(message)
        return sent

    def batches(self) -> list[tuple[str, int, int]]:
        """Run, first index and next index of each batch that is sent now."""
        return [(each.run, each.first, each.next) for each in self.send() if isinstance(each, Documents)]

    def hellos(self) -> list[Hello]:
        return [message for message in self.send() if isinstance(message, Hello)]

    def abandoned(self) -> list[Abandoned]:
        return [message for message in self.send() if isinstance(message, Abandoned)]

    def hear(self, message: messages.Message) -> None:
        self.session.receive(message, self.now)

    def welcome(self, *, window: int = WINDOW, max_document: int = MAX_DOCUMENT, **runs: RunState) -> Talk:
        """Answer the first Hello: I have nothing of your runs but this."""
        (hello,) = self.hellos()
        self.hear(Welcome(window, max_document, {**dict.fromkeys((*hello.runs, *hello.awaited), NOTHING), **runs}))
        return self

    def wait(self, seconds: float) -> Talk:
        self.now += seconds
        return self

    def reconnect(self) -> Talk:
        self.session.lose_connection()
        self.session.open_connection(self.now)
        return self

    def deliver(self, uid: str = "run") -> None:
        """Acknowledge a run, including its end."""
        self.hear(Durable(uid, self.run(uid).length, ended=True))

    def run(self, uid: str = "run") -> MemoryRun:
        return next(run for run in self.spool.runs() if run.run_uid == uid)


def run(uid: str = "run") -> MemoryRun:
    """A run of six documents."""
    return MemoryRun(uid).append(6, stop=True)


def left_run(uid: str = "run", count: int = 6) -> MemoryRun:
    """A run that a dead session has left open."""
    return MemoryRun(uid, is_adopted=True).append(count)


class TestABusyRun:
    def test_is_not_sent_until_it_is_free_and_holds_up_no_other(self) -> None:
        talk = Talk(run("busy"), run("free")).welcome()
        sent = list(talk.session.messages_due(talk.now, None, lambda uid: uid == "busy"))
        assert [each.run for each in sent if isinstance(each, Documents)] == ["free"]
        assert talk.session.next_at(talk.now) > talk.now
        talk.wait(RECHECK_SECONDS)
        assert talk.batches() == [("busy", 0, 6)]


class TestHellos:
    def test_come_first_and_again_until_one_is_answered(self) -> None:
        talk = Talk(run())
        assert talk.send() == [Hello("test/0", {}, [])]
        assert talk.session.next_at(talk.now) == talk.now + HELLO_INTERVAL_SECONDS
        assert talk.wait(0.9 * HELLO_INTERVAL_SECONDS).send() == []
        assert talk.wait(0.1 * HELLO_INTERVAL_SECONDS).send() == [Hello("test/0", {}, [])]
        assert not talk.session.connected
        talk.hear(Welcome(WINDOW, MAX_DOCUMENT, {}))
        assert talk.session.connected
        assert talk.wait(HELLO_INTERVAL_SECONDS).hellos() == []

    def test_that_cannot_be_sent_do_not_count(self) -> None:
        talk = Talk()
        assert talk.send(0) == []
        assert talk.session.next_at(talk.now) <= talk.now
        assert talk.send() == [Hello("test/0", {}, [])]

    def test_name_runs_that_others_left_and_no_new_ones(self) -> None:
        talk = Talk(left_run("left"), run("new"))
        assert talk.send() == [Hello("test/0", {"left": 6}, [])]

    def test_name_runs_that_are_adopted_later(self) -> None:
        talk = Talk().welcome()
        assert talk.hellos() == []
        talk.spool.add(left_run())
        assert talk.hellos() == [Hello("test/0", {"run": 6}, [])]

    def test_name_all_runs_on_a_new_connection(self) -> None:
        talk = Talk(run("a"), run("b")).welcome()
        talk.send()
        assert talk.reconnect().send() == [Hello("test/0", {"a": 6, "b": 6}, [])]

    def test_name_all_runs_however_many_there_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(messages, "MAX_RUNS", 3)
        talk = Talk(*(left_run(f"run-{number}") for number in range(8)))
        named: list[str] = []
        while hellos := talk.hellos():
            (hello,) = hellos
            assert len(hello.runs) <= 3
            named += hello.runs
            talk.hear(Welcome(WINDOW, MAX_DOCUMENT, dict.fromkeys(hello.runs, NOTHING)))
        assert named == [f"run-{number}" for number in range(8)]

    def test_are_repeated_to_a_supervisor_that_wants_one(self) -> None:
        talk = Talk(run()).welcome()
        talk.send()
        talk.hear(Refused("", 0, NO_HELLO))
        assert not talk.session.connected
        assert talk.send() == [Hello("test/0", {}, [])]

    def test_are_repeated_while_the_publisher_is_rejected(self) -> None:
        talk = Talk(run()).welcome()
        talk.hear(Refused("", 0, "this key is not let in any more"))
        assert talk.session.diagnose_connection(talk.now, "") == "this key is not let in any more"
        assert talk.send() == []
        talk.wait(HELLO_INTERVAL_SECONDS).welcome()
        assert talk.session.diagnose_connection(talk.now, "") == ""
        assert talk.batches() == [("run", 0, 6)]


class TestDocuments:
    def test_of_new_runs_are_sent_from_the_start(self) -> None:
        talk = Talk(run("a"), run("b")).welcome()
        assert talk.batches() == [("a", 0, 6), ("b", 0, 6)]
        assert talk.wait(1.0).batches() == []

    def test_of_adopted_runs_are_sent_from_what_the_host_has(self) -> None:
        talk = Talk(left_run()).welcome(run=RunState(4, ended=False, outcome=""))
        assert talk.batches() == [("run", 4, 6)]
        assert talk.session.durable("run") == 4

    def test_of_adopted_runs_are_not_sent_before_the_host_says_what_it_has(self) -> None:
        talk = Talk().welcome()
        talk.spool.add(left_run())
        assert talk.batches() == []

    def test_that_cannot_be_sent_do_not_count(self) -> None:
        talk = Talk(run("a"), run("b")).welcome()
        assert len(talk.send(2)) == 2  # the Ping and the first batch
        assert talk.wait(1.0).batches() == [("b", 0, 6)]

    def test_are_sent_in_batches(self) -> None:
        talk = Talk(MemoryRun("run").append(BATCH_DOCUMENTS + 600)).welcome()
        assert talk.batches() == [("run", 0, BATCH_DOCUMENTS)]
        assert talk.session.next_at(talk.now) == talk.now
        assert talk.batches() == [("run", BATCH_DOCUMENTS, BATCH_DOCUMENTS + 600)]

    def test_are_sent_in_batches_of_limited_size(self) -> None:
        talk = Talk(MemoryRun("run").append(10, size=BATCH_BYTES // 3)).welcome()
        assert talk.batches() == [("run", 0, 3)]

    def test_linger_behind_others(self) -> None:
        talk = Talk(MemoryRun("run").append()).welcome()
        assert talk.batches() == [("run", 0, 1)]
        talk.run().append()
        assert talk.batches() == []
        assert talk.session.next_at(talk.now) == talk.now + LINGER_SECONDS
        assert not talk.session.awaits_documents(talk.now)
        assert talk.wait(LINGER_SECONDS).batches() == [("run", 1, 2)]

    def test_do_not_linger_once_there_are_many(self) -> None:
        talk = Talk(MemoryRun("run").append()).welcome()
        talk.send()
        talk.run().append(FULL_BATCH_DOCUMENTS)
        assert talk.batches() == [("run", 1, 1 + FULL_BATCH_DOCUMENTS)]

    def test_of_several_runs_linger_for_as_long_as_each_of_their_batches_would_alone(self) -> None:
        uids = [f"run-{number}" for number in range(4)]
        talk = Talk(*(MemoryRun(uid).append() for uid in uids)).welcome()
        assert talk.batches() == [(uid, 0, 1) for uid in uids]
        for uid in uids:
            talk.run(uid).append(FULL_BATCH_DOCUMENTS - 1)
        assert talk.wait(3 * LINGER_SECONDS).batches() == []
        assert talk.session.next_at(talk.now) == pytest.approx(talk.now + LINGER_SECONDS)
        talk.run("run-0").append(4)
        assert [uid for uid, _, _ in talk.batches()] == uids

    def test_do_not_linger_while_somebody_waits_for_them(self) -> None:
        talk = Talk(MemoryRun("run").append()).welcome()
        talk.send()
        talk.run().append()
        assert talk.batches() == []
        talk.session.hurry()
        assert talk.batches() == [("run", 1, 2)]

    def test_of_very_many_runs_do_not_linger_for_long(self) -> None:
        uids = [f"run-{number}" for number in range(100)]
        talk = Talk(*(MemoryRun(uid).append() for uid in uids)).welcome()
        assert len(talk.batches()) == len(uids)
        for uid in uids:
            talk.run(uid).append()
        assert talk.batches() == []
        # No document needs to wake anybody meanwhile.
        assert not talk.session.awaits_documents(talk.now)
        assert len(talk.wait(MAX_LINGER_SECONDS).batches()) == len(uids)

    def test_wait_for_company_as_long_as_the_host_asks_them_to(self) -> None:
        talk = Talk(MemoryRun("run").append(), MemoryRun("other")).welcome()
        assert talk.batches() == [("run", 0, 1)]
        talk.hear(Durable("run", 1, ended=False, pause=0.4))
        talk.run().append()
        talk.wait(0.3)
        assert talk.batches() == []
        # The callback need not wake anybody for each document meanwhile; those of other runs are found soon.
        assert not talk.session.awaits_documents(talk.now)
        assert talk.session.next_at(talk.now) <= talk.now + RECHECK_SECONDS
        talk.run("other").append()
        assert talk.batches() == [("other", 0, 1)]
        talk.run().append()
        assert talk.wait(0.2).batches() == [("run", 1, 3)]

    def test_do_not_wait_for_company_that_they_have(self) -> None:
        talk = Talk(MemoryRun("run").append()).welcome()
        talk.send()
        talk.hear(Durable("run", 1, ended=False, pause=0.4))
        talk.run().append(FEW_DOCUMENTS)
        assert talk.wait(LINGER_SECONDS).batches() == [("run", 1, 1 + FEW_DOCUMENTS)]

    def test_do_not_wait_for_company_if_they_are_large(self) -> None:
        talk = Talk(MemoryRun("run").append()).welcome()
        talk.send()
        talk.hear(Durable("run", 1, ended=False, pause=0.4))
        talk.run().append(1, size=FEW_BYTES)
        assert talk.wait(LINGER_SECONDS).batches() == [("run", 1, 2)]

    @pytest.mark.parametrize("act", ["stop", "hurry", "reconnect", "close"])
    def test_do_not_wait_for_company_if_somebody_waits_for_them(self, act: str) -> None:
        talk = Talk(MemoryRun("run").append()).welcome()
        talk.send()
        talk.hear(Durable("run", 1, ended=False, pause=0.4))
        talk.run().append(stop=act == "stop")
        talk.wait(LINGER_SECONDS)
        if act == "hurry":
            talk.session.hurry()
        elif act == "close":
            talk.session.stop()
        elif act == "reconnect":
            talk.reconnect().welcome(run=RunState(1, ended=False, outcome=""))
        assert talk.batches() == [("run", 1, 2)]

    def test_that_come_rarely_do_not_wait(self) -> None:
        talk = Talk(MemoryRun("run").append()).welcome()
        talk.send()
        talk.hear(Durable("run", 1, ended=False, pause=0.4))
        talk.wait(0.5).run().append()
        assert talk.batches() == [("run", 1, 2)]

    def test_are_announced_only_when_none_are_looked_for_anyway(self) -> None:
        talk = Talk(MemoryRun("run"))
        assert not talk.session.awaits_documents(talk.now)
        talk.welcome().send()
        assert talk.session.awaits_documents(talk.now)
        talk.run().append()
        assert not talk.session.awaits_documents(talk.now)
        talk.send()
        assert not talk.session.awaits_documents(talk.now)
        assert talk.session.awaits_documents(talk.now + LINGER_SECONDS)

    def test_are_sent_again_from_a_gap(self) -> None:
        talk = Talk(run()).welcome()
        talk.send()
        talk.hear(Refused("run", 2, GAP))
        assert talk.wait(1.0).batches() == [("run", 2, 6)]

    def test_are_sent_again_later(self) -> None:
        talk = Talk(run()).welcome()
        talk.send()
        talk.hear(Refused("run", 0, LATER, "the journal's disk is full"))
        assert talk.session.problem == "the journal's disk is full"
        assert talk.wait(LATER_SECONDS / 2).batches() == []
        assert talk.session.next_at(talk.now) <= talk.now + LATER_SECONDS / 2
        assert talk.wait(LATER_SECONDS / 2).batches() == [("run", 0, 6)]
        talk.deliver()
        assert talk.session.problem == ""

    def test_refused_for_now_are_said_once_until_some_are_accepted(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", logger="tiledbroker.publisher")
        talk = Talk(run("a"), run("b")).welcome()
        for free in range(3):
            talk.send()
            for uid in "ab":
                talk.hear(Refused(uid, 0, LATER, f"the journal's disk is full: {free} B free"))
            talk.wait(LATER_SECONDS)
        assert talk.session.problem == "the journal's disk is full: 2 B free"
        talk.send()
        talk.deliver("a")
        talk.deliver("b")
        why = "the journal's disk is full: 0 B free"
        assert [record.getMessage() for record in caplog.records] == [
            f"Connected to the supervisor at {URL}.",
            f"Documents stay in the spool, because {URL} does not accept them now: {why}.",
            f"{URL} accepts documents again.",
        ]

    def test_of_other_runs_do_not_wait_for_a_run_that_is_sent_later(self) -> None:
        talk = Talk(run("a")).welcome()
        talk.send()
        talk.hear(Refused("a", 0, LATER))
        talk.wait(LINGER_SECONDS)
        assert talk.session.awaits_documents(talk.now)
        talk.spool.add(run("b"))
        assert talk.batches() == [("b", 0, 6)]

    def test_in_flight_on_a_lost_connection_are_sent_again_from_what_the_host_has(self) -> None:
        talk = Talk(MemoryRun("run").append(6)).welcome()
        talk.send()
        talk.reconnect().welcome(run=RunState(3, ended=False, outcome=""))
        assert talk.wait(1.0).batches() == [("run", 3, 6)]
        assert talk.session.durable("run") == 3

    def test_that_a_host_has_lost_are_sent_again(self) -> None:
        talk = Talk(run()).welcome()
        talk.send()
        talk.deliver()
        assert talk.run().is_durable
        talk.reconnect().welcome(run=RunState(1, ended=False, outcome=""))
        assert talk.wait(1.0).batches() == [("run", 1, 6)]
        assert not talk.run().is_durable
        assert (talk.session.durable("run"), talk.run().acknowledged) == (1, 1)


class TestTheWindow:
    def test_is_never_exceeded(self) -> None:
        talk = Talk(MemoryRun("run").append(100, size=100)).welcome(window=1_000)
        sent = sum(
            len(batch.body) for _ in range(20) for batch in talk.wait(1.0).send() if isinstance(batch, Documents)
        )
        assert 500 <= sent <= 1_000
        assert talk.batches() == []

    def test_opens_with_acknowledgements(self) -> None:
        talk = Talk(MemoryRun("run").append(100, size=100)).welcome(window=1_000)
        assert talk.batches() == [("run", 0, 5)]
        assert talk.wait(1.0).batches() == []
        talk.hear(Durable("run", 5, ended=False))
        assert talk.wait(1.0).batches() == [("run", 5, 10)]

    def test_is_shared_so_that_one_run_cannot_take_it_all(self) -> None:
        talk = Talk(*(MemoryRun(uid).append(100, size=100) for uid in "ab")).welcome(window=1_000)
        assert talk.batches() == [("a", 0, 5), ("b", 0, 2)]

    def test_that_is_full_is_looked_at_again_soon_and_not_at_once(self) -> None:
        talk = Talk(MemoryRun("run").append(100, size=100)).welcome(window=1_000)
        talk.send()
        talk.wait(LINGER_SECONDS)
        talk.send()
        assert talk.now < talk.session.next_at(talk.now) < talk.now + 0.1
        assert not talk.session.awaits_documents(talk.now)

    def test_lets_one_document_through_whatever_its_size(self) -> None:
        talk = Talk(MemoryRun("run").append(2, size=5_000)).welcome(window=1_000)
        assert talk.batches() == [("run", 0, 1)]
        assert talk.wait(1.0).batches() == []


class TestARunIsRefused:
    @pytest.fixture
    def talk(self) -> Talk:
        return Talk(run("run"), run("other"))

    def check_that_others_go_on(self, talk: Talk, reason: str) -> None:
        talk.session.update_runs()
        assert talk.batches()[-1:] in ([], [("other", 0, 6)])
        assert reason in talk.session.refusal("run")
        assert talk.session.refused.keys() == {"run"}
        assert talk.session.outcome("run") == ("refused", talk.session.refusal("run"))
        assert talk.session.durable("other") == 0
        assert not talk.session.is_complete
        talk.deliver("other")
        assert talk.session.is_complete
        assert talk.wait(10.0).batches() == []
        assert "run" not in talk.spool.removed

    def test_if_the_supervisor_does_not_want_it(self, talk: Talk, caplog: pytest.LogCaptureFixture) -> None:
        talk.welcome().send()
        talk.hear(Refused("run", 0, "the moon is full"))
        self.check_that_others_go_on(talk, "the moon is full")
        assert "Run run is not shipped to tcp://ingest:5579: the moon is full. It stays in the spool." in caplog.text

    def test_if_a_document_is_too_large(self, talk: Talk) -> None:
        talk.run().stopped = False
        talk.run().append(size=2_000)
        talk.welcome(max_document=1_000)
        assert talk.batches() == [("run", 0, 6), ("other", 0, 6)]
        talk.wait(1.0).send()
        self.check_that_others_go_on(talk, "its document 6 has 2000 bytes; the supervisor takes up to 1000")

    def test_if_its_log_is_damaged_behind_its_last_document(self, talk: Talk) -> None:
        talk.run().damage = "/spool/file: its checksum is wrong"
        talk.welcome()
        assert talk.batches()[0] == ("run", 0, 6)
        talk.wait(1.0).send()
        self.check_that_others_go_on(talk, "/spool/file: it is damaged behind document 5: its checksum is wrong")

    def test_if_its_log_has_a_gap(self, talk: Talk) -> None:
        del talk.run().records[3]
        talk.welcome().send()
        self.check_that_others_go_on(talk, "document 0 is not where it should be")

    def test_if_a_record_is_damaged(self, talk: Talk) -> None:
        talk.run().error = SpoolDamaged("/spool/file", "the checksum of document 0 is wrong")
        talk.welcome().send()
        self.check_that_others_go_on(talk, "the checksum of document 0")

    def test_if_somebody_else_has_ended_it(self, talk: Talk) -> None:
        talk.run().stopped = False
        talk.welcome().send()
        talk.hear(Durable("run", 6, ended=True))
        self.check_that_others_go_on(talk, "declared as ended by somebody else")

    def test_not_while_it_repeats_what_the_host_has_to_the_end(self, talk: Talk) -> None:
        """As when a run is published once more, a document at a time."""
        repeated = talk.spool.add(MemoryRun("repeated").append(1))
        talk.welcome().send()
        talk.hear(Durable("repeated", 3, ended=True))
        assert talk.session.refused == {}
        repeated.append(1)
        assert ("repeated", 1, 2) in talk.wait(1.0).batches()
        talk.hear(Durable("repeated", 3, ended=True))
        repeated.append(1, stop=True)
        assert ("repeated", 2, 3) in talk.wait(1.0).batches()
        assert not repeated.is_durable
        talk.hear(Durable("repeated", 3, ended=True))
        assert repeated.is_durable
        assert talk.session.refused == {}

    @pytest.mark.parametrize("crcs", [{"start_crc": 1}, {"end_crc": 1}])
    def test_if_the_host_has_another_run_of_this_uid(self, talk: Talk, crcs: dict[str, int]) -> None:
        talk.run().is_adopted = True
        talk.welcome(run=RunState(6, ended=True, outcome="written", **crcs))
        self.check_that_others_go_on(talk, ANOTHER_RUN)
        assert not talk.run().is_durable

    def test_if_the_host_is_so_old_that_the_spool_cannot_continue(self, talk: Talk) -> None:
        talk.run().is_adopted = True
        talk.run().first = 4
        talk.welcome(run=RunState(2, ended=False, outcome=""))
        self.check_that_others_go_on(
            talk, "the ingest host has 2 documents of it, and the spool has given up the first 4"
        )

    def test_until_the_next_connection(self, talk: Talk) -> None:
        talk.welcome().send()
        talk.hear(Refused("run", 0, "the moon is full"))
        talk.reconnect().welcome()
        assert talk.session.refused == {}
        assert talk.wait(1.0).batches() == [("run", 0, 6), ("other", 0, 6)]

    def test_if_the_spool_does_not_hand_it_out(self) -> None:
        talk = Talk().welcome()
        talk.spool.refused["run"] = "it was published for somebody else"
        assert talk.session.outcome("run") == ("refused", "it was published for somebody else")
        talk.hear(Written("run", "written", ""))
        assert talk.session.outcome("run") == ("written", "")


def test_a_file_that_cannot_be_read_is_tried_again_and_holds_up_no_other_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    talk = Talk(run("run"), run("other"))
    talk.run().error = OSError(5, "Input/output error", "the file")
    talk.welcome()
    assert talk.batches() == [("other", 0, 6)]
    assert "Input/output error" in talk.session.problem
    assert talk.wait(REREAD_SECONDS / 2).batches() == []
    talk.wait(REREAD_SECONDS / 2).send()
    assert caplog.text.count("cannot be read") == 1
    talk.run().error = None
    assert talk.wait(REREAD_SECONDS).batches() == [("run", 0, 6)]
    talk.deliver()
    assert talk.session.problem == ""


class TestAnAbandonedRun:
    def test_is_declared_once_all_of_it_is_durable(self) -> None:
        talk = Talk(left_run()).welcome()
        assert talk.batches() == [("run", 0, 6)]
        talk.hear(Durable("run", 5, ended=False))
        assert talk.abandoned() == []
        talk.hear(Durable("run", 6, ended=False))
        assert talk.abandoned() == [Abandoned("run", 6)]
        assert talk.abandoned() == []

    def test_is_declared_again_until_its_end_is_acknowledged(self) -> None:
        talk = Talk(left_run()).welcome(run=RunState(6, ended=False, outcome=""))
        assert talk.send(0) == []
        assert talk.abandoned() == [Abandoned("run", 6)]
        talk.hear(Pong(0))
        assert talk.abandoned() == [Abandoned("run", 6)]
        talk.deliver()
        assert talk.abandoned() == []
        assert talk.run().is_durable

    def test_is_not_declared_at_once_to_a_host_that_wants_it_later(self) -> None:
        talk = Talk(left_run()).welcome(run=RunState(6, ended=False, outcome=""))
        assert talk.abandoned() == [Abandoned("run", 6)]
        talk.hear(Refused("run", 6, LATER))
        assert talk.abandoned() == []
        talk.wait(LATER_SECONDS).hear(Pong(0))
        assert talk.abandoned() == [Abandoned("run", 6)]

    def test_has_the_documents_of_the_host_if_these_are_more(self) -> None:
        talk = Talk(left_run()).welcome(run=RunState(8, ended=False, outcome=""))
        assert talk.abandoned() == [Abandoned("run", 8)]

    def test_is_not_declared_if_its_log_is_damaged(self) -> None:
        talk = Talk(left_run())
        talk.run().damage = "/spool/file: it is short"
        talk.welcome(run=RunState(6, ended=False, outcome=""))
        assert talk.abandoned() == []
        assert "it is short" in talk.session.refusal("run")

    def test_is_every_open_run_when_the_publisher_closes(self) -> None:
        talk = Talk(MemoryRun("open").append(3), run("over")).welcome()
        talk.send()
        talk.hear(Durable("open", 3, ended=False))
        talk.deliver("over")
        talk.session.stop()
        assert talk.abandoned() == [Abandoned("open", 3)]
        assert not talk.session.is_complete
        talk.deliver("open")
        assert talk.session.is_complete


class TestOutcomes:
    def test_remove_runs_that_are_complete(self) -> None:
        talk = Talk(run()).welcome()
        talk.send()
        talk.deliver()
        assert talk.spool.removed == []
        talk.hear(Written("run", "written", ""))
        assert talk.spool.removed == ["run"]
        talk.send()
        assert talk.session.durable("run") is None
        assert talk.session.outcome("run") == ("written", "")

    def test_that_come_before_the_last_acknowledgement_are_asked_for_again(self) -> None:
        talk = Talk(run()).welcome()
        talk.send()
        talk.hear(Written("run", "interrupted", ""))
        talk.deliver()
        assert talk.spool.removed == []
        talk.now += ASK_INTERVAL_SECONDS
        assert talk.hellos() == [Hello("test/0", {}, ["run"])]
        talk.hear(Welcome(WINDOW, MAX_DOCUMENT, {"run": RunState(6, ended=True, outcome="interrupted")}))
        assert talk.spool.removed == ["run"]

    def test_of_an_earlier_end_say_nothing_of_documents_behind_it(self) -> None:
        talk = Talk(run())
        talk.welcome(run=RunState(3, ended=True, outcome="interrupted"))
        talk.send()
        talk.deliver()
        assert talk.spool.removed == []
        talk.hear(Written("run", "written", ""))
        assert talk.spool.removed == ["run"]

    def test_in_the_answer_to_a_hello_count_as_well(self) -> None:
        talk = Talk(run()).welcome()
        talk.send()
        talk.reconnect().welcome(run=RunState(6, ended=True, outcome="written"))
        assert talk.spool.removed == ["run"]

    def test_are_asked_for_at_growing_intervals(self) -> None:
        talk = Talk(run()).welcome()
        talk.send()
        talk.deliver()
        intervals = []
        for _ in range(7):
            begun = talk.now
            while not (hellos := talk.hellos()):
                talk.now = talk.session.next_at(talk.now)
                talk.hear(Pong(0))
            assert hellos == [Hello("test/0", {}, ["run"])]
            talk.hear(Welcome(WINDOW, MAX_DOCUMENT, {"run": RunState(6, ended=True, outcome="")}))
            intervals.append(round(talk.now - begun, 3))
        assert intervals[:4] == [ASK_INTERVAL_SECONDS * 2**n for n in (0, 1, 2, 3)]
        assert intervals[4:] == [MAX_ASK_INTERVAL_SECONDS] * 3

    def test_are_asked_for_at_once_if_somebody_waits(self) -> None:
        talk = Talk().welcome()
        assert talk.hellos() == []
        talk.session.request_outcome("gone")
        assert talk.hellos() == [Hello("test/0", {}, ["gone"])]
        talk.session.request_outcome("another")
        talk.hear(Welcome(WINDOW, MAX_DOCUMENT, {"gone": RunState(3, ended=True, outcome="written")}))
        assert talk.session.outcome("gone") == ("written", "")
        assert talk.hellos() == [Hello("test/0", {}, ["another"])]

    def test_that_are_final_are_not_asked_for_again(self) -> None:
        talk = Talk().welcome()
        talk.hear(Written("run", "written", ""))
        talk.session.request_outcome("run")
        assert talk.hellos() == []
        assert talk.session.outcome("run") == ("written", "")

    def test_of_failed_runs_are_asked_for_again_and_the_runs_kept(self, caplog: pytest.LogCaptureFixture) -> None:
        talk = Talk(run()).welcome()
        talk.send()
        talk.deliver()
        for _ in range(2):
            talk.hear(Written("run", "failed", "of all things"))
        assert caplog.text.count("Run run was not written to Tiled: of all things.") == 1
        assert talk.session.outcome("run") == ("failed", "of all things")
        assert talk.spool.removed == []
        talk.session.request_outcome("run")
        assert talk.session.outcome("run") is None
        assert talk.hellos() == [Hello("test/0", {}, ["run"])]
        talk.hear(Welcome(WINDOW, MAX_DOCUMENT, {"run": RunState(6, ended=True, outcome="written")}))
        assert talk.spool.removed == ["run"]

    def test_of_failed_runs_that_are_not_in_the_spool_are_asked_for_once(self) -> None:
        talk = Talk().welcome()
        talk.session.request_outcome("gone")
        talk.send()
        talk.hear(Written("gone", "failed", "of all things"))
        talk.hear(Welcome(WINDOW, MAX_DOCUMENT, {"gone": RunState(6, ended=True, outcome="failed")}))
        assert talk.wait(2 * MAX_ASK_INTERVAL_SECONDS).hellos() == []

    def test_of_another_run_of_the_uid_are_not_believed(self) -> None:
        talk = Talk(left_run()).welcome(run=RunState(6, ended=True, outcome="written", start_crc=1))
        assert talk.session.outcome("run") == ("refused", ANOTHER_RUN)
        assert talk.spool.removed == []


class TestAConnection:
    def test_is_tested_by_pings(self) -> None:
        talk = Talk().welcome()
        assert talk.send() == [Ping(0, 0, 0)]
        assert talk.session.next_at(talk.now) == talk.now + PING_INTERVAL_SECONDS
        assert talk.send() == []
        assert talk.wait(PING_INTERVAL_SECONDS).send(0) == []
        assert talk.send() == [Ping(1, 0, 0)]

    def ping(self, talk: Talk, unix_now: float | None = None) -> Ping:
        ping, *_ = talk.wait(PING_INTERVAL_SECONDS).session.messages_due(talk.now, unix_now)
        assert isinstance(ping, Ping)
        return ping

    def test_tells_how_far_the_spool_is_ahead(self) -> None:
        run = MemoryRun("run").append(3, size=10)
        run.records = [record._replace(received=1000.0 + record.idx) for record in run.records]
        talk = Talk(run).welcome()
        assert len(talk.send()) == 2
        assert self.ping(talk, 1005.0) == Ping(1, 3, 30, 5.0)
        talk.hear(Durable("run", 3, ended=False))
        assert self.ping(talk, 1006.0) == Ping(2, 0, 0, None)

    def test_tells_of_documents_that_wait_for_their_turn(self) -> None:
        run = MemoryRun("run").append(3, size=10)
        run.records = [record._replace(received=1000.0 + record.idx) for record in run.records]
        talk = Talk(run).welcome()
        talk.send()
        talk.hear(Durable("run", 1, ended=False))
        talk.hear(Refused("run", 1, LATER, "the disk is full"))
        assert self.ping(talk, 1005.0) == Ping(1, 2, 20, 4.0)

    def test_does_not_tell_the_age_of_documents_that_cannot_be_read(self) -> None:
        run = MemoryRun("run").append(2, size=10)
        talk = Talk(run).welcome()
        run.error = OSError("the disk is gone")
        assert self.ping(talk, 1005.0) == Ping(0, 2, 20, None)

    def test_is_replaced_after_silence(self) -> None:
        talk = Talk().welcome()
        assert not talk.session.is_silent(talk.now + 0.9 * SILENCE_SECONDS)
        assert talk.session.is_silent(talk.now + SILENCE_SECONDS)
        talk.wait(0.9 * SILENCE_SECONDS).hear(Pong(0))
        assert not talk.session.is_silent(talk.now + 0.9 * SILENCE_SECONDS)

    def test_has_more_time_while_a_name_server_is_asked(self) -> None:
        talk = Talk()
        assert not talk.session.is_silent(talk.now + 0.9 * NAME_TIMEOUT_SECONDS)
        assert talk.session.is_silent(talk.now + NAME_TIMEOUT_SECONDS)
        talk.session.note_activity(talk.now + 30.0)
        assert not talk.session.is_silent(talk.now + 30.0 + 0.9 * SILENCE_SECONDS)
        assert talk.session.is_silent(talk.now + 30.0 + SILENCE_SECONDS)

    def test_that_is_not_answered_is_a_problem(self) -> None:
        talk = Talk()
        assert talk.session.diagnose_connection(talk.now, "before") == "before"
        talk.wait(HELLO_INTERVAL_SECONDS)
        assert "does not answer" in talk.session.diagnose_connection(talk.now, "before")
        talk.welcome()
        assert talk.session.diagnose_connection(talk.now, "before") == ""

    def test_to_something_that_is_no_supervisor_is_a_problem(self) -> None:
        talk = Talk()
        talk.session.reject_message(ProtocolError("This is not a message."), talk.now)
        assert "no supervisor that this publisher can talk to" in talk.session.diagnose_connection(talk.now, "")
        talk.welcome()
        talk.session.reject_message(ProtocolError("This is not a message."), talk.now)
        assert talk.session.diagnose_connection(talk.now, "") == ""

    @pytest.mark.parametrize(("end", "lines"), [(ShippingSession.lose_connection, 1), (ShippingSession.stop, 0)])
    def test_that_is_lost_is_logged_unless_the_publisher_closes(
        self, end: Callable[[ShippingSession], None], lines: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        talk = Talk().welcome()
        end(talk.session)
        talk.session.lose_connection()
        assert caplog.text.count("The connection to tcp://ingest:5579 is lost.") == lines
        assert not talk.session.connected

    def test_to_a_supervisor_that_knows_other_runs_does_no_harm(self) -> None:
        talk = Talk().welcome()
        for message in (Durable("other", 3, ended=True), Refused("other", 0, GAP), Refused("other", 0, "no")):
            talk.hear(message)
        assert talk.wait(1.0).batches() == []
        assert talk.session.refused == {}


# Random schedules of faults

SECONDS = st.floats(0.0, 12.0)
PUBLICATIONS = st.builds(
    Publication,
    at=SECONDS,
    documents=st.integers(1, 12),
    interval=st.sampled_from([0.0, 0.004, 0.7]),
    stops=st.booleans(),
    is_adopted=st.booleans(),
)
FAULTS = st.builds(
    Fault,
    kind=st.sampled_from(["cut", "hang", "go back", "block", "busy", "lose workers"]),
    at=SECONDS,
    seconds=st.floats(0.0, 9.0),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(PUBLICATIONS, min_size=1, max_size=3),
    st.lists(FAULTS, max_size=6),
    st.lists(st.floats(0.0, 1.5), min_size=1, max_size=4),
    SECONDS,
)
def test_every_document_arrives_once_and_in_order_whatever_goes_wrong(
    publications: list[Publication], faults: list[Fault], delays: list[float], stop_at: float
) -> None:
    world = World(publications, faults, delays, stop_at=20.0 + stop_at)
    world.run()
    for uid, published in world.published.items():
        journal = world.supervisor.journals[uid]
        assert [body for _, _, body in journal.records] == [record.body for record in published.records]
        assert published.is_durable
        assert world.session.outcome(uid) == ("written", "")
    assert world.session.refused == {}
    assert world.session.is_complete
