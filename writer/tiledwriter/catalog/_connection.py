"""HTTP connection to Tiled: send requests, classify responses, and retry requests that are safe to repeat."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
import msgspec
import tenacity

from tiledbroker.protocol import messages

from .._errors import (
    Ambiguous,
    NotProcessed,
    Paused,
    PoisonedOperation,
    Refused,
    ServerFailed,
    Stopped,
    TiledUnavailable,
)
from ..mapping import POISON_AFTER_SECONDS
from ._probe import SQL_TABLE, DatabaseProbe
from ._request_builder import RequestBuilder
from ._request_counts import RequestCounts
from ._responses import raise_for_response

log = logging.getLogger(__name__)

TIMEOUT: Final = httpx.Timeout(connect=10.0, read=120.0, write=120.0, pool=10.0)
"""Seconds. The read timeout is long because the server may still carry out a request after the client gave up."""

POISON_FAILURES: Final = 6
"""Minimum number of 500 responses before an operation counts as poisoned.

A restart of PostgreSQL alone makes Tiled answer 500 to five requests.
"""

OLDEST_TILED: Final = (0, 2, 12)
"""First version that supports `order_by_args`; earlier ones always answer 500 for tables that have it."""

REACHED_INTERVAL_SECONDS: Final = 1.0
"""Time between two calls of `on_reached` while the server answers."""

_MAX_WAIT_SECONDS: Final = 30.0
_PROBE_TIMEOUT_SECONDS: Final = 20.0
# The operation fails once more between the two probes: an outage may have ended just before the first one.
_WRITE_PROBES_TO_CONDEMN: Final = 2
_VERSION: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
"""Errors of httpx after which a request certainly did not reach the server."""


_Answer = TypeVar("_Answer")


class WriteSlot(Protocol):
    """Permission to write to Tiled at the moment, of which a server takes only a few at a time.

    Attributes
    ----------
    storage
        Kind of the database that the server stores tables in, such as "sqlite"; "" while it is not known.
    """

    storage: str

    def acquire(self, stopping: threading.Event) -> None:
        """Wait for the slot, unless it is held; raise `Stopped` if `stopping` is set meanwhile."""

    def pause(self) -> None:
        """Release the slot between two requests if others have waited for long."""

    def rest(self) -> None:
        """Stop using the slot."""


class Client(Protocol):
    """The parts of a `tiled.client` container that `Connection` uses: its HTTP context and its path."""

    @property
    def context(self) -> Any: ...
    @property
    def path_parts(self) -> Any: ...


@dataclass(frozen=True)
class KnownServer:
    """A client that was made of what another process has learnt of the server, which need not answer at present.

    Attributes
    ----------
    context, path_parts
        As those of `Client`.
    connect_anew
        Returns a client that has asked the server itself.
    """

    context: Any
    path_parts: Sequence[str]
    connect_anew: Callable[[], Client]


class TiledTooOld(Paused):
    """Raised when the server's version is older than `OLDEST_TILED`."""


def check_version(client: Client) -> None:
    """Check the version of the client's server.

    Raises
    ------
    TiledTooOld
        The version is older than `OLDEST_TILED`. An unrecognized version string is accepted.
    """
    version = str(client.context.server_info.library_version)
    numbers = parse_version(version)
    if numbers is not None and numbers < OLDEST_TILED:
        needed = ".".join(map(str, OLDEST_TILED))
        raise TiledTooOld(
            f"Tiled at {client.context.api_uri} has version {version}, and {needed} or newer is needed. Upgrade it."
        )


def parse_version(version: str) -> tuple[int, ...] | None:
    """Return the three numbers that a version of Tiled begins with; None for an unrecognized version string."""
    match = _VERSION.match(version)
    return None if match is None else tuple(int(part or 0) for part in match.groups())


@dataclass
class _Failing:
    """An operation that has received only 500 responses since a time (`time.monotonic`) while the databases worked."""

    since: float
    failures: int = 0
    write_probes: int = 0


def _limit_timeout(timeout: httpx.Timeout, limit: float) -> httpx.Timeout:
    return httpx.Timeout(**{phase: min(seconds or limit, limit) for phase, seconds in timeout.as_dict().items()})


class _Wait(tenacity.wait.wait_base):
    """Exponential backoff with jitter; a server's Retry-After takes precedence, within `patience` (seconds)."""

    def __init__(self, patience: float | None = None, began: float = 0.0) -> None:
        self._patience = patience
        self._began = began
        self._max = _MAX_WAIT_SECONDS if patience is None else min(_MAX_WAIT_SECONDS, patience / 10)
        self._backoff = tenacity.wait_exponential(multiplier=0.2, max=_MAX_WAIT_SECONDS) + tenacity.wait_random(0, 0.2)

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        wait = min(self._max, self._backoff(retry_state))
        error = _error_of(retry_state)
        if isinstance(error, NotProcessed) and error.retry_after is not None:
            wait = error.retry_after
        if self._patience is None:
            return wait
        return min(wait, max(0.0, self._patience - (time.monotonic() - self._began)))


class _OutOfPatience(tenacity.stop.stop_base):
    """Stop condition: `patience` seconds have passed, or only a person can fix the error (`Paused`)."""

    def __init__(self, patience: float, began: float) -> None:
        self._deadline = began + patience

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return isinstance(_error_of(retry_state), Paused) or time.monotonic() >= self._deadline


def _error_of(retry_state: tenacity.RetryCallState) -> BaseException | None:
    return retry_state.outcome.exception() if retry_state.outcome else None


class Connection:
    """Requests to Tiled on behalf of one run.

    Parameters
    ----------
    connect
        Returns a `tiled.client` container to write into, or a `KnownServer`. Called on first use, again until it
        succeeds, and again after a response that asks for other credentials.
    stopping
        Ends all waiting when set.
    report
        Called with an event name and details when Tiled starts to refuse requests ("waiting", once per kind of error)
        and when it accepts them again ("resumed"). Details of "waiting": the `reason`; `away`, True if the server is
        unavailable; `needs_person`, True if waiting does not help.
    log_outages
        Log when Tiled starts to refuse requests because it is unavailable; False if another process does so.
    poison_after
        Seconds; see `POISON_AFTER_SECONDS`.
    patience
        Seconds after which a request that Tiled does not accept is given up; None: never. If set, an error that only
        a person can fix, such as refused credentials, is given up at once.
    write_slot
        Write slot to acquire for requests other than GET; None: no limit. Whoever has nothing more to write calls its
        `rest`.
    on_reached
        Called when the server is available for the first time, at once after each outage, and while it answers, at most
        every `REACHED_INTERVAL_SECONDS`.

    Attributes
    ----------
    probe
        Probe of the databases; callers that create nodes set its paths.
    counts
        Counts of the requests, and the last signs of the server.
    write_slot
        The write slot.
    stuck
        Why a request is repeated although the server accepts others, as a sentence; "" if there is no such request.
    was_disturbed
        Whether any request so far had no answer of Tiled that says that it was carried out or refused.
    absences
        Number of times that the server became unavailable.
    """

    def __init__(
        self,
        connect: Callable[[], Client],
        stopping: threading.Event,
        report: Callable[..., None],
        *,
        poison_after: float = POISON_AFTER_SECONDS,
        patience: float | None = None,
        write_slot: WriteSlot | None = None,
        on_reached: Callable[[], None] = lambda: None,
        log_outages: bool = True,
    ) -> None:
        self._connect = connect
        self._log_outages = log_outages
        self._on_reached = on_reached
        self._stopping = stopping
        self._report = report
        self._poison_after = poison_after
        self._patience = patience
        self.write_slot = write_slot
        self._timeout = TIMEOUT if patience is None else _limit_timeout(TIMEOUT, patience)
        self._client: Client | None = None
        self._builder: RequestBuilder | None = None
        self.probe = DatabaseProbe()
        self.counts = RequestCounts(messages.LATENCY_BOUNDS_SECONDS)
        self.stuck = ""
        self.was_disturbed = False
        self.absences = 0
        self._failing: dict[str, _Failing] = {}
        self._away_since: float | None = None
        self._present = False
        self._reached_at = float("-inf")
        # Kinds of errors that were reported, and whether the server was unavailable.
        self._reported: set[tuple[str, bool]] = set()

    @property
    def unavailable_since(self) -> float | None:
        """Time (`time.monotonic`) since which the server is unavailable; None while it is available.

        The server is unavailable if it does not answer, if the response is not from Tiled, asks for a retry or for
        other credentials, or is a 500 while the databases fail. Any other response ends the outage, including a 500
        while the databases work.
        """
        return self._away_since

    def send(
        self,
        method: str,
        endpoint: str,
        path: str,
        *,
        repeat: bool = True,
        before_reconnection: Callable[[], None] = lambda: None,
        tolerated_failures: int | None = None,
        json: Any = None,
        content: bytes | None = None,
        content_type: str = "application/json",
        params: Mapping[str, Any] | None = None,
    ) -> httpx.Response:
        """Send a request and retry it until the server carries it out or refuses it, for at most `patience` seconds.

        Parameters
        ----------
        method
            HTTP method.
        endpoint, path
            As in `/api/v1/<endpoint>/<path>`; `path` is relative to the container that runs are written to.
        repeat
            Send the request again if its outcome is unknown.
        before_reconnection
            Called before the request is sent again because there was no connection; what it raises ends this.
        tolerated_failures
            Number of 500 responses to tolerate; the next one raises `ServerFailed` if other writes work. None: keep
            retrying until the operation counts as poisoned.
        json
            Body, to be encoded as JSON.
        content, content_type
            Encoded body and its media type, if `json` is None.
        params
            Query parameters.

        Returns
        -------
        httpx.Response
            A 2xx response of Tiled.

        Raises
        ------
        Refused
            Tiled answered with a 4xx status; `may_be_ours` is set if an earlier attempt may have been carried out.
        Ambiguous
            The outcome is unknown and `repeat` is False.
        ServerFailed
            The server answered 500 more often than `tolerated_failures` while other writes work.
        PoisonedOperation
            The server keeps answering 500 to this operation while other writes work.
        TiledUnavailable
            The request did not succeed within `patience` seconds, or needs a person to intervene.
        Stopped
            `stopping` was set while waiting.
        """
        body = msgspec.json.encode(json) if json is not None else content
        what = f"{method} {endpoint}/{path}"
        failures = 0
        may_be_done = False
        was_connected = True

        def once() -> httpx.Response:
            if not was_connected:
                before_reconnection()
            try:
                return self._send_once(
                    what,
                    method,
                    endpoint,
                    path,
                    failures_expected=tolerated_failures is not None,
                    content=body,
                    content_type=None if body is None else content_type,
                    params=params,
                )
            except Refused as error:
                error.may_be_ours = may_be_done
                raise

        def again(error: BaseException) -> bool:
            nonlocal failures, may_be_done, was_connected
            was_connected = not isinstance(error.__cause__, _NEVER_SENT)
            may_be_done = may_be_done or isinstance(error, Ambiguous)
            failures += isinstance(error, ServerFailed)
            if tolerated_failures is not None and failures > tolerated_failures:
                if self.databases_can_write():
                    return False
                self._note_presence(error)
                failures = 0
            return isinstance(error, NotProcessed) or (repeat and isinstance(error, Ambiguous))

        return self._send_with_retries(what, once, again, failures_expected=tolerated_failures is not None)

    def open(self) -> None:
        """Connect, unless that is done already; wait as `send` does while the server does not answer.

        Raises
        ------
        TiledUnavailable, Stopped
            As `send`.
        """
        if self._client is None:
            self._send_with_retries("the connection", self._connect_once, _is_not_processed, failures_expected=False)

    def distrust_server(self) -> bool:
        """Ask the server again for what it has told another process; return False if this process has asked itself."""
        if not isinstance(self._client, KnownServer):
            return False
        self._client.context.http_client.close()
        self._connect, self._client = self._client.connect_anew, None
        return True

    def note_storage(self, source: Mapping[str, Any]) -> None:
        """Note the kind of database that a table's data source is in; other data sources tell nothing."""
        if self.write_slot is not None and (storage := storage_of(source)):
            self.write_slot.storage = storage

    def databases_can_read(self) -> bool:
        """Return True if the server can read from its databases."""
        return self.probe.can_read(self._send_probe_request)

    def databases_can_write(self) -> bool:
        """Return True if the server can read from and write to its databases."""
        return self.databases_can_read() and self.probe.can_write(self._send_probe_request)

    def _send_probe_request(
        self,
        method: str,
        endpoint: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        content_type: str = "application/json",
        params: Mapping[str, Any] | None = None,
    ) -> httpx.Response:
        """Send a request of the probe, with at most one repetition and no effect on the state of other requests."""
        body = msgspec.json.encode(json) if json is not None else content
        timeout = httpx.Timeout(_PROBE_TIMEOUT_SECONDS)
        arguments: dict[str, Any] = {
            "content": body,
            "content_type": None if body is None else content_type,
            "params": params,
            "timeout": timeout,
        }
        try:
            response = self._send_request(method, endpoint, path, **arguments)
        except (NotProcessed, Ambiguous):
            # Try once more: uvicorn closes a connection after a 500 response, so a pooled one may be dead.
            response = self._send_request(method, endpoint, path, **arguments)
        raise_for_response(response)
        return response

    def _send_with_retries(
        self,
        what: str,
        once: Callable[[], _Answer],
        again: Callable[[BaseException], bool],
        *,
        failures_expected: bool,
    ) -> _Answer:
        """Call `once`, and call it again as long as `again` returns True for the error that it raises."""
        began = time.monotonic()
        try:
            answer = once()
        except (NotProcessed, Ambiguous) as error:
            answer = self._retry(what, once, again, error, began, failures_expected=failures_expected)
        self._report_recovery()
        return answer

    def _retry(
        self,
        what: str,
        once: Callable[[], _Answer],
        again: Callable[[BaseException], bool],
        first_error: BaseException,
        began: float,
        *,
        failures_expected: bool,
    ) -> _Answer:
        """Go on after the first attempt, which began at a time (`time.monotonic`) and has failed with an error."""
        failures = [first_error]

        def attempt() -> _Answer:
            if failures:
                raise failures.pop()
            return once()

        def give_up(retry_state: tenacity.RetryCallState) -> NoReturn:
            error = _error_of(retry_state)
            seconds = round(time.monotonic() - began)
            within = f" within {seconds} s" if seconds else ""
            raise TiledUnavailable(f"Tiled has not completed {what}{within} ({error}).") from error

        def before_sleep(retry_state: tenacity.RetryCallState) -> None:
            error = _error_of(retry_state)
            self.counts.count_retry(error)
            if not (failures_expected and isinstance(error, ServerFailed)):
                self._tell_of(error)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(again),
            stop=tenacity.stop_never if self._patience is None else _OutOfPatience(self._patience, began),
            wait=_Wait(self._patience, began),
            sleep=self._sleep_interruptibly,
            before_sleep=before_sleep,
            retry_error_callback=None if self._patience is None else give_up,
            reraise=True,
        )
        answer: _Answer = retrying(attempt)
        return answer

    def _sleep_interruptibly(self, seconds: float) -> None:
        if self.write_slot is not None:
            self.write_slot.rest()
        if self._stopping.wait(seconds):
            raise Stopped("Stopped while waiting for Tiled.")

    def _connect_once(self) -> Client:
        try:
            client = self._ensure_client()
        except NotProcessed as error:
            self.counts.count_attempt(error, is_write=False)
            self._note_answer("the connection", error)
            raise
        if not isinstance(client, KnownServer):
            self._note_answer("the connection")
        return client

    def _ensure_client(self) -> Client:
        if self._client is None:
            try:
                client = self._connect()
                check_version(client)
                self._client = client
                self.counts.address, self.counts.version = _describe_server(client)
            except NotProcessed:
                raise
            except httpx.HTTPStatusError as error:
                try:
                    raise_for_response(error.response)
                except (Refused, Ambiguous) as answer:
                    raise NotProcessed(str(answer)) from error
            except httpx.HTTPError as error:
                raise NotProcessed(f"{type(error).__name__}: {error}") from error
            except Exception as error:
                # A missing profile, container or credential is for a person to fix and not the run's fault.
                raise Paused(f"no connection can be made: {type(error).__name__}: {error}") from error
        assert self._client is not None
        return self._client

    def _send_once(
        self, what: str, method: str, endpoint: str, path: str, *, failures_expected: bool, **arguments: Any
    ) -> httpx.Response:
        """Send a request once and update the state of the server from the response or its absence.

        `failures_expected`: the caller has a fallback if the server answers 500.
        """
        is_write = method != "GET"
        try:
            response = self._send_request(method, endpoint, path, **arguments)
            raise_for_response(response, str((arguments["params"] or {}).get("format", "application/json")))
        except ServerFailed as error:
            self.was_disturbed = True
            self.counts.count_attempt(error, is_write=is_write)
            if failures_expected:
                # A run must not be parked before its failures are counted, however slow the server is.
                self._note_answer(what, None if self.databases_can_read() else error)
            elif method == "GET" or endpoint == "stream/close":
                # These are never poisoned.
                self._note_answer(what, error)
            else:
                self._note_failure(what, error)
            raise
        except (NotProcessed, Ambiguous) as error:
            self.was_disturbed = True
            self.counts.count_attempt(error, is_write=is_write)
            if isinstance(error, Paused):
                # The next attempt makes a new client, with the credentials valid by then.
                self.distrust_server()
                self._client = None
            self._note_answer(what, error)
            raise
        except Refused as error:
            self.counts.count_attempt(error, is_write=is_write)
            self._note_answer(what)
            raise
        self.counts.count_attempt(None, is_write=is_write)
        self._note_answer(what)
        return response

    def _send_request(
        self, method: str, endpoint: str, path: str, *, timeout: httpx.Timeout | None = None, **arguments: Any
    ) -> httpx.Response:
        client = self._ensure_client()
        http_client: httpx.Client = client.context.http_client
        if self._builder is None or self._builder.client is not http_client:
            self._builder = RequestBuilder(http_client)
        url = f"{client.context.api_uri}{endpoint}/{quote_segments([*client.path_parts, *path.split('/')])}"
        request = self._builder.build(method, url, timeout=timeout or self._timeout, **arguments)
        is_write = method != "GET"
        if self.write_slot is not None and is_write:
            self.write_slot.acquire(self._stopping)
        elif self.write_slot is not None:
            # Others may write meanwhile.
            self.write_slot.rest()
        try:
            began = time.monotonic()
            # A redirect of a write leads to a login page, never to the requested resource.
            response = http_client.send(request, follow_redirects=False)
            self.counts.count_answer(time.monotonic() - began)
        except httpx.HTTPError as error:
            raise sort_transport_error(error) from error
        finally:
            if self.write_slot is not None and is_write:
                self.write_slot.pause()
        return response

    def _note_answer(self, what: str, problem: BaseException | None = None) -> None:
        """Note that the request was answered, or with `problem` that the server is not available."""
        if self._failing.pop(what, None) is not None:
            self.stuck = ""
        self._note_presence(problem)

    def _note_failure(self, what: str, error: ServerFailed) -> None:
        """Count a 500 against the request if the databases work; otherwise treat it as part of an outage.

        Raises
        ------
        PoisonedOperation
            The request has failed often and long enough while other writes work.
        """
        failing = self._failing.setdefault(what, _Failing(time.monotonic()))
        failing.failures += 1
        if not self.databases_can_read():
            self._note_answer(what, error)
            return
        self._note_presence()
        self.stuck = f"Tiled answers others, but fails at {what}, {failing.failures} times so far: {error}"
        if failing.failures < POISON_FAILURES or time.monotonic() - failing.since <= self._poison_after:
            return
        if not self.probe.can_write(self._send_probe_request):
            self._note_answer(what, error)
            return
        failing.write_probes += 1
        if failing.write_probes >= _WRITE_PROBES_TO_CONDEMN:
            seconds = time.monotonic() - failing.since
            raise PoisonedOperation(
                what, f"{error}, {failing.failures} times in {seconds:.0f} s, while others are done"
            )

    def _note_presence(self, problem: BaseException | None = None) -> None:
        well = problem is None
        self.counts.note_presence("" if problem is None else str(problem), needs_person=isinstance(problem, Paused))
        if well:
            self._away_since = None
            now = time.monotonic()
            if not self._present or now - self._reached_at >= REACHED_INTERVAL_SECONDS:
                self._reached_at = now
                self._on_reached()
        elif self._away_since is None:
            self._away_since = time.monotonic()
            self.absences += 1
        self._present = well

    def _tell_of(self, error: BaseException | None) -> None:
        away = self._away_since is not None
        topic = (type(error).__name__, away)
        if topic in self._reported:
            return
        self._reported.add(topic)
        needs_person = isinstance(error, Paused)
        level = logging.ERROR if needs_person else logging.WARNING
        until = "until it accepts them" if self._patience is None else f"for up to {self._patience:g} s"
        log.log(
            level if self._log_outages or not away else logging.DEBUG,
            "Tiled refuses requests (%s); they are tried again %s.",
            error,
            until,
        )
        self._report("waiting", reason=str(error), away=away, needs_person=needs_person)

    def _report_recovery(self) -> None:
        if self._reported:
            is_said = self._log_outages or any(not away for _, away in self._reported)
            self._reported.clear()
            log.log(logging.INFO if is_said else logging.DEBUG, "Tiled accepts requests again.")
            self._report("resumed")


def storage_of(source: Mapping[str, Any]) -> str:
    """Return the kind of database that a table's data source is in; "" if it is not known, or of another node."""
    assets = source.get("assets")
    if source.get("mimetype") != SQL_TABLE or not assets:
        return ""
    return urlsplit(str(assets[0]["data_uri"])).scheme.partition("+")[0]


def _is_not_processed(error: BaseException) -> bool:
    return isinstance(error, NotProcessed)


def _describe_server(client: Client) -> tuple[str, str]:
    """Return address and version of the client's server. An address may hold a password, which is left out."""
    parts = urlsplit(str(client.context.api_uri))
    base = parts.path.rstrip("/").removesuffix("/api/v1")
    path = "/".join([base, *filter(None, client.path_parts)])
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))
    return address, str(client.context.server_info.library_version)


def sort_transport_error(error: httpx.HTTPError) -> NotProcessed | Ambiguous:
    """Return the error for a request without an answer: whether Tiled may have carried it out."""
    kind = NotProcessed if isinstance(error, _NEVER_SENT) else Ambiguous
    return kind(f"{type(error).__name__}: {error}")


def quote_segments(segments: list[str]) -> str:
    """Return path segments joined as part of a URL; empty ones are left out."""
    return "/".join(quote(segment, safe="") for segment in segments if segment)
