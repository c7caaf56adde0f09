"""Snapshots of a supervisor: well, in an outage, with runs in quarantine, with many runs."""

from __future__ import annotations

import copy
import json
import uuid
from typing import Any

import msgspec

from tiledbroker.supervisor import RunStatus
from tiledbroker.supervisor.status._snapshot import decode_snapshot
from tiledwriter.status._snapshot import Answer

NOW = 1_795_000_000.0
GIB = 2**30


def answer_of(snapshot: dict[str, Any]) -> Answer:
    """The answer of a supervisor with this snapshot."""
    text = json.dumps(snapshot).encode()
    return Answer(decode_snapshot(text), text)


def struct_of(status: dict[str, Any]) -> RunStatus:
    """The status of a run as the supervisor's clients see it."""
    return msgspec.convert(status, RunStatus)


def run_status(number: int = 1, **changes: Any) -> dict[str, Any]:
    """The status of a run that is written while it goes on."""
    uid = str(uuid.UUID(int=0x5EED_0000_0000_4000_8000_0000_0000_0000 + number))
    status = {
        "uid": uid,
        "state": "open",
        "scan_id": 4200 + number,
        "plan": "grid_scan",
        "since": NOW - 95.0,
        "publisher": "bl7-acq",
        "client": "bl7",
        "durable": 1842,
        "written": 1836,
        "ended": False,
        "waits_for": None,
        "reason": None,
        "worker": {"pid": 4100 + number, "memory": 96 * 2**20, "since": NOW - 95.0},
        "deaths": 0,
        "journal": f"/var/lib/tiledwriter/{uid}.sqlite",
    }
    return {**status, **changes}


def well() -> dict[str, Any]:
    """All is well: two runs go on."""
    return copy.deepcopy(
        {
            "schema": 1,
            "state": "well",
            "reasons": [],
            "version": "0.1.0",
            "host": "ingest7",
            "pid": 2112,
            "started": NOW - 190_000.0,
            "now": NOW,
            "settings": {
                "listen": "tcp://10.7.0.5:5579",
                "tiled": "http://tiled.bl7.example:8000",
                "headers": {"X-Gateway-Key": "***"},
                "max_workers": 32,
            },
            "listen": "tcp://10.7.0.5:5579",
            "journal_dir": "/var/lib/tiledwriter",
            "tiled": {
                "address": "http://tiled.bl7.example:8000",
                "version": "0.2.20",
                "reachable": True,
                "since": NOW - 189_000.0,
                "asked": NOW - 0.4,
                "last_write": NOW - 0.4,
                "problem": None,
                "requests": {"ok": 48_211, "5xx": 3},
                "retries": {"503": 3, "timeout": 1},
                "latency": {
                    "buckets": [[0.01, 12_000], [0.025, 30_000], [0.1, 47_000], [0.5, 48_190], [2.5, 48_214]],
                    "sum": 1290.5,
                    "count": 48_214,
                },
            },
            "disks": [
                {
                    "path": "/var/lib/tiledwriter",
                    "purpose": "journals",
                    "free": 412 * GIB,
                    "total": 500 * GIB,
                    "min_free": 5 * GIB,
                    "state": "well",
                }
            ],
            "publishers": [
                {
                    "name": "bl7-acq",
                    "client": "bl7",
                    "address": "10.7.0.21",
                    "connected_since": NOW - 86_500.0,
                    "runs": 2,
                    "lag_documents": 12,
                    "lag_bytes": 5_210,
                    "oldest_unacknowledged": NOW - 0.25,
                }
            ],
            "runs": {
                "counts": {
                    "starting": 0,
                    "open": 2,
                    "closing": 0,
                    "parked": 0,
                    "written": 318,
                    "interrupted": 2,
                    "failed": 0,
                },
                "open": [run_status(1), run_status(2, plan="count", publisher="bl7-acq", durable=60, written=60)],
                "troubled": [],
                "unlisted_open": 0,
                "unlisted_troubled": 0,
            },
            "workers": {
                "running": 2,
                "max": 32,
                "restarts": 1,
                "memory": 192 * 2**20,
                "waiting_for_worker": 0,
                "waiting_to_write": 1,
            },
            "totals": {
                "documents": 5_210_341,
                "bytes": 3_100_200_300,
                "written_documents": 5_210_335,
                "restarts": 1,
                "refused": {},
            },
            "trouble": [],
        }
    )


def outage() -> dict[str, Any]:
    """Tiled has been away for three hours; finished runs are parked."""
    result = well()
    since = NOW - 11_040.0
    result |= {
        "state": "degraded",
        "reasons": ["Tiled has not answered for 3 h 4 min. Start it, or look: tiledwriter-supervisor check"],
        "trouble": [
            {"time": since, "level": "warning", "run": None, "text": "Tiled does not answer: connection refused."},
            {"time": NOW - 40, "level": "warning", "run": None, "text": "Tiled is still away after 3 h 4 min."},
        ],
    }
    result["tiled"] |= {
        "reachable": False,
        "since": since,
        "last_write": since - 2,
        "problem": "connection refused",
        "retries": {"503": 3, "connection refused": 2208},
    }
    waiting = {"waits_for": "Tiled is away", "written": 120}
    parked = [run_status(10 + i, state="parked", durable=24_000, ended=True, worker=None, **waiting) for i in range(7)]
    result["runs"] |= {
        "counts": {**result["runs"]["counts"], "parked": 7},
        "open": [
            run_status(1, durable=45_000, **waiting),
            run_status(2, plan="count", durable=2_300, **waiting),
            *parked,
        ],
        "troubled": parked,
    }
    result["totals"]["written_documents"] = 4_996_035
    return result


def quarantine() -> dict[str, Any]:
    """One run cannot be written; all others are."""
    result = well()
    reason = (
        "OperationRefused: Tiled answered 422 to create node primary/eiger_image: Unknown mimetype "
        "'application/x-eiger-v9'. Register an adapter for it in Tiled, or leave the stream out."
    )
    failed = run_status(77, state="failed", plan="fly_ptycho", reason=reason, durable=20_412, written=3, worker=None)
    result |= {
        "state": "degraded",
        "reasons": [f"1 run is in quarantine. See the reason: tiledwriter-journal show {failed['uid']}"],
        "trouble": [{"time": NOW - 95, "level": "error", "run": failed["uid"], "text": f"The run failed: {reason}"}],
    }
    result["runs"]["counts"]["failed"] = 1
    result["runs"]["troubled"] = [failed]
    return result


def disk_full() -> dict[str, Any]:
    """The journal disk has no space; nothing is acknowledged."""
    result = well()
    result |= {"state": "failed", "reasons": ["The journal disk is full: make space in /var/lib/tiledwriter"]}
    result["disks"][0] |= {"free": GIB, "state": "full"}
    result["publishers"][0] |= {"lag_documents": 90_000, "lag_bytes": 400_000_000, "oldest_unacknowledged": NOW - 840.0}
    return result


def many_runs(count: int = 200) -> dict[str, Any]:
    """So many runs in mixed states."""
    result = outage()
    states = ("open", "starting", "closing", "parked", "failed")
    runs = [
        run_status(1000 + i, state=states[i % 5], reason="OperationRefused: no" if i % 5 == 4 else None)
        for i in range(count)
    ]
    result["runs"] |= {
        "counts": {**result["runs"]["counts"], **dict.fromkeys(states, count // 5)},
        "open": [run for run in runs if run["state"] != "failed"],
        "troubled": [run for run in runs if run["state"] in {"failed", "parked"}],
    }
    return result


def started() -> dict[str, Any]:
    """A supervisor that has just started: Tiled was never asked, publishers said nothing yet."""
    result = well()
    result |= {"started": NOW - 2, "reasons": ["Tiled has not been asked yet: there is nothing to write."]}
    result["tiled"] |= dict.fromkeys(("version", "reachable", "since", "asked", "last_write"))
    latency = {"buckets": [[0.1, 0], [2.5, 0]], "sum": 0.0, "count": 0}
    result["tiled"] |= {"requests": {}, "retries": {}, "latency": latency}
    result["publishers"] = []
    result["runs"] |= {"counts": dict.fromkeys(result["runs"]["counts"], 0), "open": [], "troubled": []}
    result["totals"] = {"documents": 0, "bytes": 0, "written_documents": 0, "restarts": 0, "refused": {}}
    return result


def with_log(**changes: Any) -> dict[str, Any]:
    """All is well, and documents come from a site's log."""
    snapshot = well()
    snapshot["log"] = {
        "address": "nats://log1:4222,log2:4222,log3:4222",
        "reachable": True,
        "since": NOW - 86_000.0,
        "asked": NOW - 3.0,
        "problem": None,
        "read_problem": None,
        "server": "log2:4222",
        "version": "2.12.1",
        "bytes": 40 * GIB,
        "max_bytes": 500 * GIB,
        "messages": 120_000,
        "replicas": 3,
        "replicas_current": 3,
        "lag": {"bl7": 12, "bl8": 0},
        "unfinished_runs": {"ingest7": 2, "": 1},
        **changes,
    }
    return snapshot


def standby() -> dict[str, Any]:
    """This host stands by for another one."""
    snapshot = well()
    snapshot["listen"] = None
    snapshot["reasons"] = ["This host stands by: ingest8 holds the lease in /shared/tiledwriter (epoch 3)."]
    snapshot["lease"] = {
        "held": False,
        "place": "/shared/tiledwriter",
        "host": "ingest8",
        "epoch": 3,
        "renewed": NOW - 1.2,
        "seconds_left": None,
        "problem": None,
    }
    return snapshot
