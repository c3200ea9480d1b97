"""Debugs the quantization of TensorFlow Lite models: which layers lose accuracy, why, and what to change.

Importing this package loads numpy and nothing heavier; each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any, List

__version__ = "0.1.0"

# What is said here is for whoever listens: the application sets up logging, not its libraries.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_EXPORTS = {
    "Backend": "collect",
    "Board": "board_record",
    "CalibratedModel": "conversion",
    "Curve": "findings",
    "Cut": "edit.extracted",
    "CutComparison": "cut_record",
    "CutLimits": "cut_record",
    "Dataset": "datasets",
    "DeviceComparison": "edgetpu.device_record",
    "Delegate": "interpreter",
    "Diagnosis": "findings",
    "EdgeTPUModel": "edgetpu.conversion",
    "Findings": "findings",
    "FloatModel": "conversion",
    "FloatPrice": "edgetpu.prices",
    "Histogram": "statistics",
    "InputSpec": "datasets",
    "Interpreter": "interpreter",
    "KINDS": "conversion",
    "KernelComparison": "kernel_record",
    "Layer": "record",
    "LayerMetrics": "collect",
    "Model": "model",
    "Partition": "edgetpu.partition",
    "PtqComparison": "ptq_record",
    "QDebugError": "errors",
    "QuantizationDebugOptions": "debugger",
    "QuantizationDebugger": "debugger",
    "QuantizedModel": "conversion",
    "Run": "record",
    "QatComparison": "remedies.qat_comparison",
    "QatResult": "remedies.qat",
    "Sensitivity": "findings",
    "Steps": "findings",
    "Study": "study",
    "TFLiteConverter": "pipeline",
    "accumulated_error": "analyses.cumulative_error",
    "annotate": "remedies.annotation",
    "apply_recipe": "remedies.workshop",
    "convert_for_edgetpu": "edgetpu.conversion",
    "compare_kernels": "analyses.kernel_comparison",
    "compare_with_device": "edgetpu.device_comparison",
    "diagnose": "analyses.diagnosis",
    "evaluate": "analyses.evaluation",
    "extract": "edit.extracted",
    "extract_operator": "edit.extracted",
    "float_price": "edgetpu.prices",
    "float_prices": "edgetpu.prices",
    "layer_error": "analyses.layer_error",
    "leave_float": "analyses.steps",
    "load_float_model": "conversion",
    "from_images": "datasets",
    "from_tfds": "datasets",
    "open_dataset": "datasets",
    "prepare_for_device": "edgetpu.prepared",
    "partition": "edgetpu.partition",
    "pair_error": "analyses.pairs",
    "pair_errors": "analyses.pairs",
    "profile_pair": "analyses.profiles",
    "quantize_post_training": "analyses.post_training",
    "save_folder": "datasets",
    "sensitivity": "analyses.sensitivity",
    "compare_training": "remedies.qat_comparison",
    "tfx_rewriter": "rewriting",
    "train_quantization_aware": "remedies.qat",
    "try_cuts": "analyses.cuts",
    "worst_samples": "analyses.samples",
    "Candidate": "outcome",
    "Fixed": "remedies.search",
    "Outcome": "outcome",
    "Recipe": "outcome",
    "choose_ranges": "remedies.ranges",
    "correct_biases": "remedies.bias_correction",
    "equalize": "remedies.equalization",
    "find_blocks": "remedies.blocks",
    "fix": "remedies.search",
    "optimize_rounding": "remedies.rounding",
    "with_int16_nodes": "remedies.int16",
    "write_report": "reports.html",
    "latency": "analyses.latency",
    "merge_result": "merging",
    "write_bundle": "bundling",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        from tflite_qdebug.errors import did_you_mean

        raise AttributeError("module 'tflite_qdebug' has no attribute {!r}.{}".format(name, did_you_mean(name, list(_EXPORTS))))
    value = getattr(importlib.import_module("tflite_qdebug." + _EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return list(__all__)
