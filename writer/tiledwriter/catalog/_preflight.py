"""Pre-flight checks of Tiled: reachable, version, key, scopes, container, and a probe node that is deleted again.

Each check gives one result. A check that depends on one that failed is skipped, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from pydantic import ValidationError

from .._check_results import CheckResult, CheckState
from .._errors import NotTiled, Paused, Refused, ServerError
from ..mapping import RUN_SPEC, MappedUri
from ._account import DELETING_SCOPES, KEY_SCOPES, NEEDED_SCOPES, AccountRequests, parse_time
from ._connection import OLDEST_TILED, Client, TiledTooOld, check_version, parse_version
from ._preflight_probe import Leftover, ProbeContainer
from ._preflight_requests import PreflightRequests

TILED: Final = "tiled"
VERSION: Final = "version"
KEY: Final = "key"
SCOPES: Final = "scopes"
FENCE: Final = "fence"
CONTAINER: Final = "container"
PROBE: Final = "probe"
STORAGE: Final = "storage"
FILES: Final = "files"
SERVER_CHECKS: Final = (TILED, VERSION, KEY, SCOPES, FENCE, CONTAINER, PROBE, STORAGE, FILES)
"""Names of the checks, in their order."""

_EXPIRES_SOON: Final = timedelta(days=14)
_PROBE_KEY_SECONDS: Final = 60
_NO_SCOPES_WORDS: Final = "Not enough permissions"


@dataclass(frozen=True)
class PreflightOptions:
    """What the checks of Tiled have to know of the configuration.

    Attributes
    ----------
    address
        Tiled's address, for people.
    key_source
        Where the API key comes from, for people; None if there is none.
    write_slots
        Workers that may write at a time; None for as many as the storage takes.
    directories
        Directories on the Tiled server that external files are in, as URIs, by the rule of the path map.
    files
        External files that Tiled has to be able to read, after the path map.
    skip
        Names of the checks that the user does not want: "probe", "files".
    """

    address: str
    key_source: str | None = None
    write_slots: int | None = None
    directories: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[MappedUri] = ()
    skip: frozenset[str] = frozenset()


class _Blocked(Exception):
    """Raised when no further check of the server makes sense, after the result that says why."""


class ServerChecks:
    """Checks of a Tiled server.

    Parameters
    ----------
    open_client
        Connects to the server without reading a node, and raises what Tiled's client raises.
    options
        The configuration.
    """

    def __init__(self, open_client: Callable[[], Client], options: PreflightOptions) -> None:
        self._open_client = open_client
        self._options = options
        self._may_delete: bool | None = None
        self._scopes_known = False

    def run(self) -> Iterator[CheckResult]:
        """Yield one result for each of `SERVER_CHECKS`."""
        left = list(SERVER_CHECKS)
        failed = ""
        try:
            for result in self._run_steps():
                left.remove(result.name)
                failed = result.name
                yield result
        except _Blocked:
            for name in left:
                yield CheckResult.skip(name, f"the check of {failed!r} did not succeed")

    def _run_steps(self) -> Iterator[CheckResult]:
        client, result = self._reach()
        yield result
        if client is None:
            raise _Blocked
        try:
            yield from _and_stop_at_failure(_check_version(client))
            self._requests = PreflightRequests(client)
            yield from self._check_access(client)
            yield from self._check_writing()
        finally:
            client.context.http_client.close()

    # Reachable.

    def _reach(self) -> tuple[Client | None, CheckResult]:
        address = self._options.address
        began = time.monotonic()
        try:
            client = self._open_client()
        except Exception as error:
            return None, _name_proxy(_explain_unreachable(address, error), address)
        milliseconds = 1000 * (time.monotonic() - began)
        return client, CheckResult.ok(TILED, f"{address} answered within {milliseconds:.0f} ms")

    # Key, scopes, container.

    def _check_access(self, client: Client) -> Iterator[CheckResult]:
        path = "/".join(client.path_parts) or "the root"
        try:
            attributes = self._requests.ask("GET", "metadata", "").json()["data"]["attributes"]
        except Paused as error:
            if _NO_SCOPES_WORDS not in str(error) or not self._has_credentials(client):
                yield self._explain_refused_key(error)
                raise _Blocked from error
            attributes = None
        except Refused as error:
            if error.status != 404:
                yield CheckResult.fail(KEY, f"Tiled answered {error}", "See the log of the Tiled server.")
                raise _Blocked from error
            attributes = {}
        except (ServerError, KeyError, TypeError) as error:
            yield CheckResult.skip(KEY, f"Tiled answered neither yes nor no ({error})", _advise_on(error))
            raise _Blocked from error
        yield from _and_stop_at_failure(self._check_key(client))
        yield from _and_stop_at_failure(self._check_scopes(client))
        yield self._check_fence(client)
        yield from _and_stop_at_failure(_check_container(path, attributes))

    def _has_credentials(self, client: Client) -> bool:
        """Return whether there is a key or a stored login, valid or not."""
        context = client.context
        has_login = getattr(context.http_client, "auth", None) is not None
        return self._options.key_source is not None or getattr(context, "api_key", None) is not None or has_login

    def _explain_refused_key(self, error: Paused) -> CheckResult:
        source = self._options.key_source
        if source is None:
            return CheckResult.fail(KEY, f"no API key is given, and Tiled wants one ({error})", _NO_KEY_ADVICE)
        return CheckResult.fail(
            KEY, f"Tiled does not accept the key from {source} ({error})", "Make a new key, and put it there."
        )

    def _check_key(self, client: Client) -> CheckResult:
        source = self._options.key_source
        if source is None and getattr(client.context, "api_key", None) is None:
            if getattr(client.context.http_client, "auth", None) is None:
                return CheckResult.fail(
                    KEY, "no API key is given; anybody may read here, but not write", _NO_KEY_ADVICE
                )
            return CheckResult.warn(
                KEY, "a login that Tiled's client has stored is accepted; it expires", "Use an API key for a service."
            )
        facts = self._requests.ask_about_key()
        expires = parse_time((facts or {}).get("expiration_time"))
        if expires is not None and expires - datetime.now(timezone.utc) < _EXPIRES_SOON:
            return CheckResult.warn(
                KEY, f"the key from {source} is accepted until {expires.isoformat(' ', 'minutes')}", "Renew it in time."
            )
        until = "" if expires is None else f" until {expires.isoformat(' ', 'minutes')}"
        return CheckResult.ok(KEY, f"the key from {source} is accepted{until}")

    def _check_scopes(self, client: Client) -> CheckResult | None:
        """Return the result, or None if the server does not say, so that the probe has to show it."""
        self._may_delete = self._requests.may_delete()
        if not client.context.server_info.authentication.links:
            if client.context.server_info.authentication.providers:
                return None
            self._scopes_known = True
            return CheckResult.ok(SCOPES, "all: the server has a single user, whose key may do everything")
        scopes = self._requests.ask_scopes()
        if scopes is None:
            return None
        self._scopes_known = True
        missing = [scope for scope in NEEDED_SCOPES if scope not in scopes]
        if missing:
            return CheckResult.fail(
                SCOPES,
                f"the key lacks {', '.join(missing)}",
                "Make a key with these scopes, or for a user who has them.",
            )
        unable = [scope for scope in DELETING_SCOPES if scope not in scopes]
        if unable:
            return CheckResult.warn(
                SCOPES,
                f"sufficient, but without {', '.join(unable)}",
                "Add them: tables are repaired, and blocked keys of arrays freed, by deleting nodes.",
            )
        return CheckResult.ok(SCOPES, ", ".join((*NEEDED_SCOPES, *DELETING_SCOPES)))

    def _check_fence(self, client: Client) -> CheckResult:
        """Return whether the key may make and revoke keys, which is tried unless nothing may be made."""
        context = client.context
        if not context.server_info.authentication.providers:
            return CheckResult.ok(FENCE, "none: the server has a single user, whose key cannot be revoked")
        key = getattr(context, "api_key", None)
        if key is None:
            return CheckResult.warn(
                FENCE, "none: a login that Tiled's client has stored makes no keys", "Use an API key for a service."
            )
        requests = AccountRequests(context.http_client, str(context.api_uri))
        try:
            account = requests.look_at_account(key)
            if account is None:
                return CheckResult.warn(FENCE, "Tiled does not say whether the key may make keys", _FENCE_ADVICE)
            missing = [scope for scope in KEY_SCOPES if scope not in account.scopes]
            if missing:
                return CheckResult.warn(FENCE, f"none: the key lacks {', '.join(missing)}", _FENCE_ADVICE)
            if PROBE in self._options.skip:
                return CheckResult.ok(FENCE, f"the key has {' and '.join(KEY_SCOPES)}")
            made = requests.make_key(account, key, note="tiledwriter check", lifetime=_PROBE_KEY_SECONDS)
            requests.revoke_key(made.first_eight, key)
        except ServerError as error:
            return CheckResult.warn(
                FENCE, f"none: Tiled makes and revokes no keys for the key ({error})", _FENCE_ADVICE
            )
        return CheckResult.ok(FENCE, "an API key was made and revoked")

    # The probe node.

    def _check_writing(self) -> Iterator[CheckResult]:
        if PROBE in self._options.skip:
            yield from self._skip_probe("--skip probe was given")
            return
        if self._may_delete is not True:
            reason = (
                "the key may not delete nodes" if self._may_delete is False else "Tiled does not say who may delete"
            )
            yield from self._skip_probe(
                f"{reason}, and the probe node would stay", "Give the key delete:node and delete:revision."
            )
            return
        probe = ProbeContainer(self._requests)
        results: list[CheckResult] = []
        try:
            probe.create()
            results.append(self._describe_probe(probe))
            results.append(_describe_storage(probe.storage, self._options.write_slots))
            results.append(self._check_files(probe))
        except ServerError as error:
            results.append(_explain_probe_failure(probe, error))
        finally:
            left = probe.remove()
        if left:
            results = [result for result in results if result.name != PROBE]
            results.insert(0, _describe_leftover(left))
        failed = any(result.name == PROBE and result.state is CheckState.FAIL for result in results)
        if not self._scopes_known:
            yield _scopes_shown_by_probe(failed=failed)
        yield from results
        done = {result.name for result in results}
        for name in (PROBE, STORAGE, FILES):
            if name not in done:
                yield CheckResult.skip(name, f"the check of {PROBE!r} failed")

    def _skip_probe(self, reason: str, advice: str = "") -> Iterator[CheckResult]:
        if not self._scopes_known:
            yield CheckResult.skip(SCOPES, "Tiled does not say which scopes the key has")
        for name in (PROBE, STORAGE, FILES):
            if name in self._options.skip:
                yield CheckResult.skip(name, f"--skip {name} was given")
            else:
                yield CheckResult.skip(name, reason, advice)

    def _describe_probe(self, probe: ProbeContainer) -> CheckResult:
        removed = f"; {probe.removed_leftovers} left by an earlier check deleted" if probe.removed_leftovers else ""
        found = f"a table and an array were created, appended to, read back and deleted{removed}"
        if probe.lag:
            return CheckResult.warn(
                PROBE,
                f"{found}, but not to be read for up to {probe.lag:.1f} s after they were written",
                "Reads that lag behind writes are waited for, within quiet_period. It has to be longer than they lag.",
            )
        return CheckResult.ok(PROBE, found)

    def _check_files(self, probe: ProbeContainer) -> CheckResult:
        options = self._options
        if FILES in options.skip:
            return CheckResult.skip(FILES, "--skip files was given")
        if not options.directories and not options.files:
            return CheckResult.skip(
                FILES,
                "neither path_map nor --file says where detectors write",
                "Give --file FILE, a file as documents name it, or --skip files if detectors write none.",
            )
        refused = [uri for uri in options.directories.values() if not probe.may_read_below(uri)]
        directories = dict.fromkeys(file.uri.rpartition("/")[0] for file in options.files)
        outside = [uri for uri in directories if not probe.may_read_below(uri)]
        if refused or outside:
            return CheckResult.fail(
                FILES,
                f"Tiled does not serve files in {', '.join(refused + outside)}",
                "Start Tiled with --read DIRECTORY (readable_storage), or correct path_map.",
            )
        opened = {file.uri: probe.can_open(file.uri) for file in options.files}
        closed = [uri for uri, can_open in opened.items() if can_open is False]
        if closed:
            return CheckResult.fail(
                FILES,
                f"Tiled cannot open {', '.join(closed)}",
                "Mount the files on the Tiled server at this path, and let its user read them; or correct path_map.",
            )
        unknown = [uri for uri, can_open in opened.items() if can_open is None]
        if unknown:
            return CheckResult.skip(FILES, f"Tiled does not let files be downloaded ({', '.join(unknown)})")
        if not options.files:
            return CheckResult.warn(
                FILES,
                f"Tiled may serve files in {', '.join(options.directories.values())}; whether there are any is unknown",
                "Give --file FILE, a file as documents name it, to see that Tiled can open it.",
            )
        return CheckResult.ok(FILES, f"Tiled opens {', '.join(file.uri for file in options.files)}")


_FENCE_ADVICE: Final = (
    "The service writes without it. To have requests of a killed supervisor refused once another has begun, make a key "
    f"with {' and '.join(KEY_SCOPES)}, too."
)
_NO_KEY_ADVICE: Final = "Put the key into TILED_API_KEY, or into a file that api_key_file names."


def _advise_on(error: Exception) -> str:
    return "See the log of the Tiled server, and of what is between." if isinstance(error, NotTiled) else "Try again."


def _and_stop_at_failure(result: CheckResult | None) -> Iterator[CheckResult]:
    if result is not None:
        yield result
        if result.state is CheckState.FAIL:
            raise _Blocked


def _name_proxy(result: CheckResult, address: str) -> CheckResult:
    """Return the result with the proxy that the environment has requests go through, as it may be at fault."""
    parts = urlsplit(address)
    variables = {f"{scheme}_proxy": getproxies().get(scheme) for scheme in (parts.scheme, "all")}
    variable, proxy = next(((name, uri) for name, uri in variables.items() if uri), ("", ""))
    if not proxy or not parts.hostname or proxy_bypass(parts.hostname):
        return result
    # A proxy's address may hold a password.
    where = urlsplit(proxy if "://" in proxy else f"http://{proxy}").netloc.rpartition("@")[2]
    found = f"{result.found}; {variable} sends requests through the proxy {where}"
    return replace(result, found=found, advice=f"{result.advice} Or name {parts.hostname} in no_proxy.")


def _explain_unreachable(address: str, error: Exception) -> CheckResult:
    """Return the result for an error of Tiled's client while it connects."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status in {401, 403}:
            return CheckResult.fail(
                TILED, f"{address} lets nobody in without credentials ({status})", "Give the gateway's with `headers`."
            )
        if status == 404:
            return CheckResult.fail(TILED, f"there is no Tiled at {address} (404)", "Correct the path of the address.")
        return CheckResult.fail(
            TILED, f"{address} answers {status}", "See the log of Tiled, or of the gateway before it."
        )
    if isinstance(error, httpx.TimeoutException):
        return CheckResult.fail(TILED, f"{address} does not answer in time", "Is a firewall between? Is the host up?")
    if isinstance(error, httpx.ConnectError):
        return CheckResult.fail(TILED, f"{address} cannot be reached ({error})", _advise_connection(str(error)))
    if isinstance(error, (ValidationError, ValueError, KeyError, TypeError)):
        return CheckResult.fail(
            TILED, f"what answers at {address} is not Tiled", "Correct the address. It may be a login page."
        )
    return CheckResult.fail(TILED, f"{address} cannot be used ({text})", "Correct the address or the profile.")


def _advise_connection(problem: str) -> str:
    if "refused" in problem:
        return "Start Tiled, or correct the port."
    if "CERTIFICATE" in problem or "SSL" in problem:
        return "Correct http or https, or install the certificate of the server's authority."
    if "Name or service" in problem or "name resolution" in problem or "nodename" in problem:
        return "Correct the host's name."
    return "Correct the address, or repair the network."


def _check_version(client: Client) -> CheckResult:
    version = str(client.context.server_info.library_version)
    try:
        check_version(client)
    except TiledTooOld:
        needed = ".".join(map(str, OLDEST_TILED))
        return CheckResult.fail(VERSION, f"Tiled {version}; {needed} or newer is needed", "Upgrade Tiled.")
    if parse_version(version) is None:
        return CheckResult.warn(VERSION, f"Tiled calls its version {version}", "See that it is not an old one.")
    return CheckResult.ok(VERSION, f"Tiled {version}")


def _check_container(path: str, attributes: Mapping[str, Any] | None) -> CheckResult:
    if attributes is None:
        return CheckResult.skip(CONTAINER, "the key may not read metadata")
    if not attributes:
        return CheckResult.fail(
            CONTAINER, f"there is no {path}, or the key may not see it", "Correct the URI, or create the container."
        )
    if any(spec.get("name") == RUN_SPEC[0] for spec in attributes.get("specs") or ()):
        return CheckResult.fail(CONTAINER, f"{path} is a run", "Give the URI of the container that runs are in.")
    if (family := attributes.get("structure_family")) != "container":
        return CheckResult.fail(CONTAINER, f"{path} is a {family}", "Give the URI of a container.")
    return CheckResult.ok(CONTAINER, f"{path} is there")


def _describe_storage(uri: str, write_slots: int | None) -> CheckResult:
    """Return the result for the database that tables are stored in, by its URI, which may hold a password."""
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme == "duckdb":
        return CheckResult.warn(
            STORAGE, "tables are in DuckDB, which loses rows when anybody else reads or writes", "Use PostgreSQL."
        )
    if scheme == "sqlite":
        if (write_slots or 1) > 1:
            return CheckResult.warn(
                STORAGE,
                f"tables are in SQLite, which takes one request at a time, not {write_slots}",
                "Leave write_slots out.",
            )
        return CheckResult.ok(STORAGE, "tables are in SQLite; PostgreSQL is what we recommend for production")
    if scheme in {"postgresql", "postgres"}:
        return CheckResult.ok(STORAGE, "tables are in PostgreSQL")
    return CheckResult.warn(
        STORAGE, f"tables are in {scheme or 'an unknown place'}, which nobody has tested", "Ask us."
    )


def _explain_probe_failure(probe: ProbeContainer, error: ServerError) -> CheckResult:
    advice = "See the log of the Tiled server."
    if _NO_SCOPES_WORDS in str(error):
        advice = "Make a key with the scopes that the answer names."
    elif isinstance(error, Refused) and error.status == 409:
        advice = f"Rename the node {probe.path}, or delete it: `check` did not make it, and needs its name."
    elif not probe.is_shared:
        advice = "Several servers answer at this address. Let them share their databases (PostgreSQL) and directories."
    elif probe.step.startswith("create the array"):
        advice = "Give Tiled a directory for arrays (--write DIRECTORY); see also the log of the Tiled server."
    elif probe.step.startswith("create the table"):
        advice = "Give Tiled a database for tables (--write sqlite:///... or postgresql://...); see also its log."
    return CheckResult.fail(PROBE, f"Tiled could not {probe.step} ({error})", advice)


def _describe_leftover(left: Sequence[Leftover]) -> CheckResult:
    paths = ", ".join(f"{item.path} ({item.problem})" for item in left)
    return CheckResult.fail(
        PROBE, f"the probe is still in Tiled: {paths}", "Run check again, which deletes it, or delete it by hand."
    )


def _scopes_shown_by_probe(*, failed: bool) -> CheckResult:
    if failed:
        return CheckResult.skip(SCOPES, "Tiled does not say which scopes the key has, and the probe failed")
    return CheckResult.ok(SCOPES, "Tiled does not list them, but the probe node was written and deleted")
