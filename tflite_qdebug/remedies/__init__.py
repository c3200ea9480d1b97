"""What to change so that a quantized model keeps its accuracy, and the proof that it helped."""
