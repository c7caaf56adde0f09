"""How commands name one of several targets: `--config FILE:TARGET`."""

from __future__ import annotations

from pathlib import Path


def split_target(config: Path | None) -> tuple[Path | None, str]:
    """Return the file and the target that `--config FILE:TARGET` names; the target is "" for `--config FILE`."""
    if config is None or config.exists():
        return config, ""
    name, colon, target = config.name.rpartition(":")
    file = config.with_name(name) if name else config
    return (file, target) if colon and name and file.exists() else (config, "")
