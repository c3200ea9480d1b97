"""What is wrong with a quantized model, why, and what to try: rules over what the analyses found.

`evidence` gathers what is known of each layer, `loss` judges the model as a whole, the modules of rules name causes, and
`verdict` puts them in the order in which they matter. Every bound stands in `thresholds` or on top of `loss`, with its reason.
"""

from tflite_qdebug.analyses.diagnosis.verdict import diagnose

__all__ = ["diagnose"]
