"""One HTTP connection to Tiled: sends requests, sorts answers, and repeats what is safe to repeat."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import quote

import httpx
import msgspec
import tenacity

from ._errors import Ambiguous, PoisonedOperation, Refused, ServerError, Stopped, TiledUnavailable
from ._turns import Turns

log = logging.getLogger(__name__)

TIMEOUT: Final = httpx.Timeout(connect=10.0, read=120.0, write=120.0, pool=10.0)
"""A long read timeout: a request that we give up on may still be carried out."""

POISON_AFTER: Final = 60.0
"""Seconds of nothing but 500 for one operation, from a server that is well, until it counts as poison."""

_MAX_WAIT: Final = 30.0
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
_PAUSE_STATUSES: Final = frozenset({401, 403})
_AMBIGUOUS_4XX: Final = frozenset({408})


class NotProcessed(ServerError):
    """Raised when a request certainly had no effect; `retry_after` in seconds, if the server named it."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Paused(NotProcessed):
    """Raised when the server does not accept our credentials: nothing can be written until that is mended."""


class ServerFailed(Ambiguous):
    """Raised when the server answered 500: something broke there, perhaps because of what was asked."""


class Client(Protocol):
    """What is needed of a `tiled.client` container: where it is, and its connection."""

    @property
    def context(self) -> Any: ...
    @property
    def path_parts(self) -> Any: ...


def sort_answer(response: httpx.Response) -> None:
    """Return if the request was carried out; else raise what that means.

    Raises
    ------
    NotProcessed, Paused
        It had no effect, and may be sent again.
    Refused
        The server will not do it.
    Ambiguous
        It may have been carried out.
    """
    status = response.status_code
    if status < 400:
        return
    detail = _detail(response)
    if status == 429:
        raise NotProcessed(f"429: {detail}", _seconds(response.headers.get("Retry-After")))
    if status in _PAUSE_STATUSES:
        raise Paused(f"{status}: {detail}")
    if status == 500:
        raise ServerFailed(f"500: {detail}")
    if status > 500 or status in _AMBIGUOUS_4XX:
        raise Ambiguous(f"{status}: {detail}")
    raise Refused(status, detail)


def _detail(response: httpx.Response) -> str:
    if response.headers.get("content-type", "").startswith("application/json"):
        try:
            return str(response.json().get("detail", ""))[:2000]
        except (ValueError, AttributeError):
            pass
    return response.reason_phrase


def _shortened(timeout: httpx.Timeout, limit: float) -> httpx.Timeout:
    return httpx.Timeout(**{phase: min(seconds or limit, limit) for phase, seconds in timeout.as_dict().items()})


def _seconds(header: str | None) -> float | None:
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return min(seconds, 600.0) if seconds >= 0 else None


class _Wait(tenacity.wait.wait_base):
    """Exponential backoff with jitter; a server that names a time gets it, unless that is beyond our patience."""

    def __init__(self, patience: float | None = None) -> None:
        self._patience = patience
        self._max = _MAX_WAIT if patience is None else min(_MAX_WAIT, patience / 10)
        self._backoff = tenacity.wait_exponential(multiplier=0.2, max=_MAX_WAIT) + tenacity.wait_random(0, 0.2)

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        wait = min(self._max, self._backoff(retry_state))
        error = _error_of(retry_state)
        if isinstance(error, NotProcessed) and error.retry_after is not None:
            wait = error.retry_after
        if self._patience is None:
            return wait
        return min(wait, max(0.0, self._patience - (retry_state.seconds_since_start or 0.0)))


class _OutOfPatience(tenacity.stop.stop_base):
    """Ends trying after a time; at once where only a human could help."""

    def __init__(self, patience: float) -> None:
        self._patience = patience

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return isinstance(_error_of(retry_state), Paused) or (retry_state.seconds_since_start or 0.0) >= self._patience


def _error_of(retry_state: tenacity.RetryCallState) -> BaseException | None:
    return retry_state.outcome.exception() if retry_state.outcome else None


class Connection:
    """Requests to Tiled, on behalf of one run.

    Parameters
    ----------
    connect
        Makes a `tiled.client` container to write into; called when first needed, and again until it succeeds.
    stopping
        Ends all waiting when set.
    report
        Told of every retry: event name and details, for the run's history.
    poison_after
        Seconds; see `POISON_AFTER`.
    turns
        Waited for before each request that writes; None: no need to.
    patience
        Seconds after which a request that Tiled does not take is given up; None: never. Credentials that it does not
        accept are then given up at once.
    on_reached
        Called when the server answers for the first time, and again after it was away.
    """

    def __init__(
        self,
        connect: Callable[[], Client],
        stopping: threading.Event,
        report: Callable[..., None],
        *,
        poison_after: float = POISON_AFTER,
        patience: float | None = None,
        turns: Turns | None = None,
        on_reached: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._on_reached = on_reached
        self._stopping = stopping
        self._report = report
        self._poison_after = poison_after
        self._patience = patience
        self._turns = turns
        self._timeout = TIMEOUT if patience is None else _shortened(TIMEOUT, patience)
        self._client: Client | None = None
        self._failing_since: dict[str, float] = {}
        self._away_since: float | None = None
        self._present = False
        self._reported: set[str] = set()

    @property
    def away_since(self) -> float | None:
        """Since when (`time.monotonic`) the server takes no requests; None while it does.

        It does not while there is no answer, or one that asks to come again or for other credentials, or a 500 from a
        server that is not well. Any other answer ends it, a 500 from a server that is well, too.
        """
        return self._away_since

    def send(
        self,
        method: str,
        endpoint: str,
        path: str,
        *,
        repeat: bool = True,
        tolerated_failures: int | None = None,
        json: Any = None,
        content: bytes | None = None,
        content_type: str = "application/json",
        params: Mapping[str, Any] | None = None,
    ) -> httpx.Response:
        """Send a request until it is carried out or refused, for ever if need be and patience allows.

        Parameters
        ----------
        endpoint, path
            As in `/api/v1/<endpoint>/<path>`; `path` is relative to the container runs are written to.
        repeat
            Whether the request may be sent again when it is not known if it was carried out.
        tolerated_failures
            Raise `ServerFailed` when the server has answered 500 more often than this.

        Raises
        ------
        Refused
            With a 4xx status.
        Ambiguous
            Not known if it was carried out, and `repeat` is False.
        PoisonedOperation
            The server is well, but keeps answering 500 to this.
        TiledUnavailable
            Patience has an end, and was at it.
        Stopped
            `stopping` was set while waiting.
        """
        body = msgspec.json.encode(json) if json is not None else content
        # Answers are short, but for columns; and who decodes what Tiled would send imports blosc2, of 13 MiB, in 80 ms.
        headers = {"Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = content_type
        what = f"{method} {endpoint}/{path}"

        def once() -> httpx.Response:
            return self._once(what, method, endpoint, path, content=body, headers=headers, params=params)

        failures = 0

        def again(error: BaseException) -> bool:
            nonlocal failures
            failures += isinstance(error, ServerFailed)
            if tolerated_failures is not None and failures > tolerated_failures:
                return False
            return isinstance(error, NotProcessed) or (repeat and isinstance(error, Ambiguous))

        return self._persistently(what, once, again, failures_expected=tolerated_failures is not None)

    def healthy(self) -> bool:
        """Whether the server answers at all."""
        for _ in range(2):  # uvicorn closes a connection after it has answered 500 on it
            try:
                client = self._connected()
                url = str(client.context.api_uri).partition("/api/")[0] + "/healthz"
                return bool(client.context.http_client.get(url, timeout=10.0).status_code == 200)
            except httpx.ConnectError:
                return False
            except (httpx.HTTPError, NotProcessed):
                continue
        return False

    def _persistently(
        self,
        what: str,
        once: Callable[[], httpx.Response],
        again: Callable[[BaseException], bool],
        *,
        failures_expected: bool,
    ) -> httpx.Response:
        def give_up(retry_state: tenacity.RetryCallState) -> NoReturn:
            error = _error_of(retry_state)
            seconds = retry_state.seconds_since_start or 0.0
            raise TiledUnavailable(f"Tiled has not done {what} in {seconds:.0f} s ({error}).") from error

        def before_sleep(retry_state: tenacity.RetryCallState) -> None:
            error = _error_of(retry_state)
            if not (failures_expected and isinstance(error, ServerFailed)):
                self._tell_of(error)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(again),
            stop=tenacity.stop_never if self._patience is None else _OutOfPatience(self._patience),
            wait=_Wait(self._patience),
            sleep=self._sleep,
            before_sleep=before_sleep,
            retry_error_callback=None if self._patience is None else give_up,
            reraise=True,
        )
        response: httpx.Response = retrying(once)
        self._recovered()
        return response

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise Stopped("Stopped while waiting for Tiled.")

    def _connected(self) -> Client:
        if self._client is None:
            try:
                self._client = self._connect()
            except httpx.HTTPStatusError as error:
                try:
                    sort_answer(error.response)
                except (Refused, Ambiguous) as answer:
                    raise NotProcessed(str(answer)) from error
            except httpx.HTTPError as error:
                raise NotProcessed(f"{type(error).__name__}: {error}") from error
            except Exception as error:
                # No such profile or container, no credentials: for a human to mend, and no fault of the run.
                raise Paused(f"{type(error).__name__}: {error}") from error
        assert self._client is not None
        return self._client

    def _once(self, what: str, method: str, endpoint: str, path: str, **arguments: Any) -> httpx.Response:
        """Send a request, and note what its answer, or that there is none, says about the server."""
        try:
            response = self._request(method, endpoint, path, **arguments)
            sort_answer(response)
        except ServerFailed as error:
            self._note_failure(what, str(error))
            raise
        except (NotProcessed, Ambiguous) as error:
            if isinstance(error, Paused):
                self._client = None  # the next one has the credentials of then
            self._note_answer(what, well=False)
            raise
        except Refused:
            self._note_answer(what, well=True)
            raise
        self._note_answer(what, well=True)
        return response

    def _request(self, method: str, endpoint: str, path: str, **arguments: Any) -> httpx.Response:
        client = self._connected()
        url = f"{client.context.api_uri}{endpoint}/{_quoted([*client.path_parts, *path.split('/')])}"
        turns = None if method == "GET" else self._turns
        try:
            with nullcontext() if turns is None else turns.turn(self._stopping):
                response: httpx.Response = client.context.http_client.request(
                    method, url, timeout=self._timeout, **arguments
                )
        except _NEVER_SENT as error:
            raise NotProcessed(f"{type(error).__name__}: {error}") from error
        except httpx.HTTPError as error:
            raise Ambiguous(f"{type(error).__name__}: {error}") from error
        return response

    def _note_answer(self, what: str, *, well: bool) -> None:
        self._failing_since.pop(what, None)
        self._note_presence(well=well)

    def _note_failure(self, what: str, error: str) -> None:
        """A 500 of a server that is well is the request's own fault, perhaps; of another, it is part of an outage.

        Poison is told by time and not by count: PostgreSQL's restart alone answers five requests with 500.
        """
        since = self._failing_since.setdefault(what, time.monotonic())
        if not self.healthy():
            self._note_answer(what, well=False)
            return
        self._note_presence(well=True)
        if time.monotonic() - since > self._poison_after:
            raise PoisonedOperation(what, f"{error}, for {self._poison_after:.0f} s, while the server is well")

    def _note_presence(self, *, well: bool) -> None:
        if well:
            self._away_since = None
            if not self._present:
                self._on_reached()
        elif self._away_since is None:
            self._away_since = time.monotonic()
        self._present = well

    def _tell_of(self, error: BaseException | None) -> None:
        topic = type(error).__name__
        if topic in self._reported:
            return
        self._reported.add(topic)
        level = logging.ERROR if isinstance(error, Paused) else logging.WARNING
        until = "until it does" if self._patience is None else f"for up to {self._patience:g} s"
        log.log(level, "Tiled does not take requests (%s); trying again %s.", error, until)
        self._report("waiting", reason=str(error))

    def _recovered(self) -> None:
        if self._reported:
            self._reported.clear()
            log.info("Tiled takes requests again.")
            self._report("resumed")


def _quoted(segments: list[str]) -> str:
    return "/".join(quote(segment, safe="") for segment in segments if segment)
