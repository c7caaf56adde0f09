"""Where spools and journals lie unless somebody says otherwise."""

from __future__ import annotations

from pathlib import Path


def default_spool_dir() -> Path:
    """`tiledwriter/spool` in the user's state directory."""
    return _state_dir() / "spool"


def default_journal_dir() -> Path:
    """`tiledwriter/journals` in the user's state directory."""
    return _state_dir() / "journals"


def _state_dir() -> Path:
    import platformdirs  # 40 ms that only those pay who need it

    return Path(platformdirs.user_state_dir("tiledwriter"))
