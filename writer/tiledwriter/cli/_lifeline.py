"""Ends a process with the one that started it, however that one ends."""

from __future__ import annotations

import os
import signal
import threading


def end_with_parent() -> None:
    """Have this process killed when the one that started it is gone: the next service needs its journals.

    A killed supervisor loses nothing; see `Supervisor`.
    """

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="tiledwriter-parent", daemon=True).start()
