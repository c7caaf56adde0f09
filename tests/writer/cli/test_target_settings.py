"""The settings of several targets: which supervisor gets which, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledwriter.cli import supervisor
from tiledwriter.cli._run_lookup import place_of
from tiledwriter.cli._settings import WrongConfiguration, print_settings, read_settings, read_targets
from tiledwriter.cli._status import find_journal_dirs

TARGETS = """\
journal_dir: {directory}
path_map: {{/data: /mnt/data}}
write_slots: 1
targets:
  old: {{tiled: "http://old:8000"}}
  new:
    tiled: http://new:8000
    write_slots: 3
    path_map: {{/raw: /mnt/raw}}
    journal_dir: {directory}-of-new
"""


@pytest.fixture(autouse=True)
def no_settings_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TILEDWRITER_JOURNAL_DIR", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(TARGETS.format(directory=tmp_path / "journals"))
    return path


def test_each_target_has_the_common_settings_and_its_own(config: Path, tmp_path: Path) -> None:
    targets = {name: loaded.values for name, loaded in read_targets(config, {}).items()}
    old, new = targets["old"], targets["new"]
    assert (old.tiled, old.write_slots, old.path_map) == ("http://old:8000", 1, {"/data": "/mnt/data"})
    assert (new.tiled, new.write_slots) == ("http://new:8000", 3)
    assert new.path_map == {"/data": "/mnt/data", "/raw": "/mnt/raw"}
    assert old.journal_dir == tmp_path / "journals/old"
    assert new.journal_dir == tmp_path / "journals-of-new"
    assert old.log_options().target == "old"
    assert "targets" not in {name for name in type(old).model_fields if not old.has_default(name)}


@pytest.mark.parametrize("variable", [None, "elsewhere"])
def test_all_commands_find_the_same_directories(
    config: Path, tmp_path: Path, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("TILEDWRITER_JOURNAL_DIR", str(tmp_path / variable))
    if variable is not None:
        config.write_text(config.read_text().replace(f"journal_dir: {tmp_path / 'journals'}\n", ""))
        monkeypatch.chdir(tmp_path)
    directories = find_journal_dirs(None, config)
    assert list(directories) == ["old", "new"]
    for name, loaded in read_targets(config, {}).items():
        named = Path(f"{config}:{name}")
        assert loaded.values.journal_dir == place_of(None, named).path == directories[name]
        assert find_journal_dirs(None, named) == {name: directories[name]}


def test_source_of_a_setting_is_the_section(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_settings(read_settings(Path(f"{config}:new"), {}))
    printed = capsys.readouterr().out
    assert f"write_slots: 3  # {config}, line 8" in printed
    assert f"tiled: 'http://new:8000'  # {config}, line 7" in printed


def test_a_command_for_one_target_asks_which(config: Path) -> None:
    with pytest.raises(WrongConfiguration, match=r"several targets; name one of them: --config .*:old or .*:new"):
        read_settings(config, {})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (("  new:", "  New:"), "'New' cannot be the name of a target"),
        (("  new:", "  finished:"), "'finished' cannot be the name of a target"),
        (("http://new:8000", "http://old:8000/"), "the targets old and new have the same Tiled"),
        (("    write_slots: 3", "    listen: localhost:1"), "listen is for all targets together"),
        (
            ("    write_slots: 3", "    write_slot: 3"),
            "line 8: there is no setting write_slot; did you mean write_slots?",
        ),
        (("    write_slots: 3", "    write_slots: many"), "line 8: write_slots: must be a valid integer"),
        (("-of-new", "/old"), "the targets old and new have the same journal_dir"),
        (("write_slots: 1", "http: 8080"), "the targets old and new have the same http, 127.0.0.1:8080"),
        (("write_slots: 1", "profile: beamline"), "give either --tiled URI or --profile NAME"),
    ],
    ids=lambda value: value[1].strip() if isinstance(value, tuple) else "",
)
def test_a_mistake_is_said_with_its_place(config: Path, mistake: tuple[str, str], message: str) -> None:
    assert config.read_text().count(mistake[0])
    config.write_text(config.read_text().replace(*mistake))
    with pytest.raises(WrongConfiguration) as caught:
        read_targets(config, {})
    assert message in str(caught.value)


def test_unknown_target_is_answered_with_the_known_ones(config: Path) -> None:
    with pytest.raises(WrongConfiguration, match=r"has no target newer; did you mean new\? \(its targets: old, new\)"):
        read_settings(Path(f"{config}:newer"), {})


def test_what_differs_between_targets_cannot_be_given_for_all(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongConfiguration, match=r"tiled is given by --tiled for all targets, and in .*line 5 for one"):
        read_targets(config, {"tiled": "http://other:8000"})
    monkeypatch.setenv("TILEDWRITER_WRITE_SLOTS", "2")
    with pytest.raises(WrongConfiguration, match="write_slots is given by TILEDWRITER_WRITE_SLOTS for all targets"):
        read_targets(config, {})


def test_targets_are_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEDWRITER_TARGETS", "{}")
    with pytest.raises(WrongConfiguration, match="TILEDWRITER_TARGETS: targets can be given in a configuration file"):
        read_settings(None, {"tiled": "http://localhost:8000"})


def test_service_refuses_to_leave_journals_of_a_service_without_targets(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILED_API_KEY", "secret")
    (tmp_path / "journals").mkdir()
    (tmp_path / "journals" / "a-run.sqlite").touch()
    assert supervisor.main(["--config", str(config)]) == 2
    assert "1 journals of a service without targets" in capsys.readouterr().err
