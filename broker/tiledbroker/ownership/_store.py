"""What a place must be able to do to keep the lease of a service."""

from __future__ import annotations

from typing import Protocol

from ._lease import Lease, Stored


class LeaseStore(Protocol):
    """Store of one lease. Its methods may take minutes; they are called by one thread.

    Only a compare-and-set decides who holds the lease: among all that expect one revision, at most one is accepted, and
    none once a higher revision was stored. A read may return an older revision than the newest.
    """

    def close(self) -> None:
        """Release what it holds; no other method is called afterwards."""

    def read(self) -> Stored:
        """Return a stored lease and its revision.

        Raises
        ------
        StoreUnavailable
            There is no answer, or one that is not a lease. It never means that nobody holds the lease.
        """

    def compare_and_set(self, expected_revision: int, lease: Lease) -> int | None:
        """Store a lease if the newest revision is the expected one.

        Returns
        -------
        int or None
            The new revision; None if the lease was refused. It may have been stored nevertheless, such as if another
            one has replaced it already; a read tells.

        Raises
        ------
        StoreUnavailable
            There is no answer. The lease may be stored nevertheless, also later.
        """
