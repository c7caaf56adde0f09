"""A supervisor whose workers die: of what comes after a replay, or of looking at a run that is written.

The latter are few and soon: what is said of pauses in `tiledbroker._audits` is shortened.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import zmq

from tiledbroker import Journal, _audits
from tiledbroker._messages import Progress, Ready, encode
from tiledbroker._runs import WorkerCommand, WorkerTask
from tiledbroker._supervisor import Supervisor


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


def drain(directory: Path) -> None:
    supervisor = Supervisor(directory, WorkerCommand(replay_and_die), listen=None, drain=True)
    (run,) = supervisor.run()
    sys.stdout.write(f"{run.state} after {run.deaths} deaths\n")


def audit(directory: Path) -> None:
    _audits.FIRST_PAUSE = 0.001  # type: ignore[misc]
    supervisor = Supervisor(directory, WorkerCommand(begin_and_die), listen=None)
    supervisor.stop_on_signals()
    supervisor.run()


if __name__ == "__main__":
    {"drain": drain, "audit": audit}[sys.argv[1]](Path(sys.argv[2]))
