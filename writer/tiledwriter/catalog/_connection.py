"""One HTTP connection to Tiled: sends requests, sorts answers, and repeats what is safe to repeat."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import quote

import httpx
import msgspec
import tenacity

from .._errors import Ambiguous, PoisonedOperation, Refused, Stopped, TiledUnavailable
from ..mapping import POISON_AFTER
from ._answers import NotProcessed, Paused, ServerFailed, sort_answer
from ._probe import DatabaseProbe
from ._turns import Turns

log = logging.getLogger(__name__)

TIMEOUT: Final = httpx.Timeout(connect=10.0, read=120.0, write=120.0, pool=10.0)
"""A long read timeout: a request that we give up on may still be carried out."""

POISON_FAILURES: Final = 6
"""How many of them there have to be: PostgreSQL's restart alone answers five requests with 500."""

OLDEST_TILED: Final = (0, 2, 12)
"""The first version that knows `order_by_args`; earlier ones answer 500 for ever to tables that have it."""

_MAX_WAIT: Final = 30.0
_PROBE_TIMEOUT_SECONDS: Final = 20.0
_WRITE_PROBES_TO_CONDEMN: Final = 2  # with one more failure between them: an outage may end just before the first
_VERSION: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


class Client(Protocol):
    """What is needed of a `tiled.client` container: where it is, and its connection."""

    @property
    def context(self) -> Any: ...
    @property
    def path_parts(self) -> Any: ...


class TiledTooOld(Paused):
    """Raised when the server's version is older than what can store our runs."""


def check_version(client: Client) -> None:
    """Raise `TiledTooOld` if the client's server cannot store what we write."""
    version = str(client.context.server_info.library_version)
    match = _VERSION.match(version)
    if match is not None and tuple(int(part or 0) for part in match.groups()) < OLDEST_TILED:
        needed = ".".join(map(str, OLDEST_TILED))
        raise TiledTooOld(
            f"Tiled at {client.context.api_uri} has version {version}, and {needed} or newer is needed. Upgrade it."
        )


@dataclass
class _Failing:
    """An operation that got nothing but 500 since a time (`time.monotonic`), while the databases were well."""

    since: float
    failures: int = 0
    write_probes: int = 0


def _shortened(timeout: httpx.Timeout, limit: float) -> httpx.Timeout:
    return httpx.Timeout(**{phase: min(seconds or limit, limit) for phase, seconds in timeout.as_dict().items()})


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

    Attributes
    ----------
    probe
        How it is found out that the databases are well; whoever makes nodes tells it of them.
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
        self.probe = DatabaseProbe()
        self._failing: dict[str, _Failing] = {}
        self._away_since: float | None = None
        self._present = False
        self._reported: set[str] = set()

    @property
    def away_since(self) -> float | None:
        """Since when (`time.monotonic`) the server takes no requests; None while it does.

        It does not while there is no answer, or one that is not Tiled's, or asks to come again or for other
        credentials, or a 500 while its databases are not well. Any other answer ends it, a 500 while they are well,
        too.
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
            Raise `ServerFailed` when the server has answered 500 more often than this, and takes other writes.

        Raises
        ------
        Refused
            With a 4xx status; `may_be_ours` says if an earlier attempt may have been carried out.
        Ambiguous
            Not known if it was carried out, and `repeat` is False.
        PoisonedOperation
            Other writes work, but the server keeps answering 500 to this.
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
        failures = 0
        may_be_done = False

        def once() -> httpx.Response:
            try:
                return self._once(
                    what,
                    method,
                    endpoint,
                    path,
                    # A GET or a close is never poison, nor is what the caller has another way for.
                    may_be_poison=not (method == "GET" or endpoint == "stream/close" or tolerated_failures is not None),
                    content=body,
                    headers=headers,
                    params=params,
                )
            except Refused as error:
                error.may_be_ours = may_be_done
                raise

        def again(error: BaseException) -> bool:
            nonlocal failures, may_be_done
            may_be_done = may_be_done or isinstance(error, Ambiguous)
            failures += isinstance(error, ServerFailed)
            if tolerated_failures is not None and failures > tolerated_failures:
                if self.writes_well():
                    return False
                failures = 0
            return isinstance(error, NotProcessed) or (repeat and isinstance(error, Ambiguous))

        return self._persistently(what, once, again, failures_expected=tolerated_failures is not None)

    def reads_well(self) -> bool:
        """Whether the server reads from its databases."""
        return self.probe.reads(self._ask)

    def writes_well(self) -> bool:
        """Whether the server writes to its databases, too."""
        return self.reads_well() and self.probe.writes(self._ask)

    def _ask(
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
        """Send a request for a probe: it is not repeated, and not part of what is known about other requests."""
        body = msgspec.json.encode(json) if json is not None else content
        headers = {"Accept-Encoding": "identity", **({} if body is None else {"Content-Type": content_type})}
        arguments = {"content": body, "headers": headers, "params": params, "timeout": _PROBE_TIMEOUT_SECONDS}
        try:
            response = self._request(method, endpoint, path, **arguments)
        except (NotProcessed, Ambiguous):
            # uvicorn closes a connection after it has answered 500 on it.
            response = self._request(method, endpoint, path, **arguments)
        sort_answer(response)
        return response

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
                client = self._connect()
                check_version(client)
                self._client = client
            except TiledTooOld:
                raise
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

    def _once(
        self, what: str, method: str, endpoint: str, path: str, *, may_be_poison: bool, **arguments: Any
    ) -> httpx.Response:
        """Send a request, and note what its answer, or that there is none, says about the server."""
        try:
            response = self._request(method, endpoint, path, **arguments)
            sort_answer(response, str((arguments["params"] or {}).get("format", "application/json")))
        except ServerFailed as error:
            if may_be_poison:
                self._note_failure(what, str(error))
            else:
                self._note_answer(what, well=False)
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
                # A redirect of a write leads to a login page, and never to what was asked for.
                response: httpx.Response = client.context.http_client.request(
                    method, url, **{"timeout": self._timeout, "follow_redirects": False, **arguments}
                )
        except _NEVER_SENT as error:
            raise NotProcessed(f"{type(error).__name__}: {error}") from error
        except httpx.HTTPError as error:
            raise Ambiguous(f"{type(error).__name__}: {error}") from error
        return response

    def _note_answer(self, what: str, *, well: bool) -> None:
        self._failing.pop(what, None)
        self._note_presence(well=well)

    def _note_failure(self, what: str, error: str) -> None:
        """A 500 while the databases are well is the request's own fault, perhaps; another one is part of an outage."""
        failing = self._failing.setdefault(what, _Failing(time.monotonic()))
        failing.failures += 1
        if not self.reads_well():
            self._note_answer(what, well=False)
            return
        self._note_presence(well=True)
        if failing.failures < POISON_FAILURES or time.monotonic() - failing.since <= self._poison_after:
            return
        if not self.probe.writes(self._ask):
            self._note_answer(what, well=False)
            return
        failing.write_probes += 1
        if failing.write_probes >= _WRITE_PROBES_TO_CONDEMN:
            seconds = time.monotonic() - failing.since
            raise PoisonedOperation(
                what, f"{error}, {failing.failures} times in {seconds:.0f} s, while others are done"
            )

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
