"""Adoption of runs that dead sessions left in a spool directory.

The header of each file names its destination and the process that made it. A publisher adopts a run only if the run was
made on this host, for the same destination, by a session that has died. Runs of other hosts are excluded because locks
of another host cannot be trusted on a network file system. All other runs stay, and are reported with the reason.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Final

from .._errors import JournalError, JournalLocked
from .._filesystem import network_filesystem
from .._rate_limited_log import RateLimitedLog
from .._wording import format_command
from ..log import (
    SUFFIX,
    FileLock,
    RunLog,
    Segment,
    SegmentFile,
    SegmentHeader,
    SessionIdentity,
    SpoolRunV01,
    adopter_lock_path,
    files_in,
    is_session_of,
    journal_files,
    lock_path,
    read_header,
    segment_path,
    session_of_lock,
    session_of_spare,
    sort_segments,
)

log = logging.getLogger(__name__)

ADOPTED_AT_ONCE: Final = 50
MAX_RELEASED_RUNS: Final = 256
"""Maximum number of adopted runs of version 0.1 at a time, as each of them keeps a file descriptor open."""
_LATER: Final = "it will be adopted later, once others have been shipped"
REMINDER_SECONDS: Final = 600.0


class RunAdopter:
    """The runs of dead sessions in a spool directory.

    Parameters
    ----------
    directory
        The spool directory.
    holder
        Identity of this publisher's session.
    destination
        URL of the supervisor that this publisher ships to.
    released_directory
        Spool directory of version 0.1, if it is another one.
    any_destination, any_host
        True to adopt runs for other destinations, or of sessions on other hosts, as well.

    Attributes
    ----------
    refused
        Reasons why runs are not adopted, by uid.
    has_more
        True if the last call of `adopt` stopped at its limit, so that more runs can be adopted now.
    deleted
        The `log_id` of each run that was not adopted but deleted, because a dead session was deleting it as a durable
        run, or because it has no documents.
    """

    def __init__(
        self,
        directory: Path,
        holder: SessionIdentity,
        destination: str,
        *,
        released_directory: Path | None = None,
        any_destination: bool = False,
        any_host: bool = False,
    ) -> None:
        self.refused: dict[str, str] = {}
        self.has_more = False
        self.deleted: set[str] = set()
        self._directory = directory
        self._released_directory = released_directory
        self._holder = holder
        self._destination = destination
        self._any_destination = any_destination
        self._any_host = any_host
        self._claims: dict[str, FileLock] = {}
        self._found: dict[str, str] = {}
        self._limited_log = RateLimitedLog(log, REMINDER_SECONDS)

    def adopt(self, known: Collection[str], uids: Collection[str]) -> list[RunLog]:
        """Adopt a limited number of runs, those unchanged for the longest time first.

        Parameters
        ----------
        known
            The `log_id` of each run log that this publisher already has.
        uids
            Uids of the runs that this publisher already has.

        Returns
        -------
        list of RunLog
            The adopted runs.

        Raises
        ------
        OSError
            The directory cannot be read.
        """
        paths = files_in(self._directory)
        own = self._holder.session
        logs, strays = sort_segments(path for path in paths if session_of_spare(path) != own)
        taken = set(uids)
        adopted: list[RunLog] = []
        if not self.has_more:
            self._found = {}
        self.has_more = False
        for path, reason in strays.items():
            # `_tidy_up` looks at spares, once their sessions are dead.
            if session_of_spare(path) is None:
                self._refuse_run(path.name, f"{path}: {reason}")
        for label in sorted(logs.keys() - set(known), key=lambda each: _modification_time(logs[each][0].path)):
            if len(adopted) >= ADOPTED_AT_ONCE:
                self.has_more = True
                return adopted
            try:
                run = self._adopt_run(logs[label], taken)
            except FileNotFoundError:
                # Its adopter has shipped and deleted it since the directory was read.
                continue
            except (JournalError, OSError, ValueError) as error:
                self._refuse_run(logs[label][0].stem, str(error))
                continue
            if run is not None:
                adopted.append(run)
                taken.add(run.run_uid)
        for directory in filter(None, (self._directory, self._released_directory)):
            try:
                adopted += self._adopt_released(directory, known, taken)
            except OSError as error:
                # What is missing may be a disk for its subdirectory that is not mounted.
                if not isinstance(error, FileNotFoundError) or directory.exists():
                    self._limited_log.log(
                        logging.ERROR, str(directory), "A spool of version 0.1 cannot be read: %s.", error
                    )
        if not self.has_more:
            self._tidy_up(paths)
        self.refused = self._found
        return adopted

    def close(self) -> None:
        """Release the adopter locks, so that other publishers can adopt the remaining runs."""
        for claim in self._claims.values():
            claim.release(remove=True)
        self._claims.clear()

    def _adopt_run(self, files: list[SegmentFile], taken: Collection[str]) -> RunLog | None:
        """Return the adopted run; None if it is refused, is still held by another session, or has no documents."""
        path = files[0].path
        header, damage = read_header(path)
        if header is None:
            self._refuse_run(files[0].stem, f"{path}: {damage or 'its header is empty'}")
            return None
        proper = segment_path(self._directory, header)
        misnamed = {file.path: file.name for file in files if file.is_misnamed}
        if path != proper and session_of_spare(path) is None:
            misnamed[path] = proper.name
        if misnamed:
            # Under their proper names they might replace other files, such as longer ones.
            reasons = (f"{path}: it holds the segment that should be called {name}" for path, name in misnamed.items())
            self._refuse_run(files[0].stem, "; ".join(reasons))
            return None
        if not header.shipped or not self._may_take(header, path):
            return None
        if self._is_alive(header.session) or not self._claim_destination(header.destination):
            return None
        segments = [Segment.load(file.path) for file in files]
        run = RunLog.load(segments)
        if segments[0].removed or (run.length == run.first and not run.damage):
            _delete_segments(segments)
            self.deleted.add(header.log)
            return None
        if run.run_uid in taken:
            self._refuse_run(run.run_uid, f"{path}: another run with the same uid is in the spool and is shipped first")
            return None
        if not run.damage:
            run.name_files()
        return run

    def _may_take(self, header: SegmentHeader, path: Path) -> bool:
        if header.host != self._holder.host and not self._any_host:
            reason = (
                f"it was made by {header.holder}, which may be alive; a publisher on that host will ship it, or "
                f"`{self._ship_command(header)} --any-host` can, once that session has ended"
            )
        elif header.destination != self._destination and not self._any_destination:
            reason = (
                f"it was published for {header.destination}; a publisher for that address will ship it, or "
                f"`{self._ship_command(header)}` can"
            )
        else:
            return True
        self._refuse_run(header.run, f"{path}: {reason}")
        return False

    def _ship_command(self, header: SegmentHeader) -> str:
        return format_command("tiledwriter-journal", "ship", self._directory, header.destination)

    def _is_alive(self, session: str) -> bool:
        """Return True if a session is alive, judging by its lock file as this host sees it."""
        return session == self._holder.session or FileLock(lock_path(self._directory, session)).held

    def _claim_destination(self, destination: str) -> bool:
        """Try to become the only publisher that adopts runs for a destination; return False if another one is."""
        if destination in self._claims:
            return True
        claim = FileLock(adopter_lock_path(self._directory, destination))
        if not claim.try_acquire():
            return False
        self._claims[destination] = claim
        return True

    def _adopt_released(self, directory: Path, known: Collection[str], taken: set[str]) -> list[RunLog]:
        """Adopt spool files of version 0.1, which contain neither a host nor a destination."""
        paths = [path for path in journal_files(directory) if str(path) not in known]
        if not paths:
            return []
        adopted: list[RunLog] = []
        released = sum(label.endswith(SUFFIX) for label in known)
        network = None if self._any_host else network_filesystem(directory)
        for path in sorted(paths, key=_modification_time):
            if len(adopted) >= ADOPTED_AT_ONCE:
                self.has_more = True
                break
            if released >= MAX_RELEASED_RUNS:
                self._refuse_run(path.stem, f"{path}: {_LATER}")
                continue
            if network is not None:
                self._refuse_run(path.stem, f"{path}: a session on another host may be writing it over {network}")
                continue
            try:
                run = SpoolRunV01(path)
                if not run.length and not run.damage:
                    run.delete()
                    self.deleted.add(run.log_id)
                    continue
            except JournalLocked:
                # The session of version 0.1 that made it is alive.
                continue
            except (JournalError, OSError) as error:
                self._refuse_run(path.stem, str(error))
                continue
            if run.run_uid in taken:
                run.close()
                self._refuse_run(run.run_uid, f"{path}: another run with the same uid is in the spool")
            else:
                taken.add(run.run_uid)
                adopted.append(run)
                released += 1
        return adopted

    def _refuse_run(self, uid: str, reason: str) -> None:
        self._found[uid] = reason
        self._limited_log.log(logging.ERROR, reason, "Run %s is not shipped: %s. It stays in the spool.", uid, reason)

    def _tidy_up(self, paths: Collection[Path]) -> None:
        """Delete unused segments and lock files of this host's dead sessions."""
        used: set[str] = set()
        for path in paths:
            session = session_of_spare(path)
            if session is None or not self._is_dead_here(session):
                continue
            try:
                header, damage = read_header(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                # The file may belong to another user.
                header, damage = None, str(error)
            if damage:
                self._refuse_run(path.name, f"{path}: {damage}")
            if header is not None or damage:
                used.add(session)
                continue
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        for path in paths:
            session = session_of_lock(path)
            if session is not None and session not in used and self._is_dead_here(session):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _is_dead_here(self, session: str) -> bool:
        with contextlib.suppress(OSError):
            return is_session_of(self._holder.host, session) and not self._is_alive(session)
        return False


def _delete_segments(segments: list[Segment]) -> None:
    """Finish the deletion of a run, during which its session was killed, or delete segments without documents."""
    for segment in reversed(segments):
        segment.delete()


def _modification_time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
