"""The routes of the HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route

from ._headers import SecurityHeaders
from ._history import PERIOD_SECONDS, History
from ._hosts import KnownHosts
from ._metrics import write_metrics
from ._options import package_directory
from ._page import Notice, Page
from ._retries import RetryDesk, RetryRefused
from ._scalars import JournalUnreadable, NoSuchRun, read_scalars
from ._source import Observation, SnapshotSource

log = logging.getLogger(__name__)

_STATIC: Final = Path(__file__).parent / "static"
# Found without importing the package, of which nothing else is needed.
_BOKEH: Final = package_directory("bokeh") / "server" / "static" / "js"
# The files that are served, by the names in their addresses. A name from an address never becomes a path.
_ASSETS: Final = {
    "page.css": (_STATIC / "page.css", "text/css"),
    "page.js": (_STATIC / "page.js", "text/javascript"),
    "bokeh.min.js": (_BOKEH / "bokeh.min.js", "text/javascript"),
    "bokeh-api.min.js": (_BOKEH / "bokeh-api.min.js", "text/javascript"),
}
# Their addresses contain their version, so that a browser loads them once.
_ASSET_HEADERS: Final = {"Cache-Control": "public, max-age=31536000, immutable"}

_MAX_BODY_BYTES: Final = 10_000
_MAX_UID_CHARACTERS: Final = 1000
# Journals read at a time, and how long what was read is good for others.
_JOURNAL_READERS: Final = 2
_SCALARS_SECONDS: Final = 1.0
_MAX_CACHED_RUNS: Final = 50
_NOTICE_SECONDS: Final = 60.0
_MAX_NOTICES: Final = 5


class StatusApp:
    """The HTTP application.

    Parameters
    ----------
    source
        Asks the supervisor.
    journal_dir
        Journal directory of the supervisor.
    token_file
        File with the token for retries; None allows none.
    names
        Names under which it may be asked, besides "localhost" and addresses; None: under any.
    """

    def __init__(
        self,
        source: SnapshotSource,
        journal_dir: Path,
        token_file: Path | None = None,
        names: Collection[str] | None = None,
    ) -> None:
        self._source = source
        self._names = names
        self._journal_dir = journal_dir
        self._desk = None if token_file is None else RetryDesk(journal_dir, token_file)
        self._page = Page(str(journal_dir), _version_of_assets(), may_retry=token_file is not None)
        self._history = History()
        self._notices: deque[Notice] = deque(maxlen=_MAX_NOTICES)
        self._rendered: tuple[Observation, str] | None = None
        self._readers = asyncio.Semaphore(_JOURNAL_READERS)
        self._scalars: dict[str, tuple[float, Response]] = {}

    def starlette(self) -> Starlette:
        """Return the application for a server; while it runs, samples are taken."""
        routes = [
            Route("/", self._show_page),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._metrics),
            Route("/api/status", self._status),
            Route("/api/history", self._show_history),
            Route("/api/runs/{uid:path}/scalars", self._show_scalars),
            Route("/assets/{version}/{name}", self._asset),
        ]
        if self._desk is not None:
            routes.append(Route("/retry", self._retry, methods=["POST"]))
        middleware = [Middleware(SecurityHeaders), Middleware(GZipMiddleware, minimum_size=1000, compresslevel=6)]
        if self._names is not None:
            middleware.insert(0, Middleware(KnownHosts, names=self._names))
        return Starlette(routes=routes, middleware=middleware, lifespan=self._sample)

    @contextlib.asynccontextmanager
    async def _sample(self, _: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self._take_samples())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _take_samples(self) -> None:
        while True:
            try:
                await self.take_sample()
            except Exception:
                log.exception("A sample could not be taken.")
            await asyncio.sleep(PERIOD_SECONDS)

    async def take_sample(self) -> None:
        """Ask the supervisor, and keep what is plotted."""
        self._history.add_observation(await self._source.observe())

    # For programs.

    async def _healthz(self, _: Request) -> Response:
        return PlainTextResponse("This process works. /readyz says whether the supervisor does.\n")

    async def _readyz(self, _: Request) -> Response:
        observation = await self._source.observe()
        snapshot = observation.current
        if snapshot is None:
            return PlainTextResponse(f"The supervisor does not answer: {observation.problem}.\n", 503)
        stands_by = snapshot.lease is not None and not snapshot.lease.held
        if stands_by or snapshot.state not in {"well", "degraded"}:
            reason = "; ".join(snapshot.reasons) or "the supervisor does not say why"
            return PlainTextResponse(f"{'standby' if stands_by else snapshot.state}: {reason}\n", 503)
        return PlainTextResponse(f"{snapshot.state}\n")

    async def _metrics(self, request: Request) -> Response:
        body, content_type = write_metrics(await self._source.observe(), request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    async def _status(self, _: Request) -> Response:
        observation = await self._source.observe()
        if observation.problem is None and observation.answer is not None:
            return Response(observation.answer.text, media_type="application/json")
        away = {"error": observation.problem, "since": observation.away_since, "last_answer": observation.answered}
        return JSONResponse(away, 503)

    async def _show_history(self, _: Request) -> Response:
        body = msgspec.json.encode({"period": PERIOD_SECONDS, "columns": self._history.columns()})
        return Response(body, media_type="application/json")

    async def _show_scalars(self, request: Request) -> Response:
        uid = request.path_params["uid"]
        if len(uid) > _MAX_UID_CHARACTERS:
            return JSONResponse({"error": "the uid is too long"}, 404)
        async with self._readers:
            read_at, response = self._scalars.get(uid, (0.0, None))
            if response is None or time.monotonic() - read_at > _SCALARS_SECONDS:
                response = await asyncio.to_thread(_scalars_response, self._journal_dir, uid)
                self._scalars[uid] = time.monotonic(), response
                while len(self._scalars) > _MAX_CACHED_RUNS:
                    del self._scalars[next(iter(self._scalars))]
        return Response(response.body, response.status_code, media_type="application/json")

    # For people.

    async def _show_page(self, _: Request) -> Response:
        observation = await self._source.observe()
        rendered = self._rendered
        if rendered is None or rendered[0] is not observation:
            while self._notices and observation.now - self._notices[0].time > _NOTICE_SECONDS:
                self._notices.popleft()
            page = self._page.render(observation, self._history.columns(), tuple(self._notices))
            self._rendered = rendered = observation, page
        return _html_response(rendered[1])

    async def _retry(self, request: Request) -> Response:
        assert self._desk is not None
        try:
            fields = await _read_form(request)
            self._desk.check_token(fields.get("token", ""))
            uid = fields.get("uid", "")
            self._desk.request_retry(uid, (await self._source.observe()).current)
        except RetryRefused as error:
            return PlainTextResponse(f"{error}\n", error.status)
        log.info("The page asked for a retry of run %s.", uid)
        self._notices.append(Notice(time.time(), f"Run {uid}: the supervisor was asked to retry it."))
        self._rendered = None
        return RedirectResponse("/", 303)

    async def _asset(self, request: Request) -> Response:
        path, media_type = _ASSETS.get(request.path_params["name"], (None, None))
        if path is None:
            return PlainTextResponse("There is no such file.\n", 404)
        return FileResponse(path, headers=_ASSET_HEADERS, media_type=media_type)


def _scalars_response(journal_dir: Path, uid: str) -> Response:
    try:
        result: dict[str, Any] = read_scalars(journal_dir, uid)
    except NoSuchRun:
        return JSONResponse({"error": f"there is no journal of this run in {journal_dir}"}, 404)
    except JournalUnreadable as error:
        return JSONResponse({"error": str(error)}, 500)
    return Response(msgspec.json.encode(result), media_type="application/json")


def _html_response(page: str) -> Response:
    # A lone surrogate in a text from elsewhere has no UTF-8.
    return Response(page.encode("utf-8", "backslashreplace"), media_type="text/html")


async def _read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form; the token may also come as `Authorization: Bearer TOKEN`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise RetryRefused(413, "The form is too long.")
    fields = {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace"), max_num_fields=10).items()}
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    return {**fields, "token": credentials} if scheme.lower() == "bearer" else fields


def _version_of_assets() -> str:
    """Return a text that changes with the files that are served."""
    digest = hashlib.sha256(version("bokeh").encode())
    for path in (_STATIC / "page.css", _STATIC / "page.js"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
