"""Every tolerance of the tests, with its reason."""

CONTRACTION = 1e-5
"""Two orders of summation of a few hundred float32 products of order 1."""

RECURRENCE = 1e-5
"""A recurrence of tens of steps against torch's own; its gates saturate, so errors do not grow."""

LOGITS = 1e-3
"""ONNX Runtime against torch on 57,600 pixels a frame: the first MatMul sums them in another order."""

PROBABILITY = 1e-4
"""A served probability against the same model run in torch: LOGITS, through a softmax whose slope is at most 1/4, with
room for the JSON rounding of neither."""

SERVED = 1e-6
"""A served probability against the same file run directly in ONNX Runtime: they differ by batch size and padding."""
