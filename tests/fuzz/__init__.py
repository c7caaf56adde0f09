"""Bytes that nobody checked, fed to everything that takes such: see targets.py, and scripts/fuzz.py for campaigns."""
