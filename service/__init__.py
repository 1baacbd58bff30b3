"""Serve Tensor-Train video classifiers: upload a clip, get its class."""

import os

__version__ = "0.1.0"

# ONNX Runtime from 1.29 on reports its use to its makers unless told not to, before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
