"""Which access tags the runs of a client may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from event_model import compose_run
from runs import supervisor_without_tiled, wait_for_outcome
from stored_runs import records_of

from tiledbroker import ZMQPublisher
from tiledwriter._config import load_settings
from tiledwriter._errors import DocumentError
from tiledwriter.mapping import RunWriter
from tiledwriter.mapping._access_tags import AccessTagLimits
from tiledwriter.mapping._fold import Fold
from tiledwriter.mapping._operations import CreateContainer
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import journal_of

LISTED = AccessTagLimits({"beamline": ("beamline", "public"), "*": ("public",)})


@pytest.mark.parametrize(
    ("limits", "client", "tags"),
    [
        (AccessTagLimits(), "", ["anything"]),
        (LISTED, "beamline", ["public", "beamline"]),
        (LISTED, "other", ["public"]),
        (LISTED, "", ["public"]),
        (LISTED, "beamline", []),
        (LISTED, "beamline", None),
    ],
)
def test_tags_that_are_the_client_s_to_give_are_kept(
    limits: AccessTagLimits, client: str, tags: Sequence[str] | None
) -> None:
    run = compose_run(metadata={} if tags is None else {"tiled_access_tags": tags}, validate=False)
    uid = str(run.start_doc["uid"])
    fold = Fold(uid, WritingOptions(access_tags=limits), 16, client=client)
    created, *_ = fold.feed(records_of([("start", run.start_doc)]))
    assert fold.error is None
    assert isinstance(created, CreateContainer)
    assert created.access_tags == (None if tags is None else tuple(tags))


@pytest.mark.parametrize(
    ("limits", "client", "tags", "refused"),
    [
        (LISTED, "beamline", ["public", "secret", "other"], "'secret', 'other'"),
        (LISTED, "other", ["beamline"], "'beamline'"),
        (LISTED, "", ["beamline"], "'beamline'"),
        (AccessTagLimits({"beamline": ("beamline",)}), "other", ["beamline"], "'beamline'"),
        (LISTED, "beamline", "secret", "'secret'"),
        (LISTED, "beamline", [["public"], 7], "\\['public'\\]\"?, '7'"),
    ],
)
def test_others_are_refused_by_name(limits: AccessTagLimits, client: str, tags: Sequence[str], refused: str) -> None:
    with pytest.raises(DocumentError, match=refused) as raised:
        limits.check(client, {"tiled_access_tags": tags})
    assert "access_tags in the configuration" in str(raised.value)


def test_they_come_from_the_configuration() -> None:
    flags = {"tiled": "http://localhost:8000", "access_tags": {"beamline": ["a", "b"], "*": []}}
    options = load_settings(None, flags).writing_options()
    assert options.access_tags == AccessTagLimits({"beamline": ("a", "b"), "*": ()})


def test_a_run_that_asks_for_others_goes_to_quarantine_with_all_its_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEDWRITER_ACCESS_TAGS", '{"*": ["public"]}')
    run = compose_run(metadata={"tiled_access_tags": ["staff"]}, validate=False)
    uid = str(run.start_doc["uid"])
    with supervisor_without_tiled(tmp_path / "journals") as supervisor:
        publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool", on_error="raise")
        publisher("start", run.start_doc)
        publisher("stop", run.compose_stop(validate=False))
        assert wait_for_outcome(supervisor.journal_dir, uid) == "failed"
        assert publisher.flush(60)
        publisher.close()
    with journal_of(supervisor.journal_dir, uid) as journal:
        assert "'staff' are not for client '' to give" in journal.get("reason")
        assert journal.length == 2


@pytest.mark.parametrize("given", [{"a": 1}, 7, 1.5])
def test_access_tags_that_are_no_texts_are_refused(given: object) -> None:
    with pytest.raises(DocumentError, match="neither a text nor a list of texts"):
        RunWriter()("start", {"uid": "run", "time": 0.0, "tiled_access_tags": given})
