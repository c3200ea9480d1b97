"""The rules of the diagnosis: each tells one cause of a layer's error from the others by its figures, in plain words."""

from __future__ import annotations

from tflite_qdebug.analyses.diagnosis.causes import Rule
from tflite_qdebug.analyses.diagnosis.channel_rules import (
    broken_bias,
    broken_weights,
    outlier_channel,
    unbalanced_inputs,
    uneven_channels,
    weight_scales,
)
from tflite_qdebug.analyses.diagnosis.error_rules import (
    inherited,
    kernel_difference,
    large_error,
    many_small,
    not_finite,
    reciprocal,
    sensitive,
)
from tflite_qdebug.analyses.diagnosis.range_rules import dead_layer, negative_tail, range_too_narrow, range_too_wide, rare_value

__all__ = ["INHERITED", "RULES"]

#: What looks bad and is not to blame; it is asked of layers that are no suspects.
INHERITED = inherited
#: All rules. Of the causes of one layer that explain as much, the one comes first that stands first here; the last ones speak
#: only where no other one explains the error.
RULES: tuple[Rule, ...] = (
    reciprocal,
    not_finite,
    range_too_wide,
    range_too_narrow,
    unbalanced_inputs,
    outlier_channel,
    weight_scales,
    rare_value,
    broken_weights,
    broken_bias,
    negative_tail,
    uneven_channels,
    dead_layer,
    kernel_difference,
    sensitive,
    many_small,
    large_error,
    inherited,
)
