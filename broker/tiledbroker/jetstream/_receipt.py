"""Receipts: what the ingest hosts tell publishers of each run, as a record in the bucket of runs.

Only a receipt lets a spool go. That documents are in the log does not: its servers acknowledge what they may lose.
"""

from __future__ import annotations

from typing import Final

import msgspec

from .._outcomes import COMPLETE
from ._record import RECORD_VERSION, compute_checksum, decode_record


class Receipt(msgspec.Struct, frozen=True):
    """What the ingest host that reads a run has of it.

    Attributes
    ----------
    next
        Index of the next document that its journal expects.
    ended
        The journal has the end of the run.
    outcome, reason
        Outcome as in `messages.Written`, and its reason; "" if there is none.
    start_crc
        CRC-32 of the start document of the run that is meant.
    end_crc
        CRC-32 of the last document in the journal, once the run has ended; None if unknown.
    refused
        Reason why the ingest host does not take the run; "" if it does.
    delayed
        Reason why it takes no documents at the moment; "" if it does.
    seq
        Number in the stream of a message with or behind which document `next` is; 0 if unknown.
    host
        The ingest host.
    at
        Unix time of the receipt.
    """

    next: int = 0
    ended: bool = False
    outcome: str = ""
    reason: str = ""
    start_crc: int | None = None
    end_crc: int | None = None
    refused: str = ""
    delayed: str = ""
    seq: int = 0
    host: str = ""
    at: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether all documents of the run are in Tiled."""
        return self.ended and self.outcome in COMPLETE


class _Record(msgspec.Struct, frozen=True):
    """The value of a key, as JSON."""

    version: int
    receipt: Receipt
    crc32: int


# Made here: msgspec must not look at a type in two threads at once.
_decoder: Final = msgspec.json.Decoder(_Record)


def encode_receipt(receipt: Receipt) -> bytes:
    """Return the value of a receipt's key."""
    return msgspec.json.encode(_Record(RECORD_VERSION, receipt, compute_checksum(receipt)))


def decode_receipt(value: bytes) -> Receipt:
    """Return the receipt of a value.

    Raises
    ------
    ProtocolError
        It is damaged, or of a newer version.
    """
    return decode_record(_decoder, value, lambda record: record.receipt, "A receipt")
