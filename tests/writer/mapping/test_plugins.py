from __future__ import annotations

import json
import os
import pickle
import re
import sys
import uuid
from pathlib import Path

import h5py
import numpy
import pytest
from event_model import compose_run
from paths import ROOT, search_path
from pydantic import ValidationError
from warm import run_process

from tiledbroker import ZMQPublisher
from tiledwriter._config import load_settings
from tiledwriter._errors import PluginError
from tiledwriter.mapping._consolidators import REGISTRY
from tiledwriter.mapping._normalizer import RunNormalizer
from tiledwriter.mapping._plugins import Plugins, installed_consolidators, load_patches, may_exist
from tiledwriter.mapping._sequence_consolidators import TIFFConsolidator
from tiledwriter.testing import SupervisorProcess

TILED = "http://localhost:8000"
TIFF = "multipart/related;type=image/tiff"
LAB = "application/x-lab"
PAGE = ROOT / "docs" / "how-to" / "own-normalizer-and-consolidators.md"

MODULE = """\
from tiledwriter import RunNormalizer
from tiledwriter.mapping import ArrayConsolidator, TIFFConsolidator

class LabTIFF(TIFFConsolidator):
    pass

class Anything(ArrayConsolidator):
    pass

class Two(ArrayConsolidator):
    mimetypes = frozenset({"application/x-lab", "application/x-lab;v=2"})

class Normalizer(RunNormalizer):
    pass

class NoArguments(RunNormalizer):
    def __init__(self):
        super().__init__()

def patch(document):
    return {**document, "patched": True}

class nested:
    patch = patch

PATCHES = {"start": lambda document: {**document, "patched": "in a table"}}

nothing = None
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The name of a module that can be imported."""
    return importable(tmp_path, monkeypatch, MODULE)


def importable(directory, monkeypatch, text):
    monkeypatch.syspath_prepend(str(directory))
    name = f"lab_{uuid.uuid4().hex}"
    (directory / f"{name}.py").write_text(text)
    return name


def install(directory, package, entry_points):
    """Put a distribution into a directory, as an installer would."""
    information = directory / f"{package}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
    (information / "entry_points.txt").write_text(f"[tiledwriter.consolidators]\n{lines}")


# By configuration


def test_consolidators_are_loaded_by_mimetype(lab):
    plugins = Plugins(consolidators={TIFF: f"{lab}:LabTIFF", "image/x-lab": f"{lab}:Anything"})
    classes = plugins.load_consolidators()
    assert {mimetype: loaded.__name__ for mimetype, loaded in classes.items()} == {
        TIFF: "LabTIFF",
        "image/x-lab": "Anything",
    }


def test_a_normalizer_is_made_with_its_patches(lab):
    plugins = Plugins(f"{lab}:Normalizer", {"start": f"{lab}:patch", "stop": f"{lab}:nested.patch"})
    normalizer = plugins.make_normalizer({"LAB": LAB})
    assert type(normalizer).__name__ == "Normalizer"
    assert normalizer.spec_to_mimetype["LAB"] == LAB
    ((name, document),) = normalizer("start", {"uid": "r", "time": 1.0})
    assert (name, document["patched"]) == ("start", True)


def test_an_entry_of_a_table_of_patches_can_be_named(lab):
    patches = load_patches({"start": f"{lab}:PATCHES.start"})
    assert patches["start"]({}) == {"patched": "in a table"}


def test_nothing_is_needed():
    assert type(Plugins().make_normalizer({})) is RunNormalizer
    assert Plugins().load_consolidators() == {}


def test_names_can_be_handed_to_another_process(lab):
    plugins = Plugins(f"{lab}:Normalizer", {"start": f"{lab}:patch"}, {LAB: f"{lab}:Two"})
    assert pickle.loads(pickle.dumps(plugins)) == plugins


REFUSED = [
    ({"consolidators": {LAB: "LAB:Missing"}}, f"consolidators: '{LAB}': LAB:Missing cannot be imported"),
    ({"consolidators": {LAB: "no_such_module:X"}}, "no_such_module:X cannot be imported (ModuleNotFoundError"),
    ({"consolidators": {LAB: "LAB"}}, "is not of the form module:attribute"),
    ({"consolidators": {LAB: "os; import sys:X"}}, "is not of the form module:attribute"),
    ({"consolidators": {LAB: "../LAB:Two"}}, "is not of the form module:attribute"),
    ({"consolidators": {LAB: "LAB:nothing"}}, "LAB:nothing is not a subclass of Consolidator"),
    ({"consolidators": {LAB: "LAB:Normalizer"}}, "LAB:Normalizer is not a subclass of Consolidator"),
    ({"consolidators": {LAB: "LAB:LabTIFF"}}, "is not among the mimetypes of LAB:LabTIFF"),
    ({"normalizer": "LAB:Two"}, "normalizer: LAB:Two cannot be made (TypeError: "),
    ({"normalizer": "LAB:NoArguments"}, "normalizer: LAB:NoArguments cannot be made (TypeError"),
    ({"normalizer": "LAB:Missing"}, "normalizer: LAB:Missing cannot be imported (AttributeError"),
    ({"patches": {"start": "LAB:nothing"}}, "patches: 'start': LAB:nothing is not a function"),
    ({"patches": {"begin": "LAB:patch"}}, "patches: there is no kind of document called 'begin'"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_be_used_is_refused_with_the_name_of_the_entry(lab, settings, said):
    named = json.loads(json.dumps(settings).replace("LAB", lab))
    with pytest.raises(ValidationError) as raised:
        load_settings(None, {"tiled": TILED, **named})
    (problem,) = raised.value.errors()
    message = f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"
    assert said in message.replace(lab, "LAB")


def test_a_module_that_fails_when_imported_is_refused(tmp_path, monkeypatch):
    broken = importable(tmp_path, monkeypatch, "raise RuntimeError('no licence')\n")
    with pytest.raises(PluginError, match=r"cannot be imported \(RuntimeError: no licence\)"):
        Plugins(consolidators={LAB: f"{broken}:X"}).load_consolidators()


# By entry point


def test_an_entry_point_is_for_the_mimetype_that_is_its_name(lab, tmp_path):
    install(tmp_path, "lab-plugin", {"image/x-lab": f"{lab}:Anything"})
    assert installed_consolidators({}) == {"image/x-lab": f"{lab}:Anything"}


def test_an_entry_point_without_a_mimetype_is_for_those_of_its_class(lab, tmp_path):
    install(tmp_path, "lab-plugin", {"two": f"{lab}:Two [extra]", "tiff": f"{lab}:LabTIFF"})
    assert installed_consolidators({}) == {
        "application/x-lab": f"{lab}:Two",
        "application/x-lab;v=2": f"{lab}:Two",
        TIFF: f"{lab}:LabTIFF",
    }


def test_the_configuration_goes_before_entry_points(lab, tmp_path):
    install(tmp_path, "lab-plugin", {"two": f"{lab}:Two", "image/x-lab": f"{lab}:Anything"})
    settings = load_settings(None, {"tiled": TILED, "consolidators": {LAB: f"{lab}:Anything"}})
    assert settings.consolidators == {
        LAB: f"{lab}:Anything",
        "application/x-lab;v=2": f"{lab}:Two",
        "image/x-lab": f"{lab}:Anything",
    }
    assert settings.worker_options().writing.plugins.consolidators == settings.consolidators


def test_an_entry_point_goes_before_what_the_package_has_itself(lab, tmp_path):
    install(tmp_path, "lab-plugin", {"tiff": f"{lab}:LabTIFF"})
    loaded = Plugins(consolidators=load_settings(None, {"tiled": TILED}).consolidators).load_consolidators()
    assert REGISTRY[TIFF] is TIFFConsolidator
    assert {**REGISTRY, **loaded}[TIFF].__name__ == "LabTIFF"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("image/x-lab", "no_such_module:X", "entry point 'image/x-lab' of lab-plugin: no_such_module:X cannot be"),
        ("image/x-lab", "LAB:Two", "is not among the mimetypes of LAB:Two"),
        ("image/x-lab", "LAB:nothing", "entry point 'image/x-lab' of lab-plugin: LAB:nothing is not a subclass"),
        ("any", "LAB:Anything", "neither 'any' nor the class names a mimetype"),
        ("image/x-lab", "LAB", "'LAB' is not of the form module:attribute"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_refused(lab, tmp_path, name, value, said):
    install(tmp_path, "lab-plugin", {name: value.replace("LAB", lab)})
    with pytest.raises(PluginError) as raised:
        installed_consolidators({})
    assert said in str(raised.value).replace(lab, "LAB")


def test_an_entry_point_that_the_configuration_decides_otherwise_is_not_looked_at(lab, tmp_path):
    install(tmp_path, "lab-plugin", {"image/x-lab": "no_such_module:X"})
    flags = {"tiled": TILED, "consolidators": {"image/x-lab": f"{lab}:Anything"}}
    assert load_settings(None, flags).consolidators == {"image/x-lab": f"{lab}:Anything"}


def test_two_packages_for_one_mimetype_are_refused(lab, tmp_path):
    install(tmp_path, "one", {"two": f"{lab}:Two"})
    install(tmp_path, "other", {LAB: f"{lab}:Anything"})
    with pytest.raises(PluginError) as raised:
        installed_consolidators({})
    assert re.search(r"entry point '\S+' of one", str(raised.value))
    assert re.search(r"entry point '\S+' of other", str(raised.value))
    assert installed_consolidators({LAB: "decided"}) == {"application/x-lab;v=2": f"{lab}:Two"}


# The service


@pytest.mark.parametrize("by", ["configuration", "entry point"])
def test_the_service_does_not_start_with_a_plugin_that_cannot_be_imported(tmp_path, by):
    config = tmp_path / "config.yaml"
    config.write_text(f"tiled: {TILED}\n")
    if by == "configuration":
        config.write_text(f"tiled: {TILED}\nconsolidators:\n  image/x-lab: no_such_module:X\n")
    else:
        install(tmp_path, "lab-plugin", {"image/x-lab": "no_such_module:X"})
    result = run_process(
        [sys.executable, "-m", "tiledwriter.cli.supervisor", "--config", config, "--journal-dir", tmp_path / "j"],
        env={**os.environ, "PYTHONPATH": search_path(tmp_path)},
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "image/x-lab" in line
    assert "no_such_module" in line
    assert ("lab-plugin" in line) == (by == "entry point")


def documented(language):
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return block


@pytest.mark.filterwarnings("default")  # the reading client warns about itself
@pytest.mark.parametrize("by", ["configuration", "entry point"])
def test_the_service_uses_what_the_documentation_shows(tmp_path, readable, tiled_server, by):
    (tmp_path / "lab_plugins.py").write_text(documented("python"))
    text = documented("yaml")
    if by == "entry point":
        text = text.partition("consolidators:")[0]
        (line,) = re.findall(r'^"(.*)" = "(.*)"$', documented("toml"), flags=re.MULTILINE)
        install(tmp_path, "lab-plugins", dict([line]))
    config = tmp_path / "config.yaml"
    config.write_text(text)
    frames = numpy.arange(24).reshape(4, 2, 3)
    directory = readable / tmp_path.name
    directory.mkdir()
    with h5py.File(directory / "frames.h5", "w") as file:
        file["frames"] = frames

    process = SupervisorProcess(
        tmp_path / "journals",
        tiled_server,
        options=["--config", str(config)],
        environment={"PYTHONPATH": search_path(tmp_path)},
    )
    with process:
        publisher = ZMQPublisher(process.address, spool_dir=tmp_path / "spool", on_error="raise")
        uid = publish(publisher, directory)
        assert publisher.wait_written(uid, timeout=60)
        publisher.close()

    run = tiled_server.client()[uid]
    assert run.metadata["start"]["beamline"] == "lab"
    assert run["primary"]["camera"].shape == (4, 2, 3)
    numpy.testing.assert_array_equal(run["primary"]["camera"].read(), frames)


def publish(publish_one, directory):
    """A run with four frames, in an old resource whose descriptor has the wrong shape."""
    run = compose_run()
    key = {"source": "s", "dtype": "array", "dtype_numpy": "<i8", "shape": [3, 2], "external": "FILE:"}
    stream = run.compose_descriptor(name="primary", data_keys={"camera": key})
    resource = run.compose_resource(
        spec="LAB_OLD_CAMERA", root=str(directory), resource_path="frames.h5", resource_kwargs={}
    )
    publish_one("start", run.start_doc)
    publish_one("descriptor", stream.descriptor_doc)
    publish_one("resource", resource.resource_doc)
    for i in range(4):
        datum = resource.compose_datum(datum_kwargs={"point_number": i})
        publish_one("datum", datum)
        data = {"data": {"camera": datum["datum_id"]}, "timestamps": {"camera": i}, "filled": {"camera": False}}
        publish_one("event", stream.compose_event(**data))
    publish_one("stop", run.compose_stop())
    return run.start_doc["uid"]


@pytest.mark.parametrize(
    ("reference", "exists"),
    [
        ("lab_{}.files.camera", True),
        ("lab_{}.files.camera:Consolidator", True),
        ("lab_{}.files.camera:Consolidator.inner", True),
        ("lab_{}.files.camera:Consolidators", False),
        ("lab_{}.files.kamera", False),
        ("lab_{}.folder.camera", False),
        ("lab_{}.files.camera.further", False),
        ("lab_{}.files.camera:", False),
        ("no_such_lab:Consolidator", False),
    ],
)
def test_a_plugin_is_looked_for_without_importing_it(
    reference: str, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"lab_{uuid.uuid4().hex}"
    (tmp_path / package / "files").mkdir(parents=True)
    (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / package / "files" / "__init__.py").touch()
    (tmp_path / package / "folder").mkdir()
    (tmp_path / package / "files" / "camera.py").write_text("class Consolidator: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert may_exist(reference.replace("lab_{}", package)) == exists
    assert package not in sys.modules
