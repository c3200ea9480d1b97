"""What is wrong with a quantized model, why, and what to try: rules over what the analyses found.

`evidence` gathers what is known of each layer, `loss` judges the model as a whole, the modules of rules name causes, `verdict`
puts them in the order in which they matter, and `advice` says what to try, with an estimate of what it brings. Every bound
stands in `thresholds`, or on top of `loss` and `advice`, with its reason.
"""

from tflite_qdebug.analyses.diagnosis.advice import advise
from tflite_qdebug.analyses.diagnosis.verdict import diagnose

__all__ = ["advise", "diagnose"]
