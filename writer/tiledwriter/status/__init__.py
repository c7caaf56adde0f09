"""The status of the service over HTTP: health, metrics, JSON and a page, by a process of its own.

The process asks the supervisor for its snapshot over the socket in the journal directory, like `tiledwriter-supervisor
status`. It holds no lock and writes nothing, so whatever happens to it, the supervisor goes on.
"""

from __future__ import annotations

from ._address import HttpAddress, parse_http_address
from ._options import HttpOptions, TokenFileError, find_missing_packages, read_token
from ._process import HttpProcess

__all__ = [
    "HttpAddress",
    "HttpOptions",
    "HttpProcess",
    "TokenFileError",
    "find_missing_packages",
    "parse_http_address",
    "read_token",
]
