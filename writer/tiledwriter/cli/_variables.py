"""Variables of the environment that set settings."""

from __future__ import annotations

import os
from typing import Final

PREFIX: Final = "TILEDWRITER_"


def variable_of(setting: str) -> str | None:
    """Return the name of the variable that sets a setting; None if none does.

    Its case does not matter, and of several spellings the last one counts, as for pydantic-settings.
    """
    name = PREFIX + setting.upper()
    return next((variable for variable in reversed(list(os.environ)) if variable.upper() == name), None)
