"""Serve Tensor-Train video classifiers: upload a clip, get its class."""

__version__ = "0.1.0"
