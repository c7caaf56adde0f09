from __future__ import annotations

import os
import sys

import msgspec
import pytest
from pydantic import ValidationError
from warm import run_process

from tiledbroker.log._lock import FileLock
from tiledwriter._config import load_settings
from tiledwriter.mapping._path_map import PathMap
from tiledwriter.mapping._plugins import Plugins
from tiledwriter.mapping._stream_filter import StreamFilter
from tiledwriter.worker._worker import TiledAddress

TILED = "http://localhost:8000"


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("TILEDWRITER_"):
            monkeypatch.delenv(name)


@pytest.fixture
def write_yaml(tmp_path):
    def write(text):
        path = tmp_path / "config.yml"
        path.write_text(text)
        return path

    return write


def supervisor(*arguments, **environment):
    """Run the command to its end."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TILEDWRITER_")}
    return run_process(
        [sys.executable, "-m", "tiledwriter.cli.supervisor", *map(str, arguments)],
        timeout=60,
        env={**clean, **environment},
    )


# Precedence


def test_flags_win_over_the_environment_and_that_over_the_file(write_yaml, monkeypatch):
    config = write_yaml(f"tiled: {TILED}/file\nmax_workers: 1\nwindow: 1000\nlog_level: debug\n")
    monkeypatch.setenv("TILEDWRITER_MAX_WORKERS", "2")
    monkeypatch.setenv("TILEDWRITER_TILED", f"{TILED}/environment")

    settings = load_settings(config, {"tiled": f"{TILED}/flag", "log_format": None})

    assert settings.tiled == f"{TILED}/flag"
    assert settings.max_workers == 2
    assert settings.window == 1000
    assert settings.log_level == "DEBUG"
    assert settings.log_format == "auto"


def test_a_file_is_not_needed(monkeypatch, tmp_path):
    monkeypatch.setenv("TILEDWRITER_PROFILE", "beamline")
    monkeypatch.setenv("TILEDWRITER_JOURNAL_DIR", str(tmp_path))
    settings = load_settings(None, {})
    assert settings.profile == "beamline"
    assert settings.journal_dir == tmp_path


def test_one_file_does_not_leak_into_the_next_settings(write_yaml):
    load_settings(write_yaml("max_workers: 3\n"), {"tiled": TILED})
    assert load_settings(None, {"tiled": TILED}).max_workers != 3


def test_workers_are_told_what_concerns_them(write_yaml):
    config = write_yaml("max_array_size: 5\nquiet_period: 1.5\npoison_after: 7\nlog_format: json\n")
    options = load_settings(config, {"tiled": TILED}).worker_options()
    assert options.tiled == TiledAddress(TILED, None)
    assert options.writing.max_array_size == 5
    assert options.writing.quiet_period == 1.5
    assert options.writing.poison_after == 7
    assert (options.logging.level, options.logging.form) == ("INFO", "json")


def test_workers_are_told_what_to_write_and_how(write_yaml):
    config = write_yaml(
        "path_map: {/nsls2/data: /mnt/data}\n"
        "streams: {include: [p*], exclude: [primary_*]}\n"
        "spec_to_mimetype: {LAB: application/x-lab}\n"
        "normalizer: tiledwriter:RunNormalizer\n"
        "patches: {start: 'builtins:dict'}\n"
        "consolidators: {application/x-lab: 'tiledwriter:Consolidator'}\n"
    )
    writing = load_settings(config, {"tiled": TILED}).worker_options().writing
    assert writing.path_map == PathMap((("/nsls2/data", "/mnt/data"),))
    assert writing.streams == StreamFilter(("p*",), ("primary_*",))
    assert writing.spec_to_mimetype == {"LAB": "application/x-lab"}
    assert writing.plugins == Plugins(
        "tiledwriter:RunNormalizer", {"start": "builtins:dict"}, {"application/x-lab": "tiledwriter:Consolidator"}
    )


def test_mappings_in_the_environment_are_json_and_add_to_those_in_the_file(write_yaml, monkeypatch):
    config = write_yaml("path_map: {/a: /1, /b: /2}\nstreams: {include: [p*], exclude: [x]}\n")
    monkeypatch.setenv("TILEDWRITER_PATH_MAP", '{"/b": "/3", "/c": "/4"}')
    monkeypatch.setenv("TILEDWRITER_STREAMS", '{"exclude": ["baseline"]}')
    settings = load_settings(config, {"tiled": TILED})
    assert settings.path_map == {"/a": "/1", "/b": "/3", "/c": "/4"}
    assert (settings.streams.include, settings.streams.exclude) == (["p*"], ["baseline"])


@pytest.mark.parametrize(("given", "told"), [("2MiB", b"2097152"), ("0", b"0")])
def test_a_size_is_a_plain_number_that_the_status_can_tell(write_yaml, given, told):
    min_free = load_settings(write_yaml(f"tiled: {TILED}\nmin_free: {given}\n"), {}).min_free
    assert msgspec.json.encode(min_free) == told


def test_a_server_need_not_be_given_where_none_is_asked():
    assert load_settings(None, {}, server=False).tiled is None
    assert load_settings(None, {"tiled": TILED, "profile": "beamline"}, server=False).profile == "beamline"


def test_addresses_are_taken_as_bluesky_takes_them():
    assert load_settings(None, {"tiled": TILED, "listen": "localhost:5579"}).listen == "tcp://localhost:5579"


# Refusals


@pytest.mark.parametrize("flags", [{}, {"tiled": TILED, "profile": "beamline"}])
def test_exactly_one_server_has_to_be_given(flags):
    with pytest.raises(ValidationError, match="either --tiled URI or --profile NAME"):
        load_settings(None, flags)


def test_unknown_keys_are_refused(write_yaml):
    with pytest.raises(ValidationError) as raised:
        load_settings(write_yaml("max_wrokers: 3\n"), {"tiled": TILED})
    (problem,) = raised.value.errors()
    assert problem["loc"] == ("max_wrokers",)


@pytest.mark.parametrize(
    "line",
    [
        *("max_workers: 0", "window: -1", "quiet_period: 0", "log_level: loud", "log_format: xml"),
        *("max_array_size: -1", "path_map: {data: /mnt}", "path_map: {/data: mnt}", "path_map: {/a: /1, /a/: /2}"),
        *("streams: {only: [a]}", "streams: {include: []}", "streams: [a]", "headers: {A B: c}"),
        *("normalizer: RunNormalizer", "patches: {start: 1}", "consolidators: {image/tiff: 'os:path'}"),
    ],
)
def test_values_that_make_no_sense_are_refused(write_yaml, line):
    with pytest.raises(ValidationError) as raised:
        load_settings(write_yaml(line + "\n"), {"tiled": TILED})
    assert raised.value.errors()[0]["loc"][0] == line.partition(":")[0]


@pytest.mark.parametrize(
    "line",
    ["listen: localhost:5580", "curve: /keys", "insecure: true", "window: 1000", "max_connections: 3"],
)
def test_what_has_no_effect_with_a_log_is_refused(write_yaml, line):
    name = line.partition(":")[0]
    with pytest.raises(ValidationError, match=f"with source, .*: {name} would have no effect; remove it"):
        load_settings(write_yaml(f"source: nats://log\n{line}\n"), {"tiled": TILED})
    load_settings(write_yaml(f"{line}\n"), {"tiled": TILED})


@pytest.mark.parametrize(
    "line", ["source_credentials: /c", "source_tls: /t", "source_tls_client: /t", "keep_in_log: 2d"]
)
def test_what_is_for_a_log_is_refused_without_one(write_yaml, line):
    name = line.partition(":")[0]
    with pytest.raises(ValidationError, match=f"{name} is for source, which is not set"):
        load_settings(write_yaml(f"{line}\n"), {"tiled": TILED})
    load_settings(write_yaml(f"source: nats://log\n{line}\n"), {"tiled": TILED})


def test_defaults_that_are_written_down_are_taken_with_a_log(write_yaml):
    text = "source: tls://b,a\ninsecure: false\ncurve: null\nlisten: tcp://127.0.0.1:5579\n"
    settings = load_settings(write_yaml(text), {"tiled": TILED, "listen": None})
    assert settings.source == "tls://a:4222,b:4222"
    assert settings.log_address().must_be_encrypted


@pytest.mark.parametrize("line", ["source: nats://log", "lease_dir: /shared"])
def test_several_targets_have_neither_a_log_nor_a_lease(write_yaml, line):
    sections = "targets:\n  old: {tiled: http://old:8000}\n  new: {tiled: http://new:8000}\n"
    file = write_yaml(f"{line}\n{sections}")
    for given in (file, f"{file}:new"):
        result = supervisor("--config", given)
        assert result.returncode == 2
        assert "it cannot be used with targets" in result.stderr
        assert f"{line.partition(':')[0]} comes from {file}, line 1" in result.stderr


# The command


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"tiled: {TILED}\nmax_wrokers: 3\n", "max_wrokers"),
        (f"tiled: {TILED}\nprofile: beamline\n", "either --tiled URI or --profile NAME"),
        ("max_workers: 3\n", "either --tiled URI or --profile NAME"),
        (f"tiled: {TILED}\nmax_workers: many\n", "max_workers"),
        (f"tiled: {TILED}\nlisten: 'udp://x:1'\n", "udp://x:1"),
        (f"tiled: {TILED}\nsource: nats://log\ncurve: /keys\n", "(curve comes from"),
        ("tiled: [unclosed\n", "config.yml"),
        ("- a list\n", "config.yml"),
    ],
    ids=["unknown key", "both servers", "no server", "no number", "no address", "no effect", "no YAML", "no mapping"],
)
def test_the_command_refuses_a_wrong_configuration_in_one_line(write_yaml, tmp_path, text, said):
    result = supervisor("--config", write_yaml(text), "--journal-dir", tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("tiledwriter-supervisor: ")
    assert said in line


def test_the_command_refuses_a_variable_that_is_no_json(tmp_path):
    result = supervisor("--tiled", TILED, "--journal-dir", tmp_path, TILEDWRITER_PATH_MAP="/a=/b")
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "path_map" in line
    assert "JSON" in line


def test_the_command_refuses_a_missing_configuration_file(tmp_path):
    result = supervisor("--config", tmp_path / "none.yml", "--tiled", TILED)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "none.yml" in line


def test_the_command_refuses_two_servers_from_different_places(tmp_path):
    result = supervisor("--tiled", TILED, "--journal-dir", tmp_path, TILEDWRITER_PROFILE="beamline")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "either --tiled URI or --profile NAME" in line


def test_the_command_refuses_two_servers_as_flags(tmp_path):
    result = supervisor("--tiled", TILED, "--profile", "beamline", "--journal-dir", tmp_path)
    assert result.returncode == 2
    assert "not allowed with argument --tiled" in result.stderr.splitlines()[-1]


def test_a_directory_that_another_supervisor_uses_is_left_alone(tmp_path):
    lock = FileLock(tmp_path / ".supervisor.lock")
    lock.acquire()
    try:
        result = supervisor("--tiled", TILED, "--journal-dir", tmp_path, "--listen", "tcp://127.0.0.1:*", "--drain")
    finally:
        lock.release()
    assert result.returncode == 3
    assert result.stderr.splitlines()[-1].startswith("tiledwriter-supervisor: another tiledwriter-supervisor uses")


def test_the_home_directory_may_be_written_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "config.yaml"
    file.write_text("tiled: http://localhost:8000\ncurve: ~/keys\napi_key_file: ~/key\njournal_dir: ~/journals\n")
    settings = load_settings(file, {})
    assert (settings.curve, settings.api_key_file, settings.journal_dir) == (
        tmp_path / "keys",
        tmp_path / "key",
        tmp_path / "journals",
    )


@pytest.mark.parametrize("text", ["5%", "1,5 GiB", "1,000MiB", "1.5.5GiB", "100-MiB", "2 GiB or so"])
def test_a_size_is_read_to_its_end(write_yaml, text):
    with pytest.raises(ValidationError, match="is not a size such as"):
        load_settings(write_yaml(f"tiled: {TILED}\nmin_free: '{text}'\n"), {})


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 500_000_000), ("2GiB", 2**31), (" 1.5 GiB ", 3 * 2**29), ("7", 7)]
)
def test_a_size_may_have_a_unit(write_yaml, text, size):
    assert load_settings(write_yaml(f"tiled: {TILED}\nmin_free: '{text}'\n"), {}).min_free == size


@pytest.mark.parametrize("setting", ["max_workers", "park_after", "min_free", "write_slots", "keep_written"])
@pytest.mark.parametrize("word", ["yes", "off"])
def test_a_word_that_is_a_boolean_in_yaml_is_no_number(write_yaml, setting, word):
    with pytest.raises(ValidationError, match="is no number: YAML reads yes, no, on and off as"):
        load_settings(write_yaml(f"tiled: {TILED}\n{setting}: {word}\n"), {})
