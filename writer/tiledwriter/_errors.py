"""Every error of the writer in one place."""

from __future__ import annotations

from typing import Any


class WriterError(Exception):
    """Base of all errors raised by `tiledwriter`."""


class DocumentError(WriterError, ValueError):
    """Raised when a document cannot be understood; says which one, what is wrong and what to do."""


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


class ColumnsRefused(OperationRefused):
    """Raised when the server's table storage has no list columns; small arrays then need nodes of their own."""


class PoisonedOperation(OperationRefused):
    """Raised when Tiled keeps answering 500 to one operation while it is well otherwise."""


class RowCountMismatch(ServerError):
    """Raised when a table holds a number of rows that no append of ours explains."""

    def __init__(self, node: str, found: int, confirmed: int, intent: int | None) -> None:
        expected = f"{confirmed}" if intent is None else f"{confirmed} or {intent}"
        super().__init__(f"Table {node} holds {found} rows where {expected} are expected.")
        self.node = node
        self.found = found


class Stopped(WriterError):
    """Raised inside a worker that was told to stop while it waited."""


class Refused(ServerError):
    """Raised when one request was answered with a client error (4xx): `status` and the server's `detail`."""

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
