from __future__ import annotations

import os
import pickle

import h5py
import numpy
import pytest
from event_model import compose_run
from hypothesis import given
from hypothesis import strategies as st

from tiledbroker import ZMQPublisher
from tiledwriter.mapping._path_map import MappedUri, PathMap
from tiledwriter.testing import SupervisorProcess

POSIX = {"/nsls2/data": "/mnt/data"}
WINDOWS = {"C:\\data": "/mnt/c"}
SHARE = {"\\\\nas\\frames": "/mnt/frames"}


# Which rule applies


@pytest.mark.parametrize(
    ("rules", "published", "registered"),
    [
        (POSIX, "file://localhost/nsls2/data/a/x.h5", "file://localhost/mnt/data/a/x.h5"),
        (POSIX, "file:///nsls2/data/x.h5", "file://localhost/mnt/data/x.h5"),
        (POSIX, "file:/nsls2/data/x.h5", "file://localhost/mnt/data/x.h5"),
        (POSIX, "FILE://LocalHost/nsls2/data/x.h5", "file://localhost/mnt/data/x.h5"),
        (POSIX, "/nsls2/data/x.h5", "file://localhost/mnt/data/x.h5"),
        (POSIX, "file://localhost//nsls2/./data//x.h5", "file://localhost/mnt/data/x.h5"),
        (POSIX, "file://localhost/nsls2/data/frames/", "file://localhost/mnt/data/frames/"),
        (POSIX, "file://localhost/nsls2/data/", "file://localhost/mnt/data/"),
        (POSIX, "file://localhost/nsls2/data", "file://localhost/mnt/data"),
        ({"/nsls2/data/": "/mnt/data/"}, "file://localhost/nsls2/data/x", "file://localhost/mnt/data/x"),
        ({"file://localhost/nsls2": "file://localhost/mnt"}, "/nsls2/x", "file://localhost/mnt/x"),
        ({"/": "/export"}, "file://localhost/nsls2/x", "file://localhost/export/nsls2/x"),
        ({"/chroot": "/"}, "file://localhost/chroot/x", "file://localhost/x"),
        ({"/chroot": "/"}, "file://localhost/chroot", "file://localhost/"),
        ({"/data": "s3://bucket/raw"}, "file://localhost/data/x.h5", "s3://bucket/raw/x.h5"),
        ({"file://ioc7/data": "/mnt/ioc7"}, "file://IOC7/data/x", "file://localhost/mnt/ioc7/x"),
        (WINDOWS, "file://localhost/C:/data/a/x.h5", "file://localhost/mnt/c/a/x.h5"),
        (WINDOWS, "file:///c:/Data/X.h5", "file://localhost/mnt/c/X.h5"),
        (WINDOWS, "file://C:/data/x.h5", "file://localhost/mnt/c/x.h5"),
        (WINDOWS, "file://localhost/C:\\data\\x.h5", "file://localhost/mnt/c/x.h5"),
        (WINDOWS, "C:\\data\\a\\x.h5", "file://localhost/mnt/c/a/x.h5"),
        (WINDOWS, "C:/data/frames\\", "file://localhost/mnt/c/frames/"),
        ({"file://localhost/C:/data": "D:\\data"}, "C:\\data\\x", "file://localhost/D:/data/x"),
        (SHARE, "\\\\NAS\\frames\\x.tif", "file://localhost/mnt/frames/x.tif"),
        (SHARE, "file://nas/frames/x.tif", "file://localhost/mnt/frames/x.tif"),
    ],
)
def test_a_file_is_registered_where_the_server_sees_it(rules, published, registered):
    (rule,) = rules
    assert PathMap.of(rules)(published) == MappedUri(registered, rule)


@pytest.mark.parametrize(
    ("rules", "published"),
    [
        ({}, "file://localhost/nsls2/data/x.h5"),
        (POSIX, "file://localhost/nsls2/database/x.h5"),
        (POSIX, "file://localhost/nsls2"),
        (POSIX, "file://localhost/other/nsls2/data/x.h5"),
        (POSIX, "file://ioc7/nsls2/data/x.h5"),
        (POSIX, "file://localhost/NSLS2/data/x.h5"),
        (POSIX, "nsls2/data/x.h5"),
        (POSIX, "s3://nsls2/data/x.h5"),
        (POSIX, "https://localhost/nsls2/data/x.h5"),
        (POSIX, ""),
        (WINDOWS, "file://localhost/D:/data/x.h5"),
        (WINDOWS, "file://localhost/data/x.h5"),
        ({"file://ioc7/data": "/mnt"}, "file://localhost/data/x"),
    ],
)
def test_a_file_that_no_rule_is_about_stays_as_it_was_published(rules, published):
    assert PathMap.of(rules)(published) == MappedUri(published, None)


@pytest.mark.parametrize("order", [1, -1])
def test_the_rule_with_the_longest_path_applies_whatever_the_order(order):
    rules = [("/data", "/short"), ("/data/raw/a", "/long"), ("/data/raw", "/middle")]
    mapped = PathMap(tuple(rules[::order]))
    assert mapped("/data/raw/a/x") == ("file://localhost/long/x", "/data/raw/a")
    assert mapped("/data/raw/ab/x") == ("file://localhost/middle/ab/x", "/data/raw")
    assert mapped("/data/rawer/x") == ("file://localhost/short/rawer/x", "/data")


def test_what_a_rule_yields_is_not_mapped_again():
    mapped = PathMap.of({"/a": "/b", "/b": "/c"})
    assert mapped("/a/x").uri == "file://localhost/b/x"


# Nothing gets out of a rule's directory


@pytest.mark.parametrize("up", ["..", "%2e%2e", "%2E.", ".%2e"])
def test_a_path_that_leads_out_of_the_directory_is_not_mapped(up):
    published = f"file://localhost/nsls2/data/a/{up}/{up}/secret/x.h5"
    assert PathMap.of(POSIX)(published) == MappedUri(published, None)


@pytest.mark.parametrize("up", ["..", "%2e%2e"])
def test_a_path_is_mapped_by_where_it_leads(up):
    mapped = PathMap.of({**POSIX, "/nsls2/raw": "/mnt/raw"})
    assert mapped(f"file://localhost/nsls2/data/{up}/raw/x").uri == "file://localhost/mnt/raw/x"
    assert mapped(f"file://localhost/nsls2/data/a/{up}/x").uri == "file://localhost/mnt/data/x"
    assert mapped(f"file://localhost/{up}/{up}/nsls2/data/x").uri == "file://localhost/mnt/data/x"


def test_no_path_leads_out_of_its_drive():
    assert PathMap.of({"C:\\": "/mnt/c"})("C:\\..\\..\\x").uri == "file://localhost/mnt/c/x"


@pytest.mark.parametrize("slash", ["%2F", "%2f"])
def test_a_path_with_an_encoded_slash_is_not_mapped(slash):
    published = f"file://localhost/nsls2/data/..{slash}..{slash}etc/x"
    assert PathMap.of(POSIX)(published).rule is None


segments = st.sampled_from(["data", "nsls2", "..", ".", "", "%2e%2e", "..%2f", "a", "%", "C:", "x y", "é"])


@given(st.lists(segments, max_size=8), st.sampled_from(["file://localhost/", "file:///", "/", "file://"]))
def test_no_path_leads_out_of_the_directory(path, beginning):
    mapped = PathMap.of({"/nsls2/data": "/mnt/data"})(beginning + "/".join(path))
    if mapped.rule is not None:
        place = os.path.normpath(mapped.uri.removeprefix("file://localhost"))
        assert f"{place}/".startswith("/mnt/data/")


# Percent signs


@pytest.mark.parametrize("source", ["/my data", "file://localhost/my%20data", "file://localhost/my data"])
@pytest.mark.parametrize("published", ["/my data/x", "file://localhost/my%20data/x", "file://localhost/my data/x"])
def test_a_rule_matches_both_spellings_of_a_path(source, published):
    assert PathMap.of({source: "/mnt"})(published).uri == "file://localhost/mnt/x"


def test_a_plain_path_has_no_encoding():
    mapped = PathMap.of({"/a%20b": "/mnt"})
    assert mapped("/a b/x").rule is None
    assert mapped("/a%20b/x").uri == "file://localhost/mnt/x"


def test_what_follows_the_prefix_keeps_its_spelling():
    mapped = PathMap.of({"/data": "/mnt/my data"})
    assert mapped("file://localhost/data/a%20b/100%/x#1?.h5").uri == "file://localhost/mnt/my data/a%20b/100%/x#1?.h5"


# Rules


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("data", "/mnt", "'data' is neither an absolute path nor a file URI"),
        ("s3://bucket", "/mnt", "neither an absolute path"),
        ("C:data", "/mnt", "neither an absolute path"),
        ("", "/mnt", "neither an absolute path"),
        ("/data%2Fraw", "mnt", "'mnt' is neither an absolute path nor a URI"),
        ("/data", "", "neither an absolute path"),
        ("/data", "/mnt/../etc", "'..'"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(source, target, said):
    with pytest.raises(ValueError, match=said):
        PathMap.of({source: target})


@pytest.mark.parametrize("again", ["/data/", "file://localhost/data", "file:///data/.", "/data/a/.."])
def test_two_rules_for_one_directory_are_refused(again):
    with pytest.raises(ValueError, match="are the same directory"):
        PathMap.of({"/data": "/one", again: "/two"})


def test_a_path_map_can_be_handed_to_another_process():
    mapped = PathMap.of(POSIX)
    copy = pickle.loads(pickle.dumps(mapped))
    assert copy == mapped
    assert copy("/nsls2/data/x") == mapped("/nsls2/data/x")


# The service


@pytest.mark.filterwarnings("default")  # the reading client warns about itself
@pytest.mark.parametrize("legacy", [False, True], ids=["stream_resource", "resource"])
def test_files_are_read_back_from_where_the_server_sees_them(tmp_path, readable, tiled_server, legacy):
    frames = numpy.arange(24).reshape(4, 2, 3)
    directory = readable / tmp_path.name
    directory.mkdir()
    with h5py.File(directory / "frames.h5", "w") as file:
        file["entry/data/data"] = frames
    config = tmp_path / "config.yaml"
    config.write_text(f"path_map:\n  /nsls2/data: {directory}\n  /nsls2: /nowhere\n")
    process = SupervisorProcess(tmp_path / "journals", tiled_server, options=["--config", str(config)])

    with process:
        publisher = ZMQPublisher(process.address, spool_dir=tmp_path / "spool", on_error="raise")
        uid = publish(publisher, legacy)
        assert publisher.wait_written(uid, timeout=60)
        publisher.close()

    node = tiled_server.client()[uid]["primary"]["camera"]
    numpy.testing.assert_array_equal(node.read().reshape(4, 2, 3), frames)
    (asset,) = node.data_sources()[0].assets
    assert asset.data_uri == f"file://localhost{directory}/frames.h5"


def publish(publish_one, legacy):
    """A run with four frames in /nsls2/data/frames.h5."""
    run = compose_run()
    key = {"source": "s", "dtype": "array", "dtype_numpy": "<i8", "shape": [1, 2, 3], "external": "FILE:"}
    stream = run.compose_descriptor(name="primary", data_keys={"camera": key})
    publish_one("start", run.start_doc)
    publish_one("descriptor", stream.descriptor_doc)
    if legacy:
        resource = run.compose_resource(
            spec="AD_HDF5", root="/nsls2/data", resource_path="frames.h5", resource_kwargs={"frame_per_point": 1}
        )
        publish_one("resource", resource.resource_doc)
        for i in range(4):
            datum = resource.compose_datum(datum_kwargs={"point_number": i})
            publish_one("datum", datum)
            data = {"data": {"camera": datum["datum_id"]}, "timestamps": {"camera": i}, "filled": {"camera": False}}
            publish_one("event", stream.compose_event(**data))
    else:
        resource, compose_datum = run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri="file://localhost/nsls2/data/frames.h5",
            data_key="camera",
            parameters={"dataset": "/entry/data/data", "chunk_shape": [1, 2, 3], "join_method": "concat"},
        )
        publish_one("stream_resource", resource)
        datum = compose_datum(indices={"start": 0, "stop": 4}, descriptor=stream.descriptor_doc)
        publish_one("stream_datum", datum)
    publish_one("stop", run.compose_stop())
    return run.start_doc["uid"]
