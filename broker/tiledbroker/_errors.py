"""Every error of the broker in one place, so that a reader sees what can go wrong and whose fault it was."""

from __future__ import annotations

import shlex


class BrokerError(Exception):
    """Base of all errors raised by `tiledbroker`."""


class AddressError(BrokerError, ValueError):
    """Raised when a ZeroMQ address cannot be understood."""


class KeyFileError(BrokerError, ValueError):
    """Raised when a CURVE key cannot be used; `path` says which. Never quotes the key."""

    def __init__(self, path: object, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = str(path)


class CodecError(BrokerError, ValueError):
    """Raised when bytes are not a document this codec wrote."""


class ProtocolError(BrokerError, ValueError):
    """Raised when frames from the network are not a message of ours."""


class ProtocolVersionError(ProtocolError):
    """Raised when a message is of another version of the protocol; `version` says which."""

    def __init__(self, version: int, own: int) -> None:
        super().__init__(f"The peer speaks protocol version {version}; this side speaks {own}.")
        self.version = version


class RoutingError(BrokerError, LookupError):
    """Raised when a document cannot be assigned to a run whose start was seen."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"A {name!r} document belongs to no known run: {why}.")
        self.name = name


class JournalError(BrokerError):
    """Base of the errors about one journal or spool file; `path` says which."""

    def __init__(self, path: object, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = str(path)


class DirectoryUnusable(JournalError):
    """Raised when a directory cannot hold journals."""


class JournalLocked(JournalError):
    """Raised when another process is writing this journal."""

    def __init__(self, path: object) -> None:
        super().__init__(path, "another process has it open for writing. Stop that process, or wait for it.")


class JournalInvalid(JournalError):
    """Raised when a file is not a journal, is damaged, or was written by a newer version."""


class DocumentsMissing(JournalInvalid):
    """Raised when a journal lacks documents from index `first` on; the next one it has is `following`."""

    def __init__(self, path: object, first: int, following: int) -> None:
        super().__init__(path, f"it is damaged: document {first} is missing; the next is {following}.")
        self.first = first
        self.following = following


class SpoolDamaged(JournalInvalid):
    """Raised when a spool file does not hold what was appended to it."""


class JournalGap(JournalError):
    """Raised when documents do not continue where the journal ends."""

    def __init__(self, path: object, expected: int, received: int) -> None:
        super().__init__(path, f"it continues at document {expected}, but was given document {received}.")
        self.expected = expected
        self.received = received


class LifecycleError(BrokerError):
    """Raised when an event is not possible in the state a run is in."""

    def __init__(self, state: object, event: object) -> None:
        super().__init__(f"A run that is {state} cannot be {event}.")
        self.state = state
        self.event = event


class PublisherClosed(BrokerError):
    """Raised when a closed publisher is given a document and `on_error="raise"`."""


class RunNotWritten(BrokerError):
    """Raised when the ingest host reports that a run will not be complete in Tiled."""

    def __init__(self, run_uid: str, reason: str) -> None:
        command = f"`tiledwriter-journal show {shlex.quote(run_uid)}`"  # somebody may copy it into a shell
        super().__init__(f"Run {run_uid} was not written to Tiled: {reason}. See {command}.")
        self.run_uid = run_uid
        self.reason = reason
