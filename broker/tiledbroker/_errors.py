"""All exceptions of the broker, in one file, so that the hierarchy shows every way in which it can fail."""

from __future__ import annotations

from pathlib import Path

from ._wording import as_sentence, format_command


class BrokerError(Exception):
    """Base of all errors raised by `tiledbroker`."""


class AddressError(BrokerError, ValueError):
    """Raised when an address cannot be parsed."""


class KeyFileError(BrokerError, ValueError):
    """Raised when a CURVE key file cannot be used; `path` is the file. The message never contains the key."""

    def __init__(self, path: object, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = str(path)


class WorkersUnusable(BrokerError):
    """Raised when what workers need cannot be loaded; the message says why."""


class CodecError(BrokerError, ValueError):
    """Raised when bytes are not a document that this codec encoded."""


class ProtocolError(BrokerError, ValueError):
    """Raised when frames from the network are not a valid message of the wire protocol."""


class ProtocolVersionError(ProtocolError):
    """Raised when a message has another protocol version; `version` is that of the message."""

    def __init__(self, version: int, own: int) -> None:
        super().__init__(f"The peer speaks protocol version {version}; this side speaks {own}. Upgrade the older side.")
        self.version = version


class RoutingError(BrokerError, LookupError):
    """Raised when a document belongs to no run whose start document was seen; `name` is the document's name."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"A {name!r} document belongs to no known run: {why}.")
        self.name = name


class JournalError(BrokerError):
    """Base of the errors about one journal or spool file; `path` is the file."""

    def __init__(self, path: object, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = str(path)


class DirectoryUnusable(JournalError):
    """Raised when a directory cannot hold journals."""


class JournalLocked(JournalError):
    """Raised when another process holds the journal's write lock, or will; `message` says which."""

    def __init__(
        self,
        path: object,
        message: str = "another process has it open for writing. Stop that process, or wait until it ends.",
    ) -> None:
        super().__init__(path, message)


class JournalInvalid(JournalError):
    """Raised when a file is not a journal, is damaged, or was written by a newer version."""


class JournalTooNew(JournalInvalid):
    """Raised when a newer version wrote the journal; it may be in order."""


class DocumentsMissing(JournalInvalid):
    """Raised when a journal lacks the documents from index `first` up to, not including, index `following`."""

    def __init__(self, path: object, first: int, following: int) -> None:
        super().__init__(path, f"it is damaged: document {first} is missing; the next one is {following}.")
        self.first = first
        self.following = following


class SpoolDamaged(JournalInvalid):
    """Raised when the contents of a spool file are not the documents that were appended to it."""


class JournalGap(JournalError):
    """Raised when appended documents start at index `received`, but the journal continues at index `expected`."""

    def __init__(self, path: object, expected: int, received: int) -> None:
        super().__init__(path, f"its next document is {expected}, but it was given document {received}.")
        self.expected = expected
        self.received = received


class StoreUnavailable(BrokerError):
    """Raised when the store of leases gives no answer, or none that is a lease; `place` is where it was looked for."""

    def __init__(self, place: object, message: str) -> None:
        super().__init__(f"{place}: {message}")
        self.place = str(place)


class LeaseHeld(BrokerError):
    """Raised when another host holds the lease of the service, and this one was not told to stand by."""


class LeaseLost(BrokerError):
    """Raised when the lease of the service could not be renewed in time, or another host has taken over."""


class NoSupervisor(BrokerError):
    """Raised when no supervisor uses the journal directory `directory`; `found` says what was found there instead."""

    def __init__(self, directory: object, found: str) -> None:
        super().__init__(f"No supervisor uses {directory}: {found}.")
        self.directory = str(directory)
        self.found = found


class SupervisorSilent(BrokerError):
    """Raised when the supervisor of `directory` gives no snapshot, or it is not known if there is one; see `reason`."""

    def __init__(self, directory: object, reason: str) -> None:
        super().__init__(f"The supervisor of {directory} gives no status: {reason}")
        self.directory = str(directory)
        self.reason = reason


class LifecycleError(BrokerError):
    """Raised when `event` is not allowed in the `state` of a run."""

    def __init__(self, state: object, event: object) -> None:
        super().__init__(f"A run that is {state} cannot be {event}.")
        self.state = state
        self.event = event


class PublisherClosed(BrokerError):
    """Raised when a closed publisher is given a document and `on_error="raise"`."""


class RunNotWritten(BrokerError):
    """Raised when run `run_uid` will not be complete in Tiled, for `reason`.

    The message names a command that shows more: for a run that is not shipped, one for the spool in `spool_dir`; else
    one for the ingest host, whose journal directory is not known here.
    """

    def __init__(self, run_uid: str, reason: str, *, spool_dir: Path | None = None) -> None:
        if spool_dir is None:
            # A uid may look like an option.
            name = ["--", run_uid] if run_uid.startswith("-") else [run_uid]
            command = format_command("tiledwriter-journal", "show", *name, "DIR")
            advice = f"More on the ingest host, where DIR is the journal directory: `{command}`"
        else:
            advice = f"More on this host: `{format_command('tiledwriter-journal', 'ls', '--spool', spool_dir)}`"
        super().__init__(f"Run {run_uid} was not written to Tiled: {as_sentence(reason)} {advice}")
        self.run_uid = run_uid
        self.reason = reason


class LogUnavailable(BrokerError):
    """Raised when the servers of a site's log give no answer, or refuse what was asked for."""


class PermissionMissing(LogUnavailable):
    """Raised when a server refuses to let this user "publish" or "subscribe" (`verb`) to a `subject`."""

    def __init__(self, verb: str, subject: str) -> None:
        super().__init__(f"this user lacks the permission to {verb} to {subject}")
        self.verb = verb
        self.subject = subject


class CallFailed(LogUnavailable):
    """Raised when JetStream answers a call with an error, of number `code`."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(description)
        self.code = code


class RunNotWhole(BrokerError):
    """Raised when documents of run `run_uid` are missing or damaged in a site's log; `reason` says which."""

    def __init__(self, run_uid: str, reason: str) -> None:
        super().__init__(f"Run {run_uid} is not whole: {as_sentence(reason)}")
        self.run_uid = run_uid
        self.reason = reason


class AppendRefused(BrokerError):
    """Raised when a subject of a site's log has another last message than was expected."""
