"""Map the documents of a run to Tiled operations, without I/O."""

from __future__ import annotations

from .._names import run_key
from ._access_tags import AccessTagLimits
from ._array_consolidator import ArrayConsolidator
from ._arrays import Array
from ._columns import arrow_type
from ._consolidator import Consolidator
from ._consolidators import consolidator_for
from ._data_keys import declares_dtype
from ._fold import BATCH_BYTES, BATCH_DOCUMENTS, Fold
from ._fold_plan import FoldPlan, fold_until_planned
from ._frames import Patch, Region
from ._guest_consolidator import GuestConsolidator, registered_consolidators
from ._guest_normalizer import GuestNormalizer, unpack_pages
from ._hdf5_consolidators import HDF5Consolidator
from ._normalizer import DocumentPatch, RunNormalizer
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
from ._plugins import (
    Plugins,
    check_patch_names,
    import_plugin_module,
    installed_consolidators,
    load_consolidators,
    load_patches,
    make_normalizer,
    may_exist,
)
from ._run_writer import MAX_ARRAY_SIZE, RUN_SPEC, RunWriter
from ._sequence_consolidators import JPEGConsolidator, NPYConsolidator, SequenceConsolidator, TIFFConsolidator
from ._stream_filter import StreamFilter
from ._whole_file_consolidators import BytesConsolidator, CSVConsolidator
from ._writing_options import (
    LATE_AUDIT_SECONDS,
    POISON_AFTER_SECONDS,
    QUIET_PERIOD_SECONDS,
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
    "FoldPlan",
    "Growth",
    "GuestConsolidator",
    "GuestNormalizer",
    "HDF5Consolidator",
    "JPEGConsolidator",
    "MappedUri",
    "NPYConsolidator",
    "Operation",
    "OrderTable",
    "Patch",
    "PathMap",
    "Plugins",
    "Region",
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
    "check_patch_names",
    "consolidator_for",
    "declares_dtype",
    "describe_operation",
    "fold_until_planned",
    "import_plugin_module",
    "installed_consolidators",
    "load_consolidators",
    "load_patches",
    "make_normalizer",
    "may_exist",
    "registered_consolidators",
    "run_key",
    "unpack_pages",
]
