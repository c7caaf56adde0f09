"""Records are decoded in several threads of a process, so their types are looked at when modules are loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

# msgspec keeps what it knows of a type before it is whole, and a second thread that decodes meanwhile crashes.
PROGRAM = """
import contextlib, sys
from tiledbroker.jetstream import Receipt, _stores, decode_claim, decode_host_lease, decode_receipt, encode_receipt
from tiledbroker.jetstream import parse_tail
from tiledbroker.jetstream._host_records import encode_claim, encode_host_lease
from tiledbroker.ownership import Claim, HostLease, Lease, _directory_store, _decision_file

looked_at = []


def note(frame, event, argument):
    if event == "call" and "msgspec" in frame.f_code.co_filename:
        looked_at.append(frame.f_code.co_name)


claim = encode_claim(Claim("a", "host", 1))
host_lease = encode_host_lease(HostLease(Lease("a", "host", 1, 1)))
receipt = encode_receipt(Receipt(next=3))
decoders = {
    "receipt": lambda: decode_receipt(receipt),
    "tail": lambda: parse_tail(1, {"Tw-Log": "[1, 2, false, 3, 4]"}),
    "lease in the log": lambda: decode_host_lease(host_lease),
    "claim": lambda: decode_claim(claim),
    "decisions in the log": lambda: _stores._decisions_decoder.decode(b"{}"),
    "lease in a directory": lambda: _directory_store._decoder.decode(b"{}"),
    "decisions in a file": lambda: _decision_file._decoder.decode(b"{}"),
}
sys.setprofile(note)
with contextlib.suppress(ValueError):
    decoders[sys.argv[1]]()
sys.setprofile(None)
print(",".join(looked_at))
"""


@pytest.mark.parametrize(
    "kind",
    [
        "receipt",
        "tail",
        "lease in the log",
        "claim",
        "decisions in the log",
        "lease in a directory",
        "decisions in a file",
    ],
)
def test_the_type_of_a_record_is_known_before_the_first_one_is_decoded(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "\n"
