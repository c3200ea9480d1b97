"""Every bound of the diagnosis of layers, in one place."""

from __future__ import annotations

import dataclasses

__all__ = ["T", "Thresholds"]


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Every bound of the diagnosis, with the reason for its value.

    Steps are counted of 256: of 8 bits. Each factor of 2 in a range costs one bit, and 6 dB.
    """

    #: dB. A layer whose own error is above a tenth of its signal's energy is broken by itself: the layers of models that
    #: keep their accuracy have 23 dB and more, those of the built-in example that lose it below 5 dB.
    broken_layer_db: float = 10.0
    #: dB. From here on rounding of a healthy 8-bit tensor explains the error: 255 steps over a range of 8 deviations give 40.
    healthy_layer_db: float = 25.0
    #: dB. Above it, an error is small: less than a tenth of the values, and only many of them together lose accuracy.
    small_error_db: float = 20.0
    #: Times. A range half as wide again costs more than half a bit, 3.5 dB: worth a mention where accuracy is lost already.
    wide_range: float = 1.5
    #: Times. Samples differ, so that a range up to twice what the debug samples need is normal; four times is not.
    unseen_range: float = 4.0
    #: Steps. With fewer than 16 of 256 steps, less than 4 of 8 bits, a tensor is not an 8-bit one any more.
    few_steps: float = 16.0
    #: Steps. With fewer than 8, 3 bits, for most of its channels a layer is broken, even where the output does not show it.
    broken_steps: float = 8.0
    #: Share of the values that is the bulk: the range at this percentile gave MobileNetV3-Small 20 of 35 lost points back.
    bulk: float = 0.9999
    #: Times. A channel so many times larger than the median one takes 3 of the 8 bits from it.
    outlier_channel: float = 8.0
    #: Share. More channels than a quarter are no outliers: then they all differ.
    outlier_channels: float = 0.25
    #: Share. An input of a CONCATENATION that fills less of the common range than 3 of 8 bits suffers from it.
    small_input: float = 0.125
    #: Times. So much smaller than the median: the next layer's weights make up for it, and have outliers themselves.
    tiny_channel: float = 1.0 / 16.0
    #: Steps, standard deviation. Below two, rounding leaves a channel less than 17 dB.
    flat_channel: float = 2.0
    #: Share. Nearly every layer has a channel that hardly varies; one in eight is more than that.
    flat_channels: float = 0.125
    #: Times. Weights of the largest channel over the median's: with one scale for all the median keeps 16 of 127 steps.
    weight_spread: float = 8.0
    #: Share. Of normally distributed weights 2 % are below half a step; where a quarter is, a few weights rule the scale.
    lost_weights: float = 0.25
    #: Share of the squared error from which on one part is said to dominate.
    dominates: float = 0.5
    #: Steps. Rounded weights are at most half a step off; a whole one is no rounding.
    weight_error: float = 1.0
    #: dB. Rounded weights give an error smaller than the values; one of twice their energy comes of the bias.
    bias_db: float = -3.0
    #: Steps, RMS. Clipping hurts where it exceeds what rounding makes anyway: 0.29 steps, and its double for good measure.
    clipping: float = 0.58
    #: Steps. A kernel that rounds at each of its stages is off by one or two; no sound kernel is by four.
    kernel_error: float = 4.0
    #: Share of the values. Below one in five a tail is too rare to matter for the tensor's error.
    negative_tail: float = 0.2
    #: Steps. A tail of 8 steps still has its shape; behind a sound model's activation it has 8 to 16.
    tail_steps: float = 8.0
    #: The least value of swish is -0.278, of hard-swish -0.375, of GELU -0.170.
    tail_depth: float = -0.4
    #: Times. The error relative to the signal is 10 dB greater behind the operator than before it.
    amplification: float = 10.0
    #: Share of what is lost. Below a tenth a layer does not stand out, and leaving it float would hardly show.
    stands_out: float = 0.1
    #: Share of what is lost from which on one layer is said to make it.
    makes_it: float = 0.5
    #: How many causes of one layer to name: the first explains it, the others are asides.
    most_causes: int = 3
    #: Share of what is lost, below which a layer is no suspect.
    matters: float = 0.02
    #: Share of what is lost that the suspects make together: the rest is spread thin.
    explained: float = 0.8
    #: dB. Weights alone or activations alone lose it where that alone is so much worse at the output than the other.
    lossy_part_db: float = 6.0
    #: How many layers to name because of many small errors: the first line to copy has all of them.
    most_small: int = 3
    #: How many layers to name at most: more nobody reads.
    most_layers: int = 10


#: The bounds that are used.
T = Thresholds()
