"""Verification of journals, and of the runs in Tiled against their journals."""

from __future__ import annotations

from ._verification import PATIENCE_SECONDS, Verification, runs_without_journal, verify

__all__ = ["PATIENCE_SECONDS", "Verification", "runs_without_journal", "verify"]
