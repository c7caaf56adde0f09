"""Runs that are hard to write: values, names and types that storage does not take as they are."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

import numpy

from ._documents import RunDocuments, external, key
from ._entry import Collection, Documents
from ._files import FRAME, frames, uri, write_hdf5

entry = Collection()


def one_stream(keys: dict[str, Any], rows: list[dict[str, Any]], **start: Any) -> Documents:
    """A run of one stream."""
    run = RunDocuments(**start)
    run.events(run.descriptor(keys), rows)
    return run.stop()


@entry("data keys that differ in upper and lower case only")
def names_that_differ_in_case(_: Path) -> Documents:
    return one_stream({"A": key(), "a": key()}, [{"A": 0.5, "a": 1.5}, {"A": 2.5, "a": 3.5}])


@entry("integer first, then a float, one event per batch", batch_size=1)
def integer_then_float(_: Path) -> Documents:
    return one_stream({"x": key()}, [{"x": 1}, {"x": 1.5}, {"x": 2}])


@entry("float first, then integers", batch_size=1)
def float_then_integer(_: Path) -> Documents:
    return one_stream({"x": key()}, [{"x": 1.5}, {"x": 2}])


@entry("float where an integer was declared", batch_size=1, modern=False)
def declared_integer_is_float(_: Path) -> Documents:
    return one_stream({"x": key("integer")}, [{"x": 1}, {"x": 1.5}])


@entry("None first, then a number", batch_size=1, modern=False)
def none_then_number(_: Path) -> Documents:
    return one_stream({"x": key()}, [{"x": None}, {"x": 1.5}, {"x": None}])


@entry("None everywhere", modern=False)
def only_none(_: Path) -> Documents:
    return one_stream({"x": key(), "y": key("string")}, [{"x": None, "y": None}] * 2)


@entry("NaN and infinity in the data")
def nan_in_data(_: Path) -> Documents:
    return one_stream({"x": key()}, [{"x": math.nan}, {"x": math.inf}, {"x": -math.inf}, {"x": 0.5}])


@entry("numpy arrays of unequal lengths, declared with the length of the first")
def unequal_arrays(_: Path) -> Documents:
    rows = [{"wave": numpy.arange(n, dtype="<f8")} for n in (20, 24, 18)]
    return one_stream({"wave": key("array", [20], dtype_numpy="<f8")}, rows)


@entry("lists of unequal lengths, declared with the length of the first")
def unequal_lists(_: Path) -> Documents:
    rows = [{"wave": [float(i) for i in range(n)]} for n in (20, 24, 18)]
    return one_stream({"wave": key("array", [20], dtype_numpy="<f8")}, rows)


@entry("short lists of unequal lengths")
def unequal_short_lists(_: Path) -> Documents:
    rows = [{"peaks": [0.5] * n} for n in (3, 1, 5)]
    return one_stream({"peaks": key("array", [3], dtype_numpy="<f8")}, rows)


@entry("arrays declared to vary in length", modern=False)
def ragged_arrays(_: Path) -> Documents:
    rows = [{"peaks": [0.5 * i for i in range(n)]} for n in (3, 1, 5)]
    return one_stream({"peaks": key("array", [None], dtype_numpy="<f8")}, rows)


@entry("array of length zero")
def empty_array(_: Path) -> Documents:
    return one_stream({"wave": key("array", [0]), "x": key()}, [{"wave": [], "x": 0.5}, {"wave": [], "x": 1.5}])


@entry("array of length zero where a long one was declared")
def empty_long_array(_: Path) -> Documents:
    rows = [{"wave": numpy.array([]), "x": 0.5}, {"wave": numpy.array([]), "x": 1.5}]
    return one_stream({"wave": key("array", [20], dtype_numpy="<f8"), "x": key()}, rows)


@entry("NaN and infinity in the metadata of the run")
def nan_in_metadata(_: Path) -> Documents:
    metadata = {"ratio": math.nan, "limits": [-math.inf, math.inf], "nested": {"offset": math.nan}}
    return one_stream({"x": key()}, [{"x": 0.5}], **metadata)


@entry("floats beyond 2**53 in the metadata, without a fraction")
def large_floats_in_metadata(_: Path) -> Documents:
    return one_stream(
        {"x": key()}, [{"x": 0.5}], flux=1e20, limit=-1e300, exact=2.0**60, small=1e-300, ratio=1e15 + 0.5
    )


@entry("NaN in a device's configuration and limits")
def nan_in_configuration(_: Path) -> Documents:
    run = RunDocuments()
    data_keys = {"det_gain": key(), "det_limit": key()}
    values = {"data": {"det_gain": math.nan, "det_limit": math.inf}, "timestamps": {"det_gain": 1.5, "det_limit": 1.5}}
    configuration = {"det": {**values, "data_keys": data_keys}}
    descriptor = run.descriptor({"x": key(upper_ctrl_limit=math.nan)}, configuration=configuration)
    run.events(descriptor, [{"x": 0.5}])
    return run.stop()


@entry("integer of 2**60 in the metadata")
def large_integer_in_metadata(_: Path) -> Documents:
    return one_stream({"x": key()}, [{"x": 0.5}], serial=2**60, nested={"mask": [-(2**60), 2**53]})


@entry("integers beyond 2**53 in the data")
def large_integers(_: Path) -> Documents:
    rows = [{"n": 2**53 + 1}, {"n": -(2**62)}]
    return one_stream({"n": key("integer", dtype_numpy="<i8")}, rows)


@entry("unsigned integers of 64 bits beyond 2**63")
def large_unsigned_integers(_: Path) -> Documents:
    rows = [{"n": 2**64 - 1}, {"n": 7}]
    return one_stream({"n": key("integer", dtype_numpy="<u8")}, rows)


@entry("integers that no machine type holds")
def huge_integers(_: Path) -> Documents:
    return one_stream({"n": key("integer")}, [{"n": 2**70}, {"n": 1}])


@entry("datum that never comes")
def missing_datum(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(3))
    descriptor = run.descriptor({"image": external(FRAME), "lost": external(FRAME), "x": key()})
    resource = run.resource("AD_HDF5", str(directory), "a.h5")
    for number in range(3):
        data = {"image": run.datum(resource, number, point_number=number), "lost": "never/0", "x": 0.5 * number}
        run.event(descriptor, number + 1, data, filled={"image": False, "lost": False})
    return run.stop()


REFUSED = ("_under", "it's", 'say "x"', "a;b", "f(x)", "50%", "a=b", "a+b", "back\\slash", "tick`", "1st", "x--y")


@entry("names of data keys that Tiled takes for no column")
def refused_column_names(_: Path) -> Documents:
    return one_stream({name: key() for name in REFUSED}, [dict.fromkeys(REFUSED, n / 2) for n in range(2)])


@entry("name of a data key of 80 letters")
def long_column_name(_: Path) -> Documents:
    names = ("motor_" + "x" * 74, "motor_" + "x" * 73 + "y")
    return one_stream({name: key() for name in names}, [dict.fromkeys(names, n / 2) for n in range(2)])


@entry("names that are no ASCII, and with spaces and colons")
def unusual_names(_: Path) -> Documents:
    names = ("Ångström", "试样", "a b", "a:b", "a-b")
    return one_stream({name: key() for name in names}, [dict.fromkeys(names, n / 2) for n in range(2)])


@entry("dots in the names of data keys", modern=False)
def dots_in_names(_: Path) -> Documents:
    keys = {"a.b": key(), "wave.1": key("array", [20], dtype_numpy="<f8")}
    return one_stream(keys, [{"a.b": n / 2, "wave.1": numpy.zeros(20)} for n in range(2)])


@entry("slashes in the names of data keys", modern=False)
def slashes_in_names(_: Path) -> Documents:
    keys = {"a/b": key(), "wave/1": key("array", [20], dtype_numpy="<f8")}
    return one_stream(keys, [{"a/b": n / 2, "wave/1": numpy.zeros(20)} for n in range(2)])


def streams_called(*names: str) -> Documents:
    """A run with a stream of each name."""
    run = RunDocuments()
    for name in names:
        descriptor = run.descriptor({"x": key()}, name)
        run.event(descriptor, 1, {"x": 0.5})
    return run.stop()


@entry("stream names with spaces, dots and letters that are no ASCII")
def unusual_stream_names(_: Path) -> Documents:
    return streams_called("my stream", "ström", "a.b")


@entry("stream names with characters that mean something in a URL")
def stream_names_for_urls(_: Path) -> Documents:
    return streams_called("50%", "what?", "x#y")


@entry("slash in the name of a stream")
def slash_in_stream_name(_: Path) -> Documents:
    return streams_called("a/b")


@entry("data keys called like nodes and columns that there are: internal, ts_x, index")
def names_in_use(_: Path) -> Documents:
    keys = {"internal": key(), "x": key(), "ts_x": key(), "index": key()}
    return one_stream(keys, [dict.fromkeys(keys, n / 2) for n in range(2)])


EXTERNAL_NAMES = ("cam?1", "cam#1", "a/b", "a_b", "internal")


@entry("data keys in files whose nodes would have one name, or that of the table", modern=False)
def external_names_in_use(directory: Path) -> Documents:
    run = RunDocuments()
    descriptor = run.descriptor({**{name: external(FRAME) for name in EXTERNAL_NAMES}, "x": key()})
    run.events(descriptor, [{"x": n / 2} for n in range(2)])
    for number, name in enumerate(EXTERNAL_NAMES):
        path = write_hdf5(directory / f"{number}.h5", frames(2, first=1000 * number), chunks=(1, *FRAME))
        parameters = {"dataset": "/entry/data/data", "chunk_shape": [1, *FRAME]}
        resource = run.stream_resource(name, "application/x-hdf5", uri(path), **parameters)
        run.stream_datum(resource, descriptor, 0, 2)
    return run.stop()


@entry("empty and very long strings")
def long_strings(_: Path) -> Documents:
    rows = [{"text": ""}, {"text": "x" * 100_000}, {"text": "tab\tquote\"'\\ nul-free"}]
    return one_stream({"text": key("string")}, rows)


@entry("numbers where a string was declared, and the reverse", modern=False)
def declared_type_is_wrong(_: Path) -> Documents:
    keys = {"label": key("string"), "x": key("number"), "flag": key("boolean")}
    return one_stream(keys, [{"label": 1.5, "x": "high", "flag": 1}, {"label": "b", "x": 2.5, "flag": 0}])


@entry("arrays of strings")
def string_arrays(_: Path) -> Documents:
    rows = [{"labels": ["a", "bc"]}, {"labels": ["long one", ""]}]
    return one_stream({"labels": key("array", [2], dtype_numpy="<U8")}, rows)


@entry("arrays of strings that are longer than declared")
def strings_longer_than_declared(_: Path) -> Documents:
    rows = [{"labels": ["a", "b"]}, {"labels": ["much longer", ""]}]
    return one_stream({"labels": key("array", [2], dtype_numpy="<U1")}, rows)


@entry("arrays of mixed types", modern=False)
def mixed_arrays(_: Path) -> Documents:
    rows = [{"mixed": [1, "two", 3.5]}, {"mixed": [None, "x", 2]}]
    return one_stream({"mixed": key("array", [3])}, rows)


@entry("complex numbers")
def complex_arrays(_: Path) -> Documents:
    rows = [{"field": numpy.arange(20) * (1 + 2j) + n} for n in range(2)]
    return one_stream({"field": key("array", [20], dtype_numpy="<c16")}, rows)


@entry("arrays of dates")
def date_arrays(_: Path) -> Documents:
    dates = numpy.datetime64("2025-06-01T12:00:00", "s") + numpy.arange(20)
    return one_stream({"dates": key("array", [20], dtype_numpy="<M8[s]")}, [{"dates": dates}, {"dates": dates + 1}])


@entry("arrays of small and unsigned types, and of booleans")
def small_types(_: Path) -> Documents:
    types = ("|i1", "|u1", "<u2", ">i4", "<u4", "<f4", "|b1")
    keys = {f"wave_{n}": key("array", [20], dtype_numpy=dtype) for n, dtype in enumerate(types)}
    rows = [
        {f"wave_{n}": (numpy.arange(20) % 2 + row).astype(dtype) for n, dtype in enumerate(types)} for row in (0, 1)
    ]
    return one_stream(keys, rows)


@entry("short arrays of unsigned 64-bit integers")
def unsigned_lists(_: Path) -> Documents:
    rows = [{"ids": numpy.array([1, 2**64 - 1], "<u8")}, {"ids": numpy.array([3, 4], "<u8")}]
    return one_stream({"ids": key("array", [2], dtype_numpy="<u8")}, rows)


@entry("numpy scalars in the data and in the metadata")
def numpy_scalars(_: Path) -> Documents:
    rows = [
        {"x": numpy.float32(0.5), "n": numpy.int16(n), "flag": numpy.bool_(n > 0), "s": numpy.str_("a")} for n in (0, 1)
    ]
    keys = {"x": key(), "n": key("integer"), "flag": key("boolean"), "s": key("string")}
    return one_stream(keys, rows, energy=numpy.float64(8.333), grid=numpy.arange(3))


@entry("tuples, sets of dates and paths in the metadata", modern=False)
def odd_metadata(_: Path) -> Documents:
    when = datetime.datetime(2025, 6, 1, 12, tzinfo=datetime.timezone.utc)
    return one_stream({"x": key()}, [{"x": 0.5}], when=when, pair=(1, (2, 3)))


@entry("data key that is not in the descriptor", modern=False)
def undeclared_data_key(_: Path) -> Documents:
    return one_stream({"x": key()}, [{"x": 0.5, "y": 1.5}, {"x": 2.5, "y": 3.5}])


@entry("data key that comes with the second event only", modern=False)
def late_data_key(_: Path) -> Documents:
    return one_stream({"x": key(), "y": key()}, [{"x": 0.5}, {"x": 1.5, "y": 2.5}])


@entry("2-dimensional short array")
def small_matrix(_: Path) -> Documents:
    return one_stream(
        {"m": key("array", [2, 2], dtype_numpy="<f8")}, [{"m": [[0.5, 1.5], [2.5, n]]} for n in (0.5, 1.5)]
    )


@entry("400 events, which come in batches of 100", batch_size=100)
def many_events(_: Path) -> Documents:
    return one_stream({"x": key(), "n": key("integer")}, [{"x": n / 8, "n": n} for n in range(400)])
