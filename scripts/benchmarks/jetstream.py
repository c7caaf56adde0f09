"""The peer for durability: NATS JetStream, a message log that acknowledges what is on its disk."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nats

from tiledbroker import Encoder
from tiledwriter.testing import ServerProcess, free_port

from .documents import Emitted

PENDING = 4000  # messages on their way; with 16,000 it is not faster
STREAM = "documents"


class JetStream(ServerProcess):
    """A NATS server with JetStream on files in `directory`.

    `always` makes it sync each message before it is acknowledged; otherwise it does so every two minutes.
    """

    def __init__(self, directory: Path, *, always: bool) -> None:
        directory.mkdir(parents=True)
        self.port = free_port()
        storage = {"store_dir": str(directory / "storage"), **({"sync_interval": "always"} if always else {})}
        configuration = directory / "nats.conf"
        configuration.write_text(json.dumps({"host": "127.0.0.1", "port": self.port, "jetstream": storage}))
        program = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or "nats-server"
        super().__init__([program, "-c", str(configuration)], directory / "server.log")

    def ready(self) -> bool:
        return b"Server is ready" in self.log.read_bytes()

    def published(self, emitted: Sequence[Emitted]) -> float:
        """Documents per second, from the first to the last acknowledgement; the runs in turn, a subject each."""
        return asyncio.run(self._published(emitted))

    async def _published(self, emitted: Sequence[Emitted]) -> float:
        client = await nats.connect(f"nats://127.0.0.1:{self.port}")
        try:
            stream = client.jetstream(publish_async_max_pending=PENDING)
            await stream.add_stream(name=STREAM, subjects=["run.>"], storage="file")
            encoder = Encoder()
            answers = []
            began = time.perf_counter()
            for step in zip(*emitted, strict=True):
                for number, (name, doc) in enumerate(step):
                    subject = f"run.{number}.{name}"  # cheaper than headers
                    answers.append(await stream.publish_async(subject, encoder.encode(doc), wait_stall=60))
            stored = [await answer for answer in answers]
            seconds = time.perf_counter() - began
            assert len({answer.seq for answer in stored}) == sum(map(len, emitted))
            await stream.delete_stream(STREAM)
        finally:
            await client.close()
        return len(stored) / seconds
