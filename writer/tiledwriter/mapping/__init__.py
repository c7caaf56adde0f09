"""Map the documents of a run to Tiled operations, without I/O."""

from __future__ import annotations

from .._names import run_key
from ._access_tags import AccessTagLimits
from ._arrays import Array
from ._columns import arrow_type
from ._consolidators import (
    ArrayConsolidator,
    BytesConsolidator,
    Consolidator,
    CSVConsolidator,
    HDF5Consolidator,
    JPEGConsolidator,
    NPYConsolidator,
    Patch,
    SequenceConsolidator,
    TIFFConsolidator,
)
from ._fold import BATCH_BYTES, BATCH_DOCUMENTS, Fold
from ._normalizer import DocumentPatch, RunNormalizer, declares_dtype
from ._operations import (
    AppendRows,
    Audit,
    CloseStream,
    Column,
    ColumnDigest,
    CreateArray,
    CreateContainer,
    CreateTable,
    Creation,
    DescribeExternal,
    ExtendExternal,
    Growth,
    Operation,
    OrderTable,
    RegisterExternal,
    RemoveNode,
    Specs,
    UpdateMetadata,
    WriteArray,
    describe_operation,
)
from ._path_map import MappedUri, PathMap
from ._plugins import Plugins, installed_consolidators, load_consolidators, load_patches
from ._run_writer import MAX_ARRAY_SIZE, RUN_SPEC, RunWriter
from ._stream_filter import StreamFilter
from ._writing_options import (
    LATE_AUDIT_SECONDS,
    POISON_AFTER_SECONDS,
    QUIET_PERIOD_SECONDS,
    WRITE_SLOTS,
    WritingOptions,
)

__all__ = [
    "BATCH_BYTES",
    "BATCH_DOCUMENTS",
    "LATE_AUDIT_SECONDS",
    "MAX_ARRAY_SIZE",
    "POISON_AFTER_SECONDS",
    "QUIET_PERIOD_SECONDS",
    "RUN_SPEC",
    "WRITE_SLOTS",
    "AccessTagLimits",
    "AppendRows",
    "Array",
    "ArrayConsolidator",
    "Audit",
    "BytesConsolidator",
    "CSVConsolidator",
    "CloseStream",
    "Column",
    "ColumnDigest",
    "Consolidator",
    "CreateArray",
    "CreateContainer",
    "CreateTable",
    "Creation",
    "DescribeExternal",
    "DocumentPatch",
    "ExtendExternal",
    "Fold",
    "Growth",
    "HDF5Consolidator",
    "JPEGConsolidator",
    "MappedUri",
    "NPYConsolidator",
    "Operation",
    "OrderTable",
    "Patch",
    "PathMap",
    "Plugins",
    "RegisterExternal",
    "RemoveNode",
    "RunNormalizer",
    "RunWriter",
    "SequenceConsolidator",
    "Specs",
    "StreamFilter",
    "TIFFConsolidator",
    "UpdateMetadata",
    "WriteArray",
    "WritingOptions",
    "arrow_type",
    "declares_dtype",
    "describe_operation",
    "installed_consolidators",
    "load_consolidators",
    "load_patches",
    "run_key",
]
