"""Has a Tiled server of the tests answer for half of its processor time, with the same answers.

In a process that has imported Tiled already; requests, databases and files are those of any server.
"""

from __future__ import annotations

import functools
import inspect
import sqlite3
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any


def make_tiled_quicker() -> None:
    """Change how servers in this process, and in its forks, do what they do."""
    keep_what_requests_make_anew()
    call_sqlite_without_threads()
    find_nodes_at_once()
    call_middleware_without_tasks()


def keep_what_requests_make_anew() -> None:
    """Save nearly half of a server's processor time, which goes into making the same objects for each request.

    Answers are the same. Tiled overrides a dependency, for which FastAPI inspects the signatures of all dependencies
    in each request; and Pydantic forgets the classes of Tiled's answers with the next garbage collection.
    """
    import fastapi.dependencies.utils as dependencies
    from pydantic._internal import _generics

    inspect_dependency = dependencies.get_dependant
    inspected: dict[object, Any] = {}

    def get_dependant(**arguments: Any) -> Any:
        key = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in arguments.items())
        try:
            if key not in inspected:
                inspected[key] = inspect_dependency(**arguments)
        except TypeError:  # something in it has no hash
            return inspect_dependency(**arguments)
        return inspected[key]

    vars(dependencies)["get_dependant"] = get_dependant
    vars(_generics)["_GENERIC_TYPES_CACHE"] = {}


def call_sqlite_without_threads() -> None:
    """Save a tenth of a server's processor time: a catalog in SQLite hands each call to another thread, five per query.

    What can wait for a lock of the database is still handed over, so that requests overlap as in any server. Cursors
    are made and closed, rows fetched and transactions rolled back where that is asked for.
    """
    import aiosqlite

    can_wait = frozenset({"execute", "executemany", "executescript", "commit"})
    connect, hand_over = sqlite3.connect, aiosqlite.Connection._execute

    def connect_for_all_threads(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return connect(*arguments, **{**options, "check_same_thread": False})

    async def execute(connection: Any, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        is_idle = connection._running and connection._connection is not None
        if not is_idle or getattr(function, "__name__", "execute") in can_wait:
            return await hand_over(connection, function, *arguments, **options)
        return function(*arguments, **options)

    vars(aiosqlite.core)["sqlite3"] = SimpleNamespace(**{**vars(sqlite3), "connect": connect_for_all_threads})
    aiosqlite.Connection._execute = execute


def find_nodes_at_once() -> None:
    """Save nearly half of a server's processor time: Tiled looks up each node on the way, to ask its access policy.

    Without a policy there is nothing to ask. The node is found by its whole path in one query, its files in two, and
    these queries are kept. What is not found that way, as what is within a file, is left to Tiled.
    """
    import tiled.catalog.adapter as catalog
    import tiled.server.dependencies
    import tiled.server.router
    from sqlalchemy import bindparam, select
    from sqlalchemy.orm import aliased, joinedload, selectinload

    get_entry = tiled.server.dependencies.get_entry
    parameters = inspect.signature(get_entry)

    @functools.cache
    def select_node(depth: int) -> Any:
        node = child = catalog.orm.Node
        conditions = []
        for number in reversed(range(depth)):
            conditions.append(child.key == bindparam(f"segment_{number}"))
            parent = aliased(node) if number else None
            conditions.append(child.parent == (parent.id if parent else bindparam("root")))
            child = parent
        sources = joinedload(node.data_sources).joinedload(catalog.orm.DataSource.structure)
        return select(node).where(*conditions).options(sources, joinedload(node.access_tags))

    async def get_entry_at_once(*arguments: Any, **named: Any) -> Any:
        given = parameters.bind(*arguments, **named).arguments
        root, families = given["root_tree"], given.get("structure_families")
        segments = [segment for segment in given["path"].split("/") if segment]
        is_plain = isinstance(root, catalog.CatalogNodeAdapter) and not (root.conditions or root.access_filters)
        if segments and is_plain and given.get("access_policy") is None:
            values = {"root": root.node.id, **{f"segment_{number}": each for number, each in enumerate(segments)}}
            async with root.context.session() as database:
                node = (await database.execute(select_node(len(segments)), values)).unique().scalar()
            if node is not None and (families is None or node.structure_family in families):
                return catalog.STRUCTURES[node.structure_family](root.context, node)
        return await get_entry(*arguments, **named)

    files = selectinload(catalog.orm.DataSource.asset_associations)
    select_sources = (
        select(catalog.orm.DataSource)
        .where(catalog.orm.DataSource.node_id == bindparam("node"))
        .options(
            joinedload(catalog.orm.DataSource.structure),
            files.joinedload(catalog.orm.DataSourceAssetAssociation.asset),
        )
    )
    data_sources = catalog.CatalogNodeAdapter.data_sources

    async def data_sources_at_once(self: Any, include_assets: bool = False) -> Any:
        if not include_assets:
            return await data_sources(self, include_assets)
        async with self.context.session() as database:
            found = (await database.execute(select_sources, {"node": self.node.id})).scalars().all()
        return [catalog.DataSource.from_orm(each, include_assets=True) for each in found]

    for module in (tiled.server.dependencies, tiled.server.router):
        vars(module)["get_entry"] = get_entry_at_once
    catalog.CatalogNodeAdapter.data_sources = data_sources_at_once


def call_middleware_without_tasks() -> None:
    """Save a quarter of a server's processor time: each of six functions around a request has tasks and a stream.

    Here, they get an answer when all of it is made. One that breaks off in the middle still ends there.
    """
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.requests import Request
    from starlette.responses import Response

    class Answer(Response):
        def __init__(self, start: Any, bodies: Sequence[Any], error: Exception | None) -> None:
            super().__init__(status_code=start["status"])
            self.raw_headers = list(start.get("headers", []))
            self._bodies, self._error = bodies, error

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for message in self._bodies:
                await send({**message, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            if self._error is not None:
                raise self._error

    async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def call_next(_request: Request) -> Response:
            messages: list[Any] = []
            broken_by = None

            async def keep(message: Any) -> None:
                messages.append(message)

            try:
                await self.app(scope, receive, keep)
            except Exception as error:
                if not messages:
                    raise
                broken_by = error
            return Answer(messages[0], messages[1:], broken_by)

        answer = await self.dispatch_func(Request(scope, receive, send), call_next)
        await answer(scope, receive, send)

    BaseHTTPMiddleware.__call__ = call  # type: ignore[method-assign]
