"""Every tolerance of the tests, with its reason."""

CONTRACTION = 1e-5
"""Two orders of summation of a few hundred float32 products of order 1."""

RECURRENCE = 1e-5
"""A recurrence of tens of steps against torch's own; its gates saturate, so errors do not grow."""

LOGITS = 1e-3
"""ONNX Runtime against torch on 57,600 pixels a frame: the first MatMul sums them in another order."""

EXPORTED = 2e-5
"""Relative to the largest logit: ONNX Runtime against torch on 576 pixels a frame; the worst of 400 models was 4e-6."""

STREAMED = 1e-5
"""Relative to the largest logit: a clip in pieces against the clip as a whole, the issue's own bound."""

PROBABILITY = 1e-4
"""A served probability against the same model run in torch: LOGITS, through a softmax whose slope is at most 1/4, with
room for the JSON rounding of neither."""

SERVED = 1e-6
"""A served probability against the same file run directly in ONNX Runtime: they differ by batch size and padding."""

DOUBLE = 1e-12
"""Relative, in float64: two orders of summation of a few thousand products."""

DOUBLE_RECURRENCE = 1e-10
"""In float64: a TT-SVD and a dozen steps on top of DOUBLE; three orders above what they leave, seven below what a wrong
formula does."""

GRADIENT = 1e-10
"""In float64: gradients by two ways through the same products, each a sum of values of order 1 to 100."""

FROM_TORCH = 1e-5
"""A trained float32 layer against its train of full rank: the SVD is made in float64, its cores are rounded once."""

ORTHOGONAL = 1e-5
"""Entries of W^T W: float32 isometries multiplied along six cores."""

SCALE = 0.2
"""Relative: how far the variance of an initialised matrix may be from its rule; the issue's own bound."""

RESCALED = 1e-3
"""Relative: the root mean square that initialisation scales to; float32 rounding along six cores."""

BOUND = 1e-6
"""Relative slack on an error or norm that must not pass a bound: rounding of the bound's own measurement."""

HALF = {"bfloat16": 0.05, "float16": 0.01}
"""Outputs of order 1 against float32: 8 and 11 significant bits, rounded at each of a few products and steps."""

SHARED_OUT = 1e-5
"""Losses of order 1, and weights, after some steps of one process and of two, which sum gradients in another order;
the issue's own bound."""

BROWSER = 1e-4
"""ONNX Runtime as WebAssembly against its native build, which sums in other orders; the issue's own bound."""

PROJECTED = 1e-4
"""Gates, or logits behind them, of order 10: a float32 graph's few hundred products in another order than torch's, and
of int8 sums of up to 2^24 that become float32."""

HALF_GATES = 0.01
"""The same where a graph's values between two products are float16: 11 bits, some hundreds of them in a sum."""
