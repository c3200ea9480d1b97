"""Bytes to new bytes: every edit returns another model and leaves the one it was given as it is."""

from tflite_qdebug.edit.debug_model import BRIDGES, NUMERIC_VERIFY, DebugModel
from tflite_qdebug.edit.exploded import ExplodedModel, explode, float_twins
from tflite_qdebug.edit.flatbuffer import expose, with_ranges, with_renamed
from tflite_qdebug.edit.numeric_verify import strip_numeric_verify
from tflite_qdebug.edit.pairs import debug_pair
from tflite_qdebug.edit.patched import Patch, with_own_constants
from tflite_qdebug.edit.weights import cast_weights_to_float16, fold_float16, quantize_weights, store_weights_as_int8

__all__ = ["BRIDGES", "NUMERIC_VERIFY", "DebugModel", "ExplodedModel", "Patch", "cast_weights_to_float16", "debug_pair",
           "explode", "expose", "float_twins", "fold_float16", "quantize_weights", "store_weights_as_int8",
           "strip_numeric_verify", "with_own_constants",
           "with_ranges", "with_renamed"]  # fmt: skip
