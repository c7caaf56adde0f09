"""`ZMQPublisher`: the publisher whose documents travel over ZeroMQ."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from ..protocol import Address, ClientCurve, CurveArgument, normalize_address
from ._publisher import SpoolPublisher
from ._spool import DEFAULT_SPOOL_LIMIT_BYTES, Adoption
from ._zmq_link import ZMQLink


class ZMQPublisher(SpoolPublisher):
    """RunEngine callback that ships documents to the ingest host without ever making the RunEngine wait.

    The callback appends each document to a local spool before it returns. A thread ships the spool to
    `tiledwriter-supervisor` over ZeroMQ whenever the supervisor is reachable. It also ships the runs that dead sessions
    left in the same spool directory.

    Parameters
    ----------
    address
        Address of the supervisor: `"tcp://host:port"`, `"host:port"`, `("host", port)` or `"ipc:///path"`.
    spool_dir
        Directory of the spool, on a local disk. A directory on a network file system is replaced by one in /var/tmp,
        with a warning. "~" is expanded, and a relative path is made absolute at once. Default: a directory for this
        host and address in `tiledwriter/spool` in the user's state directory.
    curve
        Keys for a supervisor that requires client keys (CURVE): the directory that `tiledwriter-supervisor keygen`
        created for this client, or a `ClientCurve`. Without keys, nothing is encrypted.
    name
        Name of this publisher in the supervisor's log. Default: the host name.
    on_error
        "log" to log errors of the callback, "raise" to raise them into the RunEngine.
    keep_until
        When to delete a run's spool files: once the run is "written" to Tiled, so that no data are lost if the disk of
        the ingest host fails, or as soon as the run is "durable" on the ingest host.
    spool_limit
        Bytes of spool files beyond which runs are deleted as soon as they are durable, the oldest first.
    adopt
        Which runs that dead sessions left in `spool_dir` to ship as well: "own" for those made on this host for this
        address; "any-destination" to include other addresses; "any-host" to include other addresses and other hosts.

    Raises
    ------
    AddressError
        The address cannot be parsed.
    KeyFileError
        A key file is missing or is not a key file, or other users can read the secret key.
    TypeError
        `curve` is neither a path nor a `ClientCurve`.
    ValueError
        `on_error`, `keep_until` or `adopt` has none of the values above.

    Examples
    --------
    >>> RE.subscribe(ZMQPublisher("tcp://ingest.example:5579", curve="~/tiledwriter-keys/beamline"))
    """

    def __init__(
        self,
        address: Address = "tcp://127.0.0.1:5579",
        *,
        spool_dir: str | Path | None = None,
        curve: CurveArgument | None = None,
        name: str | None = None,
        on_error: Literal["log", "raise"] = "log",
        keep_until: Literal["written", "durable"] = "written",
        spool_limit: int = DEFAULT_SPOOL_LIMIT_BYTES,
        adopt: Adoption = "own",
    ) -> None:
        url = normalize_address(address)
        super().__init__(
            url,
            partial(ZMQLink, url, None if curve is None else ClientCurve.of(curve).load()),
            spool_dir=spool_dir,
            name=name,
            on_error=on_error,
            keep_until=keep_until,
            spool_limit=spool_limit,
            adopt=adopt,
        )
