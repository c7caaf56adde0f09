"""A supervisor whose workers report that they replay what was written before, and then come to what kills them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import zmq

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


if __name__ == "__main__":
    supervisor = Supervisor(Path(sys.argv[1]), WorkerCommand(replay_and_die), listen=None, drain=True)
    (run,) = supervisor.run()
    sys.stdout.write(f"{run.state} after {run.deaths} deaths\n")
