"""A supervisor whose workers die: of what comes after a replay, or of looking at a run that is written.

The latter are few and soon: the pauses of `tiledbroker.supervisor.scheduler._audit_schedule` are shortened. Or they
take so long to begin that the supervisor is told to stop before they can be told anything.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import zmq

from tiledbroker import Journal
from tiledbroker.protocol.messages import Finish, Progress, Ready, decode, encode
from tiledbroker.supervisor._supervisor import Supervisor
from tiledbroker.supervisor._tasks import WorkerCommand, WorkerTask
from tiledbroker.supervisor.frontend import Frontend
from tiledbroker.supervisor.scheduler import _audit_schedule


def replay_and_die(task: WorkerTask) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as mailbox:
        mailbox.setsockopt(zmq.ROUTING_ID, task.token)
        mailbox.connect(task.mailbox)
        for message in (Ready(task.run_uid, 1, ended=False), Progress(task.run_uid, 1)):
            mailbox.send_multipart(encode(message))
    os._exit(1)


def begin_and_die(task: WorkerTask) -> None:
    with Journal(task.journal, "write") as journal:
        journal.note("worker started")
    os._exit(1)


def begin_late(task: WorkerTask) -> None:
    directory = task.journal.parent
    (directory / "begun").touch()
    while not (directory / "stopping").exists():
        time.sleep(0.01)
    with zmq.Context() as context, context.socket(zmq.DEALER) as mailbox:
        mailbox.setsockopt(zmq.ROUTING_ID, task.token)
        mailbox.connect(task.mailbox)
        if isinstance(decode(mailbox.recv_multipart()), Finish):
            sys.stdout.write("told to end\n")
            sys.stdout.flush()


class Stopping(Supervisor):
    """Tells its workers before any of them listens."""

    def _run_once(self) -> None:
        super()._run_once()
        if self._scheduler.is_stopping:
            (self.journal_dir / "stopping").touch()


def drain(directory: Path) -> None:
    supervisor = Supervisor(directory, WorkerCommand(replay_and_die), Frontend, drain=True)
    (run,) = supervisor.run()
    sys.stdout.write(f"{run.state} after {run.deaths} deaths\n")


def audit(directory: Path) -> None:
    _audit_schedule.PAUSE_AFTER_FIRST_DEATH_SECONDS = 0.001  # type: ignore[misc]
    supervisor = Supervisor(directory, WorkerCommand(begin_and_die), Frontend)
    supervisor.stop_on_signals()
    supervisor.run()


def stop(directory: Path) -> None:
    supervisor = Stopping(directory, WorkerCommand(begin_late), Frontend)

    def stop_it() -> None:
        while not (directory / "begun").exists():
            time.sleep(0.01)
        supervisor.stop()

    threading.Thread(target=stop_it).start()
    supervisor.run()


def main() -> None:
    {"drain": drain, "audit": audit, "stop": stop}[sys.argv[1]](Path(sys.argv[2]))


if __name__ == "__main__":
    import dying_workers  # the fork server finds what workers run by the name of its module

    dying_workers.main()
