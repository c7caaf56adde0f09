"""Connections that are no publisher's: a process that makes them at a supervisor's port until it is ended."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
from collections import deque
from typing import Final

PIECE: Final = 64 * 1024
KEPT: Final = 500

GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + bytes(32)


def main(port: int, connections: int, megabytes: int, seed: int) -> None:
    """Make so many connections, and send so much over them; then say how much that was, and end.

    Some say nothing, some only half of what a peer says first, the others send random bytes until they are turned away
    and then go on with a new one.
    """
    chance = random.Random(seed)
    silent: deque[socket.socket] = deque(maxlen=KEPT)
    made = sent = 0
    wanted = megabytes * 2**20
    junk = os.urandom(2**20)
    while made < connections or sent < wanted:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:
            continue
        made += 1
        way = chance.random()
        if way < 0.2:
            if len(silent) == KEPT:
                silent[0].close()
            silent.append(connection)  # says nothing
            continue
        with connection, contextlib.suppress(OSError):
            if way < 0.6:
                connection.sendall(GREETING[: chance.randrange(1, len(GREETING) + 1)])
            at = chance.randrange(len(junk) - PIECE)
            # To be counted, whether or not the other end reads it.
            share = max(PIECE, (wanted - sent) // max(1, connections - made))
            while share > 0:
                sent += connection.send(junk[at : at + PIECE])
                share -= PIECE
    sys.stdout.write(f"{made} {sent}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
