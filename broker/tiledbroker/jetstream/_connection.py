"""One connection to the servers of a site's log, and the thread in which connections live.

Only this module knows the NATS client. Of that it uses what has proved itself: connecting, publishing, requests and
plain subscriptions. Not used are its reconnection (which sends what it had buffered, late), its asynchronous
publishing (which never answers after an error, nats-io/nats.py#985), its key-value interface (which reads from any
replica) and its ordered consumers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .._errors import AppendRefused, CallFailed, LogUnavailable, PermissionMissing
from .._wording import format_install
from ._address import LogAddress
from ._names import bucket_stream, bucket_subject

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 3.0
REQUEST_SECONDS: Final = 5.0
"""Time for an answer. An election of a leader takes about as long."""
_PING_SECONDS: Final = 2
_CLOSE_SECONDS: Final = 2.0
_CANCEL_SECONDS: Final = 0.5
"""Time after which tasks that have not ended are cancelled again."""
_UNLIMITED: Final = -1

_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_WRONG_LAST_SEQUENCE: Final = 10071
_IN_PROCESS: Final = 10164
_NOT_FOUND: Final = 10037
_NOT_TRUSTED: Final = "the server's certificate is not accepted"
_NOT_AUTHORIZED: Final = "the server does not accept these credentials"
_WITHOUT_ANSWER: Final = re.compile(r"nats: no responders")
_FORBIDDEN: Final = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]*)\"", re.IGNORECASE)

T = TypeVar("T")


@dataclass(frozen=True)
class StoredMessage:
    """A message of a stream."""

    subject: str
    seq: int
    headers: Mapping[str, str]
    body: bytes


class LoopThread:
    """A thread with an event loop, in which connections live.

    `close` ends what still runs in it, and joins the thread.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            # Up to Python 3.11, `asyncio.wait_for` loses a cancellation that comes as its task ends (bpo-37658).
            while tasks := asyncio.all_tasks(self.loop):
                for task in tasks:
                    task.cancel()
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=_CANCEL_SECONDS))
            # One more turn, in which `gather` retrieves the errors of its tasks: asyncio complains of those left.
            self.loop.run_until_complete(asyncio.sleep(0))
        finally:
            self.loop.close()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run a coroutine in the thread, and return what it returns.

        Raises
        ------
        LogUnavailable
            It has not ended within `timeout` seconds.
        """
        future = self.submit(coroutine)
        try:
            return future.result(timeout)
        except FutureTimeoutError as error:
            future.cancel()
            raise LogUnavailable(f"there was no answer within {timeout:g} s") from error

    def close(self) -> None:
        """End what runs, and join the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


class Connection:
    """A connection to one of the servers. It is never repaired: after `lost`, open another one.

    All methods belong to the loop in which it was opened.

    Attributes
    ----------
    lost
        Set when the connection is gone.
    problem
        Why it is gone, or what a server has refused; "" if nothing is known.
    """

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.problem = ""
        # Subjects of the requests that wait for an answer, by what ends them if they are refused.
        self._waiting: dict[asyncio.Future[None], str] = {}
        self._inbox_refusal: PermissionMissing | None = None

    @classmethod
    async def open(cls, address: LogAddress, *, name: str, on_lost: Callable[[], None] | None = None) -> Connection:
        """Connect to the first of the servers that answers, beginning with any.

        Raises
        ------
        LogUnavailable
            None of them can be used, for a reason that may pass.
        KeyFileError
            The credentials cannot be used.
        """
        connection = cls()
        problems: list[str] = []

        async def note_lost() -> None:
            connection.lost.set()
            if on_lost is not None:
                on_lost()

        async def note_error(error: Exception) -> None:
            if connection._take_refusal(str(error)):
                return
            connection.problem = _describe_error(error)
            problems.append(connection.problem)

        options = address.connect_options()
        connection._inbox = address.inbox
        connection._client = _make_client(must_be_encrypted=address.must_be_encrypted)
        try:
            # It tries the servers in an order of its own. `wait_for` bounds also what its own timeouts do not.
            await asyncio.wait_for(
                connection._client.connect(
                    list(address.servers),
                    name=name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=max(1, round(CONNECT_SECONDS)),
                    ping_interval=_PING_SECONDS,
                    max_outstanding_pings=2,
                    closed_cb=note_lost,
                    error_cb=note_error,
                    **options,
                ),
                CONNECT_SECONDS * (len(address.servers) + 1),
            )
        except ImportError as error:
            await connection.close()
            raise LogUnavailable(f"{error}. A log in JetStream needs: {format_install('nats')}") from error
        except Exception as error:
            # Each server may have another one.
            reasons = dict.fromkeys(problems or [_describe_error(error)])
            reason = "; ".join([*reasons, *_explain_certificates(connection._client, address, list(reasons))])
            await connection.close()
            raise LogUnavailable(f"no server of {address} can be used: {reason}") from error
        except BaseException:
            # The caller was cancelled. The client leaves a socket open on which a server has not answered yet.
            await connection.close()
            raise
        # Of servers that were tried before.
        connection.problem = ""
        return connection

    _client: Client
    _inbox: str

    @property
    def server(self) -> str:
        """The server's name in its cluster, or its address."""
        url = self._client.connected_url
        return "" if url is None else url.netloc

    @property
    def is_encrypted(self) -> bool:
        """True if nobody between this host and the server can read what is sent."""
        # The client encrypts whenever the server says that it wants that.
        return bool(self._client._server_info.get("tls_required"))

    @property
    def is_local(self) -> bool:
        """True if the server is on this host."""
        url = self._client.connected_url
        return url is not None and url.hostname in ("localhost", "127.0.0.1", "::1")

    @property
    def server_version(self) -> str:
        """The version of the server."""
        found = re.search(r"\d[\w.+-]*", str(self._client.connected_server_version))
        return found[0] if found else ""

    @property
    def max_payload(self) -> int:
        """Largest message that the server takes, in bytes."""
        return self._client.max_payload

    async def close(self) -> None:
        """End the connection; what was published before is sent."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._client.close(), _CLOSE_SECONDS)
        self.lost.set()

    async def request(
        self, subject: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *, timeout: float | None = None
    ) -> Msg:
        """Return the answer to a request.

        Raises
        ------
        LogUnavailable
            There is none.
        """
        if self.lost.is_set():
            raise LogUnavailable(self.problem or "the connection is lost")
        if self._inbox_refusal is not None:
            raise self._inbox_refusal
        request = asyncio.ensure_future(
            self._client.request(
                subject, body, timeout=timeout or REQUEST_SECONDS, headers=None if headers is None else dict(headers)
            )
        )
        lost = asyncio.ensure_future(self.lost.wait())
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[refused] = subject
        try:
            # The client leaves requests unanswered when its connection ends, or when they are refused.
            ends: list[asyncio.Future[Any]] = [request, lost, refused]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if refused.done():
                refused.result()
            if not request.done():
                raise LogUnavailable(self.problem or "the connection was lost")
            return request.result()
        except LogUnavailable:
            raise
        except Exception as error:
            text = str(error) or type(error).__name__
            if _WITHOUT_ANSWER.search(text):
                text = "nobody answers there: no such stream, or it has no leader at the moment"
            elif self.problem:
                text = f"{text}; {self.problem}"
            raise LogUnavailable(text) from error
        finally:
            request.cancel()
            lost.cancel()
            refused.cancel()
            del self._waiting[refused]

    def _take_refusal(self, text: str) -> bool:
        """If an error of the client says that a subject is refused, tell those who wait; return whether it does."""
        found = _FORBIDDEN.search(text)
        if found is None:
            return False
        # The client tells it in lower case.
        verb, subject = found[1].lower(), found[2].lower()
        concerned = {waiting: name for waiting, name in self._waiting.items() if name.lower() == subject}
        if verb == "subscription" and subject.startswith(self._inbox.lower()):
            self._inbox_refusal = PermissionMissing("subscribe", f"{self._inbox}.>")
            concerned = dict.fromkeys(self._waiting, self._inbox)
        for waiting, name in concerned.items():
            if not waiting.done():
                waiting.set_exception(self._inbox_refusal or PermissionMissing("publish", name))
        if not concerned:
            self.problem = str(PermissionMissing("subscribe" if verb == "subscription" else verb, found[2]))
        return True

    async def call(self, name: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer of JetStream to a call of its interface, such as "STREAM.INFO.TW".

        Raises
        ------
        LogUnavailable
            There is no answer, or an error.
        """
        answer = await self.request(f"$JS.API.{name}", json.dumps(arguments or {}).encode())
        found = _parse_answer(answer.data)
        if (error := found.get("error")) is not None:
            raise CallFailed(int(error.get("err_code", 0)), str(error.get("description", error)))
        return found

    async def append(self, subject: str, body: bytes, headers: Mapping[str, str], expected_seq: int) -> int:
        """Append a message if the last one of its subject has the expected number; 0 means that there is none.

        Returns
        -------
        int
            The number of the message.

        Raises
        ------
        AppendRefused
            The last message is another one, or this was asked for too early. It does not mean that the message is not
            there: it may have been stored by an earlier attempt.
        LogUnavailable
            There is no answer, so that the message may be stored, also later; or the log takes none.
        """
        answer = await self.request(subject, body, {**headers, _EXPECTED: str(expected_seq)})
        found = _parse_answer(answer.data)
        if (error := found.get("error")) is not None:
            code, text = int(error.get("err_code", 0)), str(error.get("description", error))
            if code in (_WRONG_LAST_SEQUENCE, _IN_PROCESS):
                raise AppendRefused(text)
            raise LogUnavailable(text)
        return int(found["seq"])

    async def read_last(self, stream: str, subject: str) -> StoredMessage | None:
        """Return the last message of a subject from any replica, which may be behind; None if it has none."""
        return self._parse_stored(await self.request(f"$JS.API.DIRECT.GET.{stream}.{subject}"))

    async def read_next(self, stream: str, subject: str, seq: int) -> StoredMessage | None:
        """Return the first message of a subject from a number on, from any replica; None if it has none."""
        arguments = json.dumps({"seq": seq, "next_by_subj": subject}).encode()
        return self._parse_stored(await self.request(f"$JS.API.DIRECT.GET.{stream}", arguments))

    def _parse_stored(self, answer: Msg) -> StoredMessage | None:
        headers = answer.headers or {}
        if (seq := headers.get("Nats-Sequence")) is not None:
            return StoredMessage(headers.get("Nats-Subject", ""), int(seq), headers, answer.data)
        if (status := headers.get("Status")) == "404":
            return None
        raise LogUnavailable(f"a read was refused: {status} {headers.get('Description', '')}".strip())

    async def read_key(self, bucket: str, key: str) -> StoredMessage | None:
        """Return the value of a key from the leader of a bucket's replicas; None if it has none.

        A leader that was deposed answers, too, so what is returned may be old.
        """
        return await self.read_last_from_leader(bucket_stream(bucket), bucket_subject(bucket, key))

    async def read_last_from_leader(self, stream: str, subject: str) -> StoredMessage | None:
        """Return the last message of a subject from the leader of the replicas; see `read_key`."""
        return await self._get_message(stream, {"last_by_subj": subject})

    async def read_from_leader(self, stream: str, subject: str, seq: int) -> StoredMessage | None:
        """Return the first message of a subject from a number on from the leader of the replicas; see `read_key`."""
        return await self._get_message(stream, {"next_by_subj": subject, "seq": seq})

    async def _get_message(self, stream: str, query: Mapping[str, Any]) -> StoredMessage | None:
        try:
            found = await self.call(f"STREAM.MSG.GET.{stream}", query)
        except CallFailed as error:
            if error.code == _NOT_FOUND:
                return None
            raise
        message = found["message"]
        headers = _parse_headers(message.get("hdrs", ""))
        body = b"" if "KV-Operation" in headers else _decode_base64(message.get("data", ""))
        return StoredMessage(message["subject"], int(message["seq"]), headers, body)

    async def subscribe(self, subject: str, callback: Callable[[Msg], Awaitable[None]]) -> None:
        """Have a callback called with each message of a subject."""
        await self._client.subscribe(
            subject, cb=callback, pending_msgs_limit=_UNLIMITED, pending_bytes_limit=_UNLIMITED
        )

    def new_inbox(self) -> str:
        """Return a new subject for answers to this connection."""
        return self._client.new_inbox()

    async def flush(self) -> None:
        """Wait until the server has all that was sent.

        Raises
        ------
        LogUnavailable
            It does not answer.
        """
        try:
            await self._client.flush(round(REQUEST_SECONDS))
        except Exception as error:
            raise LogUnavailable(str(error) or type(error).__name__) from error


def _make_client(*, must_be_encrypted: bool) -> Client:
    """Return a client that is not connected yet.

    Raises
    ------
    LogUnavailable
        The NATS client is not installed.
    """
    try:
        from nats.aio.client import Client
    except ImportError as error:
        raise LogUnavailable(f"{error}. A log in JetStream needs: {format_install('nats')}") from error

    class EncryptedClient(Client):
        """A client that logs in over encrypted connections only. The NATS client encrypts if the server says that it
        wants that, and somebody else could answer in its place.
        """

        def _connect_command(self) -> bytes:
            if not self._server_info.get("tls_required"):
                raise LogUnavailable("the server does not encrypt connections, and this address asks for it")
            return super()._connect_command()

    return EncryptedClient() if must_be_encrypted else Client()


def _explain_certificates(client: Client, address: LogAddress, reasons: list[str]) -> list[str]:
    """Return what is to be added to the reasons if a server asks for certificates of its clients: it ends connections
    without a word.
    """
    is_explained = any(text in reason for reason in reasons for text in (_NOT_TRUSTED, _NOT_AUTHORIZED))
    if is_explained or not client._server_info.get("tls_verify"):
        return []
    shown = "none is given" if address.tls_client is None else f"that in {address.tls_client} may not be one"
    return [f"the server asks for a client's certificate that it accepts, and {shown}"]


def _describe_error(error: Exception) -> str:
    """Return the reason of an error of the NATS client, without secrets."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{_NOT_TRUSTED}: {error.verify_message}"
    text = str(error).removeprefix("nats: ").strip("'") or type(error).__name__
    if "authorization violation" in text.lower():
        return f"{_NOT_AUTHORIZED} ({text})"
    return text


def _parse_answer(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise LogUnavailable(f"the answer is not that of JetStream: {error}") from error
    if not isinstance(found, dict):
        raise LogUnavailable("the answer is not that of JetStream")
    return found


def _decode_base64(text: str) -> bytes:
    import base64

    return base64.b64decode(text)


def _parse_headers(text: str) -> dict[str, str]:
    lines = _decode_base64(text).decode("utf-8", "replace").split("\r\n")[1:]
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip()}
