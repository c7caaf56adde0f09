"""Every error of the writer in one place."""

from __future__ import annotations

from typing import Any


class WriterError(Exception):
    """Base of all errors raised by `tiledwriter`."""


class DocumentError(WriterError, ValueError):
    """Raised when a document cannot be understood; says which one, what is wrong and what to do."""


class DocumentInvalid(DocumentError):
    """Raised when a document of a run is not what it has to be; a patch may correct it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{problem}. Correct it with a patch for {name!r}, then `tiledwriter-journal retry` the run.")
        self.name = name


class DocumentMisplaced(DocumentError):
    """Raised when a document cannot be where it is among the documents of a run, whatever it says."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}. What came is in the journal; `tiledwriter-journal export` takes it out.")


class UnwritableDocument(WriterError):
    """Raised when the core fails on a document of a journal: `index` and `name` say on which."""

    def __init__(self, index: int, name: str, cause: Exception) -> None:
        super().__init__(f"Document {index} ({name}): {type(cause).__name__}: {cause}")
        self.index = index
        self.name = name
        self.__cause__ = cause


class ServerError(WriterError):
    """Base of the errors about what Tiled answered."""


class OperationRefused(ServerError):
    """Raised when Tiled will never accept an operation: it is to be looked at by a human."""

    def __init__(self, operation: object, answer: str) -> None:
        super().__init__(f"Tiled refuses {operation}: {answer}")
        self.operation = operation
        self.answer = answer


class NotOurs(OperationRefused):
    """Raised when a node that a run needs exists and belongs to something else."""


class TiledHasMore(ServerError):
    """Raised when Tiled holds something of a run that the journal does not know, and that must not be undone."""

    def __init__(self, what: list[str]) -> None:
        listed = ", and ".join([", ".join(what[:-1]), what[-1]] if len(what) > 1 else what)
        super().__init__(f"Tiled has more of this run than this journal: {listed}. Nothing of that was changed.")
        self.what = what


class FoldAgain(WriterError):
    """Base of what makes it necessary to fold the run anew, from its first document."""


class ColumnsTooNarrow(FoldAgain):
    """Raised when values came that the columns planned for them do not take: `needed` has types that do."""

    def __init__(self, needed: dict[tuple[str, str], str]) -> None:
        super().__init__(", ".join(f"{stream}/{key}: {kind}" for (stream, key), kind in needed.items()))
        self.needed = needed


class ColumnsRefused(OperationRefused, FoldAgain):
    """Raised when the server's table storage has no list columns; small arrays then need nodes of their own."""


class NodeRewound(FoldAgain):
    """Raised when a node does not hold what was sent, and its rows are to be sent again: which, and what is wrong."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(f"{node} {reason}; it is written anew.")
        self.node = node
        self.reason = reason


class PoisonedOperation(OperationRefused):
    """Raised when Tiled keeps answering 500 to one operation while it is well otherwise."""


class AuditFailed(ServerError):
    """Raised when a node does not hold what was sent, however often it is written anew."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(f"{node} {reason}, although it was written anew several times.")
        self.node = node


class TiledUnavailable(ServerError):
    """Raised when Tiled did not carry out a request for as long as somebody could wait."""


class BackupUnreadable(WriterError):
    """Raised when a file is no backup of runs: `path` and `line` say where, the message what to do."""

    def __init__(self, path: object, line: int | None, problem: str) -> None:
        place = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: {problem}")
        self.path = path
        self.line = line


class Stopped(WriterError):
    """Raised inside a worker that was told to stop while it waited."""


class Refused(ServerError):
    """Raised when Tiled answered one request with a client error (4xx): `status` and the server's `detail`.

    `may_be_ours` is set if an earlier attempt at the same request may have been carried out.
    """

    may_be_ours = False

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail


class Ambiguous(ServerError):
    """Raised when a request may or may not have been carried out."""


def describe(error: BaseException) -> dict[str, Any]:
    """An error for a run's history: its type, its text and where it was raised."""
    import traceback

    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return {"error": type(error).__name__, "message": str(error), "traceback": "".join(lines)}
