"""`JetStreamPublisher`: the publisher whose documents travel over a site's log in NATS JetStream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from .._errors import BrokerError
from .._wording import format_install
from ..jetstream import LogAddress, check_beamline
from ._jetstream_link import JetStreamLink
from ._publisher import SpoolPublisher
from ._spool import DEFAULT_SPOOL_LIMIT_BYTES, Adoption


class JetStreamPublisher(SpoolPublisher):
    """RunEngine callback that ships documents to a site's log without ever making the RunEngine wait.

    The callback appends each document to a local spool before it returns, as that of `ZMQPublisher` does. A thread
    appends the spool to the log, which a `tiledwriter-supervisor --source` reads. The spool is kept until the receipts
    of the ingest host allow to delete it: that documents are in the log is not enough.

    Parameters
    ----------
    servers
        Servers of the log: `"nats://a,b,c"`, or a list.
    beamline
        Name of the beamline: letters, digits, - and _, and not "supervisor". Its runs have subjects of their own in the
        log, which its credentials may be limited to.
    credentials
        File with one line `NAME:PASSWORD`, or with the seed or the credentials of a NATS user, which only its owner can
        read.
    tls
        File with the certificates of the authority that has signed those of the servers. Connections are encrypted.
        With an address `tls://a,b,c` they are, too; without this file, the system's authorities are trusted.
    tls_client
        File with the certificate of this client and its key, for servers that ask for one.
    spool_dir, name, on_error, keep_until, spool_limit, adopt
        As in `ZMQPublisher`.

    Raises
    ------
    AddressError
        The servers cannot be parsed, or contain a password.
    ValueError
        `beamline`, `on_error`, `keep_until` or `adopt` has no possible value.
    BrokerError
        The NATS client is not installed.

    Examples
    --------
    >>> RE.subscribe(JetStreamPublisher("nats://log1,log2,log3", beamline="csx", credentials="~/csx.credentials"))
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        beamline: str,
        credentials: str | Path | None = None,
        tls: str | Path | None = None,
        tls_client: str | Path | None = None,
        spool_dir: str | Path | None = None,
        name: str | None = None,
        on_error: Literal["log", "raise"] = "log",
        keep_until: Literal["written", "durable"] = "written",
        spool_limit: int = DEFAULT_SPOOL_LIMIT_BYTES,
        adopt: Adoption = "own",
    ) -> None:
        check_beamline(beamline)
        address = LogAddress.parse(
            servers, credentials=credentials, tls_ca=tls, tls_client=tls_client, inbox=f"_INBOX.{beamline}"
        )
        if find_spec("nats") is None:
            raise BrokerError(f"The NATS client is not installed: {format_install('nats')}")
        super().__init__(
            f"{address.destination}/{beamline}",
            partial(JetStreamLink, address, beamline),
            spool_dir=spool_dir,
            name=name,
            on_error=on_error,
            keep_until=keep_until,
            spool_limit=spool_limit,
            adopt=adopt,
        )
