"""Messages, addresses and CURVE keys that publishers, supervisor and workers use to talk to each other."""

from __future__ import annotations

from ._address import Address, is_local, normalize_address
from ._security import (
    CLIENTS,
    PUBLIC_SUFFIX,
    ZAP_DOMAIN,
    ClientCurve,
    CurveArgument,
    Keys,
    ServerCurve,
    make_client_keys,
    make_server_keys,
)

__all__ = [
    "CLIENTS",
    "PUBLIC_SUFFIX",
    "ZAP_DOMAIN",
    "Address",
    "ClientCurve",
    "CurveArgument",
    "Keys",
    "ServerCurve",
    "is_local",
    "make_client_keys",
    "make_server_keys",
    "normalize_address",
]
