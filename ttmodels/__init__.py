"""Tensor-Train recurrent networks on raw video."""
