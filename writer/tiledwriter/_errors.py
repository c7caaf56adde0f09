"""All errors of the writer, except those that only end a command, which are in `cli`."""

from __future__ import annotations

import math
from typing import Any


class WriterError(Exception):
    """Base of all errors raised by `tiledwriter`."""


class DocumentError(WriterError, ValueError):
    """Raised when a document cannot be interpreted. The message names the document, the problem and a remedy."""


class DocumentInvalid(DocumentError):
    """Raised when a document has invalid content, which a patch may correct; `name` is the kind of document."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{problem}. Correct it with a patch for {name!r}, then retry the run.")
        self.name = name


class DocumentMisplaced(DocumentError):
    """Raised when a document cannot occur at its position in the run, whatever its content."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}. All documents are in the journal, from which they can be exported.")


class UnwritableDocument(WriterError):
    """Raised when a document of a journal cannot be turned into operations. `index` and `name` identify it."""

    def __init__(self, index: int, name: str, cause: Exception) -> None:
        super().__init__(f"Document {index} ({name}): {type(cause).__name__}: {cause}")
        self.index = index
        self.name = name
        self.__cause__ = cause


class PluginError(WriterError, ValueError):
    """Raised when a plugin cannot be imported or used; the message names the entry and the reason."""


class ServerError(WriterError):
    """Base of the errors about Tiled's answers."""


class OperationRefused(ServerError):
    """Raised when Tiled will never accept an operation, so that a person must look at it."""

    def __init__(self, operation: object, answer: str) -> None:
        super().__init__(f"Tiled refused {operation}: {answer}")
        self.operation = operation
        self.answer = answer


class NotOurs(OperationRefused):
    """Raised when a node that a run needs exists and belongs to something else."""


class TiledHasMore(ServerError):
    """Raised when Tiled holds data of a run that the journal does not have; `what` lists it. Nothing is undone."""

    def __init__(self, what: list[str]) -> None:
        listed = ", and ".join([", ".join(what[:-1]), what[-1]] if len(what) > 1 else what)
        super().__init__(f"Tiled has more of this run than this journal: {listed}. Nothing in Tiled was changed.")
        self.what = what


class FoldAgain(WriterError):
    """Base of the errors after which the run must be folded again from its first document."""


class ColumnsTooNarrow(FoldAgain):
    """Raised when values do not fit the planned columns; `needed` has sufficient types by stream and data key."""

    def __init__(self, needed: dict[tuple[str, str], str]) -> None:
        super().__init__(", ".join(f"{stream}/{key}: {kind}" for (stream, key), kind in needed.items()))
        self.needed = needed


class ColumnsRefused(OperationRefused, FoldAgain):
    """Raised when the server's table storage has no list columns; small arrays then need nodes of their own."""


class MimetypeRefused(OperationRefused, FoldAgain):
    """Raised when Tiled does not know how to read files of `mimetype`; their data keys are then left out."""

    def __init__(self, operation: object, answer: str, mimetype: str) -> None:
        super().__init__(operation, answer)
        self.mimetype = mimetype


class NodeRewound(FoldAgain):
    """Raised when `node` does not hold what was sent, so that its rows are sent again; `reason` is the difference."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(f"{node} {reason}; the run is folded again.")
        self.node = node
        self.reason = reason


class PoisonedOperation(OperationRefused):
    """Raised when Tiled keeps answering 500 to one operation although it answers other requests."""


class AuditFailed(ServerError):
    """Raised when `node` does not hold what was sent although it was rewritten several times."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(f"{node} {reason}, although it was rewritten several times.")
        self.node = node


class TiledUnavailable(ServerError):
    """Raised when Tiled did not carry out a request within the time that the caller can wait."""


class BackupUnreadable(WriterError):
    """Raised when a file is not a backup of runs. `path` and `line` locate the problem; the message has a remedy."""

    def __init__(self, path: object, line: int | None, problem: str) -> None:
        place = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: {problem}")
        self.path = path
        self.line = line


class NodeNotQuiet(WriterError):
    """Raised when an operation must wait until it is certain what Tiled has of the node.

    An earlier request may still change it, or what was read may be older than the last write.

    Attributes
    ----------
    decided_at
        Time at which the quiet period ends if nothing changes, in seconds of the catalog's clock.
    may_be_sooner
        True if an earlier reading can decide; False if none can, so that there is no use in reading before.
    """

    def __init__(self, decided_at: float = math.inf, *, may_be_sooner: bool = True) -> None:
        super().__init__()
        self.decided_at = decided_at
        self.may_be_sooner = may_be_sooner


class NodeStateError(WriterError):
    """Raised when `event` is not allowed in the `state` of the node at `path`, which is a defect."""

    def __init__(self, path: str, state: object, event: object) -> None:
        super().__init__(f"{path} is {state} and cannot be {event}; this is a defect.")
        self.path = path
        self.state = state
        self.event = event


class Stopped(WriterError):
    """Raised inside a worker when it is told to stop while it waits."""


class Refused(ServerError):
    """Raised when Tiled answers a request with a client error (4xx): its `status` and the server's `detail`.

    `may_be_ours` is True if an earlier attempt at the same request may have been carried out.
    """

    may_be_ours = False

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail


class NotProcessed(ServerError):
    """Raised when a request certainly had no effect.

    `retry_after` is the delay in seconds from the server's Retry-After header; None if there is no usable one.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Paused(NotProcessed):
    """Raised when no write can succeed until a person intervenes, for example to renew the credentials."""


class Ambiguous(ServerError):
    """Raised when it is unknown whether a request was carried out."""


class ServerFailed(Ambiguous):
    """Raised when Tiled answers 500: it failed, possibly because of the request itself."""


class NotTiled(Ambiguous):
    """Raised when a proxy or gateway in front of Tiled answers, with a redirect or a page of its own.

    A gateway may replace Tiled's response by its own, so the outcome of the request is unknown. `status` is the HTTP
    status of the response.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


def describe(error: BaseException) -> dict[str, Any]:
    """Return an error's type, text and traceback for a run's history."""
    import traceback

    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return {"error": type(error).__name__, "message": str(error), "traceback": "".join(lines)}
