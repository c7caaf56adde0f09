"""Facts about consolidators: stream resources and stream datums in, Tiled data sources out."""

from __future__ import annotations

import copy
import json
from typing import Any, ClassVar

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiledwriter
from tiledwriter._errors import DocumentError
from tiledwriter.mapping import ArrayConsolidator, Consolidator, Region, SequenceConsolidator, _consolidator
from tiledwriter.mapping._columns import dtype_kind
from tiledwriter.mapping._consolidator import compile_template
from tiledwriter.mapping._consolidators import REGISTRY, consolidator_for

HDF5 = "application/x-hdf5"
TIFF = "multipart/related;type=image/tiff"
JPEG = "multipart/related;type=image/jpeg"
NPY = "multipart/related;type=application/x-npy"
CSV = "text/csv;header=absent"
BYTES = "application/octet-stream"

UINT16 = {"endianness": "little", "kind": "u", "itemsize": 2, "dt_units": None}


def resource(mimetype: str, uid: str = "res", uri: str = "file://localhost/d/", **parameters: Any) -> dict[str, Any]:
    defaults = {"dataset": "/x"} if mimetype == HDF5 else {}
    parameters = {**defaults, **parameters}
    return {"uid": uid, "data_key": "img", "mimetype": mimetype, "uri": uri, "parameters": parameters}


def descriptor(shape: list[Any], dtype: Any = "<u2", **key: Any) -> dict[str, Any]:
    return {"uid": "desc", "data_keys": {"img": {"shape": shape, "dtype_numpy": dtype, **key}}}


def datum(start: int, stop: int, uid: str = "res") -> dict[str, Any]:
    limits = {"indices": {"start": start, "stop": stop}, "seq_nums": {"start": start + 1, "stop": stop + 1}}
    return {"uid": "datum", "stream_resource": uid, "descriptor": "desc", **limits}


def filled(mimetype: str, shape: list[int], rows: int = 5, **parameters: Any) -> dict[str, Any]:
    """The data source of one resource after one datum."""
    consolidator = consolidator_for(resource(mimetype, **parameters), descriptor(shape))
    consolidator.consume(datum(0, rows))
    return consolidator.data_source()


def layout(source: dict[str, Any]) -> tuple[list[int], list[list[int]]]:
    return source["structure"]["shape"], source["structure"]["chunks"]


def files(source: dict[str, Any]) -> list[str]:
    assert [asset["num"] for asset in source["assets"]] == list(range(len(source["assets"])))
    return [asset["data_uri"].removeprefix("file://localhost/") for asset in source["assets"]]


boxes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)).map(
    lambda box: Region(offset=box[:2], shape=box[2:])
)


def test_the_union_of_two_patches_covers_both() -> None:
    assert Region((2, 0), (3, 4)).union(Region((7, 1), (2, 5))) == Region((2, 0), (7, 6))


@given(boxes, boxes, boxes)
def test_patches_join_in_any_order(a: Region, b: Region, c: Region) -> None:
    assert a.union(b) == b.union(a)
    assert a.union(b).union(c) == a.union(b.union(c))
    assert a.union(a) == a


def test_a_single_hdf5_file_is_described_in_full() -> None:
    parameters = {"spec": "AD_HDF5", "chunk_shape": (2,), "swmr": False, "slice": (":", "1"), "squeeze": True}
    consolidator = consolidator_for(resource(HDF5, uri="file://localhost/f.h5", **parameters), descriptor([4, 5]))
    assert consolidator.consume(datum(0, 2)) == Region((0, 0, 0), (2, 4, 5))
    assert consolidator.consume(datum(2, 5)) == Region((2, 0, 0), (3, 4, 5))
    assert consolidator.rows == 5
    assert consolidator.metadata == {"spec": "AD_HDF5"}
    asset = {"data_uri": "file://localhost/f.h5", "is_directory": False, "parameter": "data_uris", "num": 0}
    assert consolidator.data_source() == {
        "structure_family": "array",
        "structure": {
            "data_type": UINT16,
            "shape": [5, 4, 5],
            "chunks": [[2, 2, 1], [4], [5]],
            "dims": None,
            "resizable": False,
        },
        "mimetype": HDF5,
        "parameters": {"dataset": "/x", "slice": [":", "1"], "squeeze": True, "swmr": False, "locking": None},
        "properties": {},
        "assets": [asset],
        "management": "external",
    }


@pytest.mark.parametrize("mimetype", sorted(REGISTRY))
def test_data_sources_are_plain_json_before_and_after_the_first_datum(mimetype: str) -> None:
    consolidator = consolidator_for(resource(mimetype, template="%d.x"), descriptor([4, 5], dims=["y", "x"]))
    empty = consolidator.data_source()
    consolidator.consume(datum(0, 3))
    for source in (empty, consolidator.data_source()):
        assert json.loads(json.dumps(source, allow_nan=False)) == source
    assert empty["structure"].get("shape", [0])[0] == 0
    assert consolidator.rows == 3


@pytest.mark.parametrize("mimetype", sorted(REGISTRY))
def test_nothing_that_is_given_is_changed(mimetype: str) -> None:
    given = resource(mimetype, template="%d.x", nested={"a": [1]}), descriptor([4, 5]), datum(0, 3)
    before = copy.deepcopy(given)
    consolidator = consolidator_for(*given[:2])
    consolidator.consume(given[2])
    consolidator.add_resource(given[0])
    assert given == before


@pytest.mark.parametrize(
    ("shape", "parameters", "expected_shape", "expected_chunks"),
    [
        ([1], {}, [5], [[5]]),
        ([], {}, [5], [[5]]),
        ([4, 5], {}, [5, 4, 5], [[5], [4], [5]]),
        ([4, 5], {"chunk_shape": [3, 2]}, [5, 4, 5], [[3, 2], [2, 2], [5]]),
        ([4, 5], {"multiplier": 3}, [5, 3, 4, 5], [[5], [3], [4], [5]]),
        ([1, 4, 5], {"multiplier": 3}, [5, 3, 4, 5], [[5], [3], [4], [5]]),
        ([3, 4, 5], {"multiplier": 3}, [5, 3, 4, 5], [[5], [3], [4], [5]]),
        ([], {"multiplier": 3}, [5, 3], [[5], [3]]),
        ([3, 4], {"join_method": "concat"}, [15, 4], [[15], [4]]),
        ([3, 4], {"join_method": "concat", "chunk_shape": [2]}, [15, 4], [[2] * 7 + [1], [4]]),
        ([3, 4], {"join_method": "concat", "chunk_shape": [2], "join_chunks": False}, [15, 4], [[2, 1] * 5, [4]]),
        ([1], {"join_method": "concat"}, [5], [[5]]),
        ([], {"join_method": "concat", "chunk_shape": [2], "join_chunks": False}, [5], [[2, 2, 1]]),
    ],
)
def test_shape_and_chunks(
    shape: list[int], parameters: dict[str, Any], expected_shape: list[int], expected_chunks: list[list[int]]
) -> None:
    assert layout(filled(HDF5, shape, **parameters)) == (expected_shape, expected_chunks)


def test_concatenated_patches_count_along_the_joined_axis() -> None:
    consolidator = consolidator_for(resource(HDF5, join_method="concat"), descriptor([3, 4]))
    assert consolidator.consume(datum(0, 2)) == Region((0, 0), (6, 4))
    assert consolidator.consume(datum(2, 5)) == Region((6, 0), (9, 4))


@given(st.lists(st.integers(0, 4), max_size=6), st.sampled_from(["stack", "concat"]), st.integers(1, 5))
def test_patches_tile_the_array_and_chunks_add_up_to_it(steps: list[int], join_method: str, chunk: int) -> None:
    parameters = {"join_method": join_method, "chunk_shape": [chunk]}
    consolidator = consolidator_for(resource(HDF5, **parameters), descriptor([3, 2]))
    end = index = 0
    for step in steps:
        patch = consolidator.consume(datum(index, index + step))
        assert patch.offset[0] == end
        end, index = end + patch.shape[0], index + step
    shape, chunks = layout(consolidator.data_source())
    assert shape[0] == end
    assert [sum(sizes) for sizes in chunks] == shape


def test_skipped_rows_do_not_leave_holes() -> None:
    consolidator = consolidator_for(resource(HDF5), descriptor([4]))
    consolidator.consume(datum(0, 2))
    assert consolidator.consume(datum(5, 6)) == Region((2, 0), (1, 4))
    assert layout(consolidator.data_source()) == ([3, 4], [[3], [4]])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (None, {"endianness": "little", "kind": "f", "itemsize": 8, "dt_units": None}),
        ("|b1", {"endianness": "not_applicable", "kind": "b", "itemsize": 1, "dt_units": None}),
        (">i4", {"endianness": "big", "kind": "i", "itemsize": 4, "dt_units": None}),
        ("<M8[ns]", {"endianness": "little", "kind": "M", "itemsize": 8, "dt_units": "[ns]"}),
        (
            [["x", "<u2"], ["y", "<u2", [2]]],
            {
                "itemsize": 6,
                "fields": [{"name": "x", "dtype": UINT16, "shape": None}, {"name": "y", "dtype": UINT16, "shape": [2]}],
            },
        ),
        (
            [["in", [["x", "<u2"]]]],
            {
                "itemsize": 2,
                "fields": [
                    {
                        "name": "in",
                        "dtype": {"itemsize": 2, "fields": [{"name": "x", "dtype": UINT16, "shape": None}]},
                        "shape": None,
                    }
                ],
            },
        ),
    ],
)
def test_numpy_types_are_spelled_as_tiled_does(dtype: Any, expected: dict[str, Any]) -> None:
    consolidator = consolidator_for(resource(HDF5), descriptor([], dtype))
    assert consolidator.data_source()["structure"]["data_type"] == expected


def test_stacked_arrays_have_time_before_their_own_dimensions() -> None:
    stacked = consolidator_for(resource(HDF5), descriptor([4, 5], dims=["y", "x"]))
    assert stacked.data_source()["structure"]["dims"] == ["time", "y", "x"]
    joined = consolidator_for(resource(HDF5, join_method="concat"), descriptor([4, 5], dims=["y", "x"]))
    assert joined.data_source()["structure"]["dims"] == ["y", "x"]


def test_names_that_do_not_match_the_dimensions_are_left_out_and_noted() -> None:
    consolidator = consolidator_for(resource(HDF5, multiplier=2), descriptor([4, 5], dims=["y", "x"]))
    assert consolidator.data_source()["structure"]["dims"] is None
    assert consolidator.notes == ["Data key 'img': 4 dimensions do not have the names ['time', 'y', 'x']."]


def test_frames_per_point_are_metadata() -> None:
    consolidator = consolidator_for(resource(HDF5, multiplier=2, spec="XSP3"), descriptor([4, 5]))
    assert consolidator.metadata == {"spec": "XSP3", "frame_per_point": 2}


def test_further_hdf5_resources_are_further_files() -> None:
    consolidator = consolidator_for(resource(HDF5, "one", "file://localhost/1.h5"), descriptor([4]))
    consolidator.consume(datum(0, 2, "one"))
    consolidator.add_resource(resource(HDF5, "two", "file://localhost/2.h5"))
    assert consolidator.consume(datum(2, 3, "two")) == Region((2, 0), (1, 4))
    assert files(consolidator.data_source()) == ["1.h5", "2.h5"]
    taken = "its frames are in several files, each of which is taken to have no others than were announced."
    goes_on = "frame 2 is taken to be the first of further files, as there were 2 before."
    assert consolidator.notes == [f"Data key 'img': {taken}", f"Data key 'img': {goes_on}"]


def test_a_file_that_is_announced_again_is_there_once() -> None:
    consolidator = consolidator_for(resource(HDF5, "one", "file://localhost/1.h5"), descriptor([4]))
    consolidator.add_resource(resource(HDF5, "two", "file://localhost/1.h5"))
    assert files(consolidator.data_source()) == ["1.h5"]


@pytest.mark.parametrize(
    ("mimetype", "parameters"),
    [
        (HDF5, {"dataset": "/other"}),
        (HDF5, {"dataset": "/other", "template": "%d.h5"}),
        (HDF5, {"slice": ":,2:4"}),
        (HDF5, {"multiplier": 3}),
        (TIFF, {"multiplier": 3}),
        (TIFF, {"join_method": "concat"}),
        (CSV, {"skiprows": 2}),
    ],
)
def test_files_that_would_be_read_as_the_first_are_refused(mimetype: str, parameters: dict[str, Any]) -> None:
    template = {"template": "%d"} if mimetype == TIFF or "template" in parameters else {}
    consolidator = consolidator_for(resource(mimetype, **template), descriptor([4]))
    consolidator.consume(datum(0, 1))
    before = consolidator.data_source()
    with pytest.raises(DocumentError, match=f"different {next(iter(parameters))}s"):
        consolidator.add_resource(resource(mimetype, "two", **{**template, **parameters}))
    assert consolidator.data_source() == before


@pytest.mark.parametrize("mimetype", [HDF5, CSV, BYTES, TIFF])
@pytest.mark.parametrize("name", ["scan#3", "scan?3", "scan\t3", "scan3\n", "#"])
@pytest.mark.parametrize("scheme", ["file", "FILE", " File"])
def test_a_file_that_tiled_would_look_for_under_another_name_is_refused(scheme: str, mimetype: str, name: str) -> None:
    template = {"template": "_%d.tiff"} if mimetype == TIFF else {}
    with pytest.raises(DocumentError, match="opens the file named without it"):
        filled(mimetype, [4], uri=f"{scheme}://localhost/d/{name}", **template)


def test_a_uri_that_cannot_be_parsed_is_refused() -> None:
    with pytest.raises(DocumentError, match="is no URI"):
        consolidator_for(resource(HDF5, uri="file://[/a.h5"), descriptor([4]))


@pytest.mark.parametrize(("host", "noted"), [("", False), ("localhost", False), ("other", True), ("other:80", True)])
def test_files_of_another_host_are_noted_once(host: str, noted: bool) -> None:
    consolidator = consolidator_for(resource(HDF5, uri=f"file://{host}/a.h5"), descriptor([4]))
    consolidator.add_resource(resource(HDF5, "two", uri=f"file://{host}/b.h5"))
    note = f"Data key 'img': Tiled looks on its own host for the files that its documents name on '{host}'."
    assert (note in consolidator.notes) is noted
    assert len([text for text in consolidator.notes if "host" in text]) == noted


def test_what_tiled_does_not_decode_is_noted() -> None:
    consolidator = consolidator_for(resource(HDF5, uri="file://localhost/a%20b.h5"), descriptor([4]))
    assert consolidator.notes == ["Data key 'img': Tiled takes '%20' in its URIs for a part of the file's name."]


def test_a_dataset_may_be_spelled_with_more_slashes() -> None:
    consolidator = consolidator_for(resource(HDF5, dataset="/entry/data"), descriptor([4]))
    for uid, dataset in enumerate(["entry/data", "/entry//data/"]):
        consolidator.add_resource(resource(HDF5, str(uid), dataset=dataset))
        consolidator.consume(datum(uid, uid + 1, str(uid)))
    source = consolidator.data_source()
    assert source["parameters"]["dataset"] == "/entry/data"
    assert source["structure"]["shape"] == [2, 4]
    assert len(source["assets"]) == 1


@pytest.mark.parametrize("multiplier", [2, 2.0, numpy.int64(2)])
def test_frames_per_point_may_be_a_number_of_any_type(multiplier: Any) -> None:
    source = filled(HDF5, [2, 4], multiplier=multiplier)
    assert source["structure"]["shape"] == [5, 2, 4]


def test_an_hdf5_resource_with_a_dataset_that_is_no_text_is_refused() -> None:
    with pytest.raises(DocumentError, match="dataset is 5"):
        consolidator_for(resource(HDF5, dataset=5), descriptor([4])).data_source()


def test_an_hdf5_resource_without_a_dataset_is_refused() -> None:
    with pytest.raises(DocumentError, match="no 'dataset'"):
        consolidator_for(resource(HDF5, dataset=""), descriptor([4])).data_source()


@pytest.mark.parametrize("given", [1, 0, [0], [-1], "1", [1.5], {"a": 1}])
def test_a_chunk_shape_that_is_none_is_taken_to_be_unknown(given: Any) -> None:
    consolidator = consolidator_for(resource(HDF5, chunk_shape=given), descriptor([4]))
    consolidator.consume(datum(0, 3))
    assert layout(consolidator.data_source()) == ([3, 4], [[3], [4]])
    assert not given or consolidator.notes == [
        f"Data key 'img': chunk_shape {given!r} is none; it is taken to be unknown."
    ]


def test_a_chunk_shape_that_is_too_long_is_cut() -> None:
    consolidator = consolidator_for(resource(HDF5, chunk_shape=[2, 1]), descriptor([]))
    consolidator.consume(datum(0, 3))
    assert layout(consolidator.data_source()) == ([3], [[2, 1]])
    consolidator.add_resource(resource(HDF5, "two", uri="file://localhost/2", chunk_shape=[3]))
    assert consolidator.notes[:2] == [
        "Data key 'img': chunk_shape (2, 1) has more dimensions than its array; the first ones count.",
        "Data key 'img': chunk_shape differs between its resources; (2, 1) counts.",
    ]


@pytest.mark.parametrize("mimetype", [TIFF, JPEG, HDF5])
def test_a_sequence_has_one_file_per_datum(mimetype: str) -> None:
    source = filled(mimetype, [4, 5], rows=2, template="%s%s_%06d.x", filename="im")
    assert files(source) == ["d/im_000000.x", "d/im_000001.x"]
    assert layout(source) == ([2, 4, 5], [[1, 1], [4], [5]])
    assert source["properties"] == {}
    assert source["mimetype"] == mimetype
    assert ("dataset" in source["parameters"]) == (mimetype == HDF5)


def test_npy_sequences_have_one_frame_per_file_under_a_fixed_name() -> None:
    source = filled(NPY, [4, 5], rows=2, filename="im", template="ignored")
    assert files(source) == ["d/im_0.npy", "d/im_1.npy"]
    assert layout(source) == ([2, 4, 5], [[1, 1], [4], [5]])
    assert layout(filled(NPY, [1], rows=2)) == ([2], [[1, 1]])


@pytest.mark.parametrize(
    ("shape", "parameters", "number", "properties"),
    [
        ([1, 4, 5], {"multiplier": 2}, 4, {"chunks": [[1, 1, 1, 1], [4], [5]]}),
        ([4, 4, 5], {"chunk_shape": [2, 4, 5]}, 4, {"chunks": [[1, 1, 1, 1], [2], [4], [5]]}),
        ([6, 4, 5], {"files_per_datum": 3}, 6, {"chunks": [[1] * 6, [2], [4], [5]]}),
        ([4, 5], {"join_method": "concat", "chunk_shape": [2]}, 4, {}),
        ([6, 4, 5], {"chunk_shape": [1]}, 2, {}),
    ],
)
def test_a_datum_may_be_split_over_files(
    shape: list[int], parameters: dict[str, Any], number: int, properties: dict[str, Any]
) -> None:
    source = filled(TIFF, shape, rows=2, template="%d.tif", **parameters)
    assert files(source) == [f"d/{n}.tif" for n in range(number)]
    assert source["properties"] == properties


def test_frames_that_do_not_divide_a_datum_make_one_file_of_it() -> None:
    stream_resource = resource(TIFF, template="%d.tif", join_method="concat", chunk_shape=[3])
    with pytest.warns(UserWarning, match="does not divide a datum of 4"):
        consolidator = consolidator_for(stream_resource, descriptor([4, 5]))
    consolidator.consume(datum(0, 2))
    assert layout(consolidator.data_source()) == ([8, 5], [[4, 4], [5]])
    assert len(consolidator.data_source()["assets"]) == 2
    assert consolidator.notes == [
        "Data key 'img': 3 frames per file does not divide a datum of 4; each datum is taken to be one file."
    ]


def test_the_next_resource_of_a_sequence_counts_from_zero_in_its_own_directory() -> None:
    consolidator = consolidator_for(resource(TIFF, "one", template="a_%d.tif"), descriptor([4, 5]))
    consolidator.consume(datum(0, 2, "one"))
    consolidator.add_resource(resource(TIFF, "two", "file://localhost/e/", template="b_%d.tif"))
    assert consolidator.consume(datum(2, 4, "two")) == Region((2, 0, 0), (2, 4, 5))
    assert files(consolidator.data_source()) == ["d/a_0.tif", "d/a_1.tif", "e/b_0.tif", "e/b_1.tif"]


def test_indices_that_start_again_with_each_resource_name_the_same_files() -> None:
    consolidator = consolidator_for(resource(TIFF, "one", template="a_%d.tif"), descriptor([4, 5]))
    consolidator.consume(datum(0, 2, "one"))
    consolidator.add_resource(resource(TIFF, "two", template="b_%d.tif"))
    consolidator.consume(datum(0, 1, "two"))
    consolidator.consume(datum(1, 3, "two"))
    assert files(consolidator.data_source())[2:] == ["d/b_0.tif", "d/b_1.tif", "d/b_2.tif"]


def test_datums_of_an_earlier_resource_may_still_come() -> None:
    consolidator = consolidator_for(resource(TIFF, "one", template="a_%d.tif"), descriptor([4, 5]))
    consolidator.consume(datum(0, 1, "one"))
    consolidator.add_resource(resource(TIFF, "two", template="b_%d.tif"))
    consolidator.consume(datum(1, 2, "two"))
    consolidator.consume(datum(1, 2, "one"))
    assert files(consolidator.data_source()) == ["d/a_0.tif", "d/b_0.tif", "d/a_1.tif"]


def test_a_sequence_that_is_announced_again_goes_on_counting() -> None:
    consolidator = consolidator_for(resource(TIFF, "one", template="a_%d.tif"), descriptor([4, 5]))
    consolidator.consume(datum(0, 2, "one"))
    consolidator.add_resource(resource(TIFF, "two", template="a_%d.tif"))
    consolidator.consume(datum(2, 3, "two"))
    assert files(consolidator.data_source()) == ["d/a_0.tif", "d/a_1.tif", "d/a_2.tif"]


def test_a_slash_on_both_sides_of_the_name_is_one_slash() -> None:
    assert files(filled(TIFF, [4, 5], rows=1, template="/%d.tif")) == ["d/0.tif"]
    bare = resource(TIFF, uri="file://localhost/d/prefix", template="_%d.tif")
    consolidator = consolidator_for(bare, descriptor([4, 5]))
    consolidator.consume(datum(0, 1))
    assert files(consolidator.data_source()) == ["d/prefix_0.tif"]


@pytest.mark.parametrize(
    ("template", "filename", "expected"),
    [
        ("%s%s_%06d.tif", "name", "name_{:06d}.tif"),
        ("%s%s_%6.6d.tif", "name", "name_{:06d}.tif"),
        ("%.4d.tif", "", "{:04d}.tif"),
        ("%-5d|%+3d|% d", "", "{:<5d}|{:+3d}|{: d}"),
        ("{:s}_{:05d}.x", "name", "name_{:05d}.x"),
        ("_{:05d}.x", "unused", "_{:05d}.x"),
        ("%s_%d", "a{b}", "a{{b}}_{:d}"),
    ],
)
def test_templates_in_the_style_of_c_are_translated(template: str, filename: str, expected: str) -> None:
    assert compile_template(template, filename) == expected


@given(st.integers(0, 10**6), st.sampled_from(["%d", "%06d", "%3d", "%-8d", "%+d", "%.5d", "%6.6d"]))
def test_translated_templates_give_the_names_that_c_gives(number: int, template: str) -> None:
    assert compile_template(template).format(number) == template % number


def test_csv_files_are_joined_and_keep_their_reader_options() -> None:
    source = filled(CSV, [2, 3], spec="x", sep=";", skiprows=1)
    assert source["parameters"] == {"header": None, "sep": ";", "skiprows": 1}
    assert layout(source) == ([10, 3], [[10], [3]])
    assert layout(filled(CSV, [2, 3], chunk_shape=[2])) == ([10, 3], [[10], [3]])


def test_each_csv_file_is_one_chunk_however_many_datums_it_holds() -> None:
    consolidator = consolidator_for(resource(CSV, "a", "file://localhost/a"), descriptor([2, 3]))
    consolidator.consume(datum(0, 1, "a"))
    consolidator.consume(datum(1, 3, "a"))
    consolidator.add_resource(resource(CSV, "b", "file://localhost/b"))
    consolidator.consume(datum(0, 2, "b"))
    assert layout(consolidator.data_source()) == ([10, 3], [[6, 4], [3]])
    assert consolidator.problem == ""
    assert "files as a whole" in consolidator.notes[0]


def test_a_csv_file_of_which_nothing_was_taken_is_not_there() -> None:
    consolidator = consolidator_for(resource(CSV, "a", "file://localhost/a"), descriptor([2, 3]))
    consolidator.consume(datum(0, 2, "a"))
    consolidator.add_resource(resource(CSV, "b", "file://localhost/b"))
    with pytest.raises(DocumentError, match="not the next ones"):
        consolidator.consume(datum(1, 2, "b"))
    assert files(consolidator.data_source()) == ["a"]
    assert layout(consolidator.data_source()) == ([4, 3], [[4], [3]])


def test_a_csv_file_with_rows_of_another_stream_is_a_problem() -> None:
    dark, light = (consolidator_for(resource(CSV, "a", "file://localhost/a"), descriptor([2, 3])) for _ in range(2))
    light.announced = dark.announced
    dark.consume(datum(0, 1, "a"))
    assert dark.problem == ""
    with pytest.raises(DocumentError, match="not the next ones"):
        light.consume(datum(1, 4, "a"))
    assert (
        dark.problem == "file://localhost/a has 4 datums, of which 1 is named, and Tiled reads such files as a whole."
    )


def test_opaque_files_are_listed_without_a_structure() -> None:
    consolidator = consolidator_for(resource(BYTES, template="%d.bin", spec="ODD"), descriptor([None]))
    assert consolidator.consume(datum(0, 2)) == Region((0,), (2,))
    assert consolidator.consume(datum(2, 3)) == Region((2,), (1,))
    source = consolidator.data_source()
    assert files(source) == ["d/0.bin", "d/1.bin", "d/2.bin"]
    assert (source["structure_family"], source["structure"], source["parameters"]) == ("bytes", {}, {})
    assert consolidator.metadata == {"spec": "ODD"}
    assert files(filled(BYTES, [], rows=3)) == ["d/"]


def test_ten_thousands_of_files_are_described_from_scratch_each_time() -> None:
    consolidator = consolidator_for(resource(TIFF, template="%d.tif"), descriptor([4, 5]))
    consolidator.consume(datum(0, 20_000))
    early = consolidator.data_source()
    consolidator.consume(datum(20_000, 20_001))
    assert len(early["assets"]) == 20_000
    assert layout(early)[0] == [20_000, 4, 5]
    assert len(consolidator.data_source()["assets"]) == 20_001


def test_further_names_of_dimensions_cost_no_others() -> None:
    consolidator = consolidator_for(resource(HDF5), descriptor([4, 5], dims=["y", "x", "extra"]))
    assert consolidator.data_source()["structure"]["dims"] == ["time", "y", "x"]
    assert consolidator.notes == ["Data key 'img': 3 dimensions do not have the names ['time', 'y', 'x', 'extra']."]
    consolidator = consolidator_for(resource(HDF5), descriptor([4, 5], dims=["y"]))
    assert consolidator.data_source()["structure"]["dims"] is None


# The names that bluesky-tiled-plugins gives to the same


def test_a_consolidator_is_used_by_the_names_of_bluesky_tiled_plugins() -> None:
    consolidator: Any = consolidator_for(
        resource(TIFF, template="%s_%03d.tif", filename="a", chunk_shape=[1, 5], spec="ODD"), descriptor([2, 5])
    )
    patch = consolidator.consume_stream_datum(datum(0, 2))
    assert (patch.offset, patch.shape) == ((0, 0, 0), (2, 2, 5))
    assert (consolidator.shape, consolidator.chunks) == ((2, 2, 5), ((1, 1), (2,), (5,)))
    assert (consolidator.join_method, consolidator.join_chunks) == ("stack", True)
    assert (consolidator.template, consolidator.files_per_datum) == ("a_{:03d}.tif", 2)
    assert consolidator.get_datum_uri(7) == "file://localhost/d/a_007.tif"
    assert [asset.num for asset in consolidator.assets] == [0, 1, 2, 3]
    assert consolidator.orig_chunks == ((1, 1, 1, 1), (5,))
    assert consolidator.structure().shape == (2, 2, 5)
    assert (consolidator.metadata, consolidator.uri) == ({"spec": "ODD"}, "file://localhost/d/")
    consolidator.update_from_stream_resource(resource(TIFF, "two", template="b_%d.tif", chunk_shape=[1, 5]))
    assert consolidator.template == "b_{:d}.tif"
    assert consolidator.supported_mimetypes == {TIFF}


@pytest.mark.parametrize("mimetype", REGISTRY)
def test_tiled_gets_the_same_by_either_name(mimetype: str) -> None:
    parameters = {"template": "%d.tif"} if issubclass(REGISTRY[mimetype], SequenceConsolidator) else {}
    consolidator = consolidator_for(resource(mimetype, **parameters), descriptor([4, 5]))
    consolidator.consume(datum(0, 2))
    source, plain = consolidator.data_source(), _consolidator.plain_data_source(consolidator.get_data_source())
    # Tiled's class has fields for what only the server knows.
    known = [{name: asset[name] for name in source["assets"][0]} for asset in plain["assets"]]
    assert {**plain, "assets": known} == source


def test_a_subclass_may_follow_the_documentation_of_bluesky_tiled_plugins() -> None:
    class Lantern(ArrayConsolidator):
        supported_mimetypes: ClassVar[Any] = {"application/x-lantern"}
        default_asset_role = "master"
        join_method = "concat"

        def adapter_parameters(self) -> dict[str, Any]:
            return {"lamp": self.parameters["lamp"]}

        def consume_stream_datum(self, doc: Any) -> Any:
            return super().consume_stream_datum({**doc, "indices": {"start": 0, "stop": 1}})

        def get_data_source(self) -> Any:
            source = super().get_data_source()
            source.properties["lit"] = True
            return source

    class Brighter(Lantern):
        def data_source(self) -> dict[str, Any]:
            source = super().data_source()
            return {**source, "properties": {**source["properties"], "brighter": True}}

    registry = {"application/x-lantern": Brighter}
    consolidator = consolidator_for(resource("application/x-lantern", lamp=3), descriptor([4, 5]), registry)
    assert consolidator.consume(datum(0, 9)) == Region((0, 0), (4, 5))
    source = consolidator.data_source()
    assert source["parameters"] == {"lamp": 3}
    assert source["properties"] == {"lit": True, "brighter": True}
    assert [asset["parameter"] for asset in source["assets"]] == ["master"]
    assert consolidator.get_data_source().properties == source["properties"]
    with pytest.raises(ValueError, match="can not be handled by Brighter"):
        Brighter(resource(HDF5), descriptor([4, 5]))


def test_regions_are_combined_as_patches() -> None:
    patches = [Region(shape=(2, 2), offset=(1, 1)), Region(shape=(3, 1), offset=(0, 3))]
    assert Region.combine_patches(patches) == Region(shape=(3, 3), offset=(0, 1))


def test_concat_is_warned_of_as_bluesky_does() -> None:
    with pytest.warns(DeprecationWarning, match="join_method='concat'"):
        consolidator_for(resource(HDF5, join_method="concat"), descriptor([4, 5]))


@pytest.mark.parametrize("mimetype", ["application/x-zarr", "image/tiff", "image/unknown"])
def test_a_second_file_is_refused_where_tiled_reads_one_only(mimetype: str) -> None:
    consolidator = consolidator_for(resource(mimetype, "one", "file://localhost/d/one"), descriptor([4, 5]))
    consolidator.consume(datum(0, 3))
    consolidator.add_resource(resource(mimetype, "same", "file://localhost/d/one"))
    consolidator.consume(datum(3, 5, "same"))
    with pytest.raises(DocumentError, match="'file://localhost/d/two' is a further file"):
        consolidator.add_resource(resource(mimetype, "two", "file://localhost/d/two"))
    with pytest.raises(DocumentError, match="'file://localhost/d/one x' is a further file"):
        consolidator.add_resource(resource(mimetype, "part", "file://localhost/d/one", dataset="x"))
    source = consolidator.data_source()
    assert source["structure"]["shape"] == [5, 4, 5]
    assert [asset["data_uri"] for asset in source["assets"]] == ["file://localhost/d/one"]


def test_users_register_consolidators_of_their_own() -> None:
    class Mine(ArrayConsolidator):
        """Files of my own."""

        mimetypes = frozenset({"image/mine"})

    registry: dict[str, type[Consolidator]] = {"image/mine": Mine}
    assert isinstance(consolidator_for(resource("image/mine"), descriptor([4]), registry), Mine)
    assert not isinstance(consolidator_for(resource(HDF5), descriptor([4]), registry), Mine)
    with pytest.raises(DocumentError, match="one resource"):
        Consolidator(resource("image/mine"), descriptor([4])).add_resource(resource("image/mine"))


def test_a_consolidator_can_be_written_with_public_names_alone() -> None:
    class Spectra(tiledwriter.Consolidator):
        rows = 0

        def consume(self, stream_datum: Any) -> tiledwriter.Region:
            first, self.rows = self.rows, stream_datum["indices"]["stop"]
            return tiledwriter.Region((first, 0), (self.rows - first, 8))

        def data_source(self) -> dict[str, Any]:
            return {"structure": {"shape": [self.rows, 8]}, "assets": []}

    spectra = consolidator_for(resource("image/mine"), descriptor([8]), {"image/mine": Spectra})
    patches = [spectra.consume(datum(0, 2)), spectra.consume(datum(2, 5))]
    assert patches[0].union(patches[1]) == tiledwriter.Region((0, 0), (5, 8))
    assert spectra.data_source()["structure"]["shape"] == [5, 8]


def test_an_unknown_mimetype_is_registered_as_arrays_for_the_server_s_own_adapters() -> None:
    odd = consolidator_for(resource("image/odd"), descriptor([4]))
    odd.consume({"uid": "d", "stream_resource": "r", "descriptor": "", "indices": {"start": 0, "stop": 2}})
    source = odd.data_source()
    assert source["mimetype"] == "image/odd"
    assert source["structure"]["shape"] == [2, 4]
    assert len(source["assets"]) == 1


@pytest.mark.parametrize(
    ("mimetype", "described", "parameters", "complaint"),
    [
        (HDF5, descriptor([None, 4]), {}, "varies"),
        (HDF5, descriptor([-1, 4]), {}, "varies"),
        *[(HDF5, descriptor([4]), {"multiplier": size}, "multiplier") for size in ("two", -1, 1.5, [2], True)],
        *[
            (TIFF, descriptor([4]), {"template": "%d", "files_per_datum": size}, "files_per_datum")
            for size in ("2", -1)
        ],
        *[(kind, descriptor([4]), {"template": 5}, "template is 5") for kind in (TIFF, BYTES, HDF5)],
        *[(NPY, descriptor([4]), {"filename": name}, "filename") for name in (5, ["a"])],
        (HDF5, descriptor([4]), {"join_method": ["stack"]}, "stack"),
        (HDF5, descriptor([4], "|O"), {}, "dtype_numpy"),
        (HDF5, descriptor([4], "nonsense"), {}, "dtype_numpy"),
        (HDF5, descriptor([4]), {"join_method": "sideways"}, "sideways"),
        (HDF5, {"data_keys": {}}, {}, "data key"),
        (TIFF, descriptor([4, 5]), {}, "template"),
        (TIFF, descriptor([4, 5]), {"template": "{name}.tif"}, "name"),
        (TIFF, descriptor([]), {"template": "%d.tif", "join_method": "concat"}, "concat"),
        (BYTES, descriptor([]), {"template": "{:d}{:d}"}, "template"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(
    mimetype: str, described: dict[str, Any], parameters: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DocumentError, match=f"'img'.*{complaint}"):
        consolidator_for(resource(mimetype, **parameters), described)


def test_a_missing_dataset_and_a_broken_range_are_refused() -> None:
    stream_resource = {**resource(HDF5), "parameters": {}}
    consolidator = consolidator_for(stream_resource, descriptor([4]))
    with pytest.raises(DocumentError, match="dataset"):
        consolidator.data_source()
    with pytest.raises(DocumentError, match="indices"):
        consolidator.consume(datum(3, 1))


def test_a_consolidator_does_not_take_what_it_does_not_know() -> None:
    with pytest.raises(DocumentError, match="image/png"):
        REGISTRY[HDF5](resource("image/png"), descriptor([4]))


def test_a_datum_of_billions_of_files_is_refused_before_they_are_listed() -> None:
    consolidator = consolidator_for(resource(TIFF, template="%d.tif"), descriptor([4, 5]))
    with pytest.raises(DocumentError, match="more than 1000000 files"):
        consolidator.consume(datum(0, 2**32))


def test_files_are_limited_also_if_they_come_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_consolidator, "MAX_FILES", 10)
    consolidator = consolidator_for(resource(TIFF, template="%d.tif"), descriptor([4, 5]))
    consolidator.consume(datum(0, 10))
    with pytest.raises(DocumentError, match="more than 10 files"):
        consolidator.consume(datum(10, 11))


def test_billions_of_chunks_are_refused_before_they_are_listed() -> None:
    source = resource(HDF5, dataset="d", chunk_shape=[1])
    consolidator = consolidator_for(source, descriptor([4, 5]))
    with pytest.raises(DocumentError, match="more than 10000000 chunks"):
        consolidator.consume(datum(0, 2**32))
    assert layout(consolidator.data_source())[0] == [0, 4, 5]


@pytest.mark.parametrize("template", ["%0999999999d.tif", "{:999999999d}.tif", "%.1000000000d.tif"])
def test_a_number_of_a_billion_digits_is_not_made(template: str) -> None:
    with pytest.raises(DocumentError, match="thousand digits"):
        consolidator_for(resource(TIFF, template=template), descriptor([4, 5]))


@pytest.mark.parametrize("dtype", ["<m8[s/0]", "<M8[0s]", [["a", "<m8[s/0]"]], [["a", [["b", "<M8[ 0s]"]]]]])
def test_a_type_over_which_numpy_divides_by_zero_is_not_given_to_it(dtype: Any) -> None:
    with pytest.raises(DocumentError, match="not understood"):
        consolidator_for(resource(HDF5, dataset="d"), descriptor([4, 5], dtype))
    assert dtype_kind({"dtype_numpy": dtype}) is None


# Which frames a node has


def located(*steps: tuple[int, int, int], **parameters: Any) -> Any:
    """The HDF5 adapter's `slice` after datums of (start, stop, first sequence number) of one file."""
    consolidator = consolidator_for(resource(HDF5, **parameters), descriptor([4, 5]))
    for start, stop, seq_num in steps:
        seq_nums = {"start": seq_num, "stop": seq_num + stop - start}
        consolidator.consume({**datum(start, stop), "seq_nums": seq_nums})
    source = consolidator.data_source()
    assert source["structure"]["shape"][0] == sum(stop - start for start, stop, _ in steps)
    return source["parameters"].get("slice")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(0, 2, 1), (2, 3, 3)], None),
        ([(0, 2, 1), (2, 3, 7)], None),  # of events in between there are no frames
        ([(1, 2, 1), (2, 4, 2)], "1:4"),
        ([(0, 2, 1), (3, 5, 3)], [0, 1, 3, 4]),
        ([(2, 3, 1), (0, 1, 2), (1, 2, 3)], [2, 0, 1]),
        ([(2, 3, 1), (2, 3, 2)], [2, 2]),
        ([(0, 3, 1), (2, 5, 3)], [0, 1, 2, 2, 3, 4]),  # rewound
        ([(2, 5, 3), (0, 2, 1)], None),  # announced in another order than that of the events
        ([(7, 9, 8), (1, 2, 2), (4, 6, 5)], [1, 4, 5, 7, 8]),
        ([(0, 2, 1), (0, 2, 1), (4, 5, 5), (2, 4, 3)], [0, 1, 0, 1, 2, 3, 4]),
    ],
)
def test_an_hdf5_node_has_the_frames_that_are_named_in_the_order_of_the_events(steps: list[Any], expected: Any) -> None:
    assert located(*steps) == expected


@pytest.mark.parametrize(
    ("parameters", "shape", "expected"),
    [
        ({"multiplier": 3}, [4, 5], "3:9"),
        ({"multiplier": 1}, [4, 5], "1:3"),
        ({"chunk_shape": [1, 5]}, [4, 5], "4:12"),
        ({"chunk_shape": [1, 4, 5]}, [4, 5], "1:3"),
        ({"join_method": "concat"}, [4, 5], "4:12"),
        ({"chunk_shape": [1024]}, [4], "4:12"),
        ({}, [], "1:3"),
        ({}, [1], "1:3"),
        ({"slice": ":,1:2,:"}, [5], "1:3,1:2,:"),
    ],
)
def test_rows_of_a_file_are_as_many_as_its_frames_have(parameters: dict[str, Any], shape: Any, expected: str) -> None:
    consolidator = consolidator_for(resource(HDF5, **parameters), descriptor(shape))
    consolidator.consume(datum(1, 3))
    assert consolidator.data_source()["parameters"]["slice"] == expected


def test_a_file_that_may_have_more_rows_than_are_named_is_cut_where_tiled_would_reshape_them() -> None:
    consolidator = consolidator_for(resource(HDF5, multiplier=2), descriptor([4, 5]))
    consolidator.consume(datum(0, 3))
    assert consolidator.data_source()["parameters"]["slice"] == "0:6"


def test_how_many_rows_make_a_frame_is_noted_where_nothing_says_it() -> None:
    consolidator = consolidator_for(resource(HDF5), descriptor([4]))
    consolidator.consume(datum(0, 2))
    assert consolidator.notes == []
    consolidator.consume(datum(3, 4))
    assert consolidator.notes == [
        "Data key 'img': its documents do not say how many rows of a file make a frame; one is taken to."
    ]


def test_a_file_s_frames_are_counted_over_all_streams_of_a_run() -> None:
    dark, light = (consolidator_for(resource(HDF5, "a", "file://localhost/a"), descriptor([4, 5])) for _ in range(2))
    light.announced = dark.announced
    dark.consume(datum(0, 1, "a"))
    light.consume(datum(1, 4, "a"))
    for consolidator in (dark, light):
        consolidator.add_resource(resource(HDF5, "b", "file://localhost/b"))
    dark.consume(datum(0, 1, "b"))
    light.consume(datum(1, 2, "b"))
    assert dark.data_source()["parameters"]["slice"] == [0, 4]
    assert light.data_source()["parameters"]["slice"] == [1, 2, 3, 5]
    assert any("several files" in note for note in light.notes)
    assert light.problem == dark.problem == ""
    with pytest.raises(DocumentError, match="further files"):
        light.consume(datum(4, 5, "a"))
    for consolidator in (dark, light):
        assert consolidator.problem.startswith("file://localhost/a has more frames than were announced before")


def test_numbers_of_further_files_are_counted_over_all_streams_of_a_run() -> None:
    dark, light = (consolidator_for(resource(TIFF, "a", template="a_%d"), descriptor([4, 5])) for _ in range(2))
    light.announced = dark.announced
    light.consume(datum(0, 1, "a"))
    dark.consume(datum(1, 2, "a"))
    for consolidator in (dark, light):
        consolidator.add_resource(resource(TIFF, "b", template="b_%d"))
    dark.consume(datum(0, 1, "b"))
    light.consume(datum(1, 3, "b"))
    assert files(light.data_source()) == ["d/a_0", "d/b_1", "d/b_2"]
    assert files(dark.data_source()) == ["d/a_1", "d/b_0"]


@pytest.mark.parametrize("mimetype", [TIFF, JPEG, NPY, HDF5])
def test_a_file_that_is_named_again_is_there_again_by_another_spelling(mimetype: str) -> None:
    consolidator = consolidator_for(resource(mimetype, template="%s_%d.npy", filename="f"), descriptor([4, 5]))
    for start in (5, 2, 5, 5):
        consolidator.consume({**datum(start, start + 1), "seq_nums": {"start": 1, "stop": 2}})
    found = files(consolidator.data_source())
    assert found == ["d/f_5.npy", "d/f_2.npy", "d/./f_5.npy", "d/././f_5.npy"]
    assert consolidator.data_source()["structure"]["shape"][0] == 4


def test_files_that_come_in_another_order_than_the_events_are_noted() -> None:
    consolidator = consolidator_for(resource(TIFF, template="%d"), descriptor([4, 5]))
    consolidator.consume(datum(3, 4))
    consolidator.consume(datum(1, 2))
    assert files(consolidator.data_source()) == ["d/3", "d/1"]
    assert consolidator.notes == [
        "Data key 'img': its frames are in the order in which they were announced, not in that of the events."
    ]


@pytest.mark.parametrize("mimetype", [CSV, "image/odd"])
def test_rows_that_an_adapter_does_not_select_are_refused(mimetype: str) -> None:
    consolidator = consolidator_for(resource(mimetype), descriptor([4, 5]))
    consolidator.consume(datum(0, 2))
    with pytest.raises(DocumentError, match="3 to 3"):
        consolidator.consume(datum(3, 4))
    assert consolidator.rows == 2
    consolidator.consume(datum(2, 3))
    with pytest.raises(DocumentError, match="slice"):
        located((0, 1, 1), (2, 3, 2), slice="::2")


events = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3), st.integers(1, 12)), max_size=8)


@given(events)
def test_frames_are_in_the_order_of_their_events(steps: list[tuple[int, int, int]]) -> None:
    consolidator = consolidator_for(resource(HDF5, chunk_shape=[1, 4, 5]), descriptor([4, 5]))
    expected: list[tuple[int, int]] = []
    begin = 0
    for start, count, seq_num in steps:
        known = {number for number, _ in expected[begin:]}
        frames = [(seq_num + n, start + n) for n in range(count)]
        if known & {number for number, _ in frames}:
            begin = len(expected)
        expected[begin:] = sorted([*expected[begin:], *frames])
        seq_nums = {"start": seq_num, "stop": seq_num + count}
        consolidator.consume({**datum(start, start + count), "seq_nums": seq_nums})
    selected = consolidator.data_source()["parameters"].get("slice")
    frames_there = [frame for _, frame in expected]
    if selected is None:
        selected = list(range(len(expected)))
    elif isinstance(selected, str):
        selected = list(range(*map(int, selected.split(":"))))
    assert selected == frames_there
