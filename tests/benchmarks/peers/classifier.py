"""What is the same behind every peer: all pictures decoded by PyAV, 16 of them picked, and the model run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import onnxruntime
from av.video.reformatter import VideoReformatter

MODEL = Path(__file__).parents[3] / "service" / "bundled" / "moving_digits" / "1" / "model.onnx"
CORES = 2
"""That the peers' settings are made for."""


class Classifier:
    """The bundled model, and its labels.

    Args:
        threads: of a run.
    """

    def __init__(self, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        manifest = json.loads(self.session.get_modelmeta().custom_metadata_map["ttvideo.manifest"])
        shapes = {state["input"]: (1, *state["shape"]) for state in manifest["states"]}
        self.at_the_start = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        self.labels, sampling = manifest["labels"], manifest["sampling"]
        self.num_frames, self.width, self.height = sampling["num_frames"], sampling["width"], sampling["height"]

    def __call__(self, video: BinaryIO | str) -> dict[str, str | float]:
        frames = self.decode(video)
        inputs = {"frames": frames[None], "lengths": np.array([len(frames)], np.int32), **self.at_the_start}
        (logits,) = self.session.run(["logits"], inputs)
        powers = np.exp(logits[0] - logits[0].max())
        best = int(powers.argmax())
        return {"label": self.labels[best], "probability": float(powers[best] / powers.sum())}

    def decode(self, video: BinaryIO | str) -> np.ndarray:
        """Shape: [time, height, width, 3]."""
        frames, resize = [], VideoReformatter()
        with av.open(video) as container:
            stream = container.streams.video[0]
            wanted = [(2 * i + 1) * stream.frames // (2 * self.num_frames) for i in range(self.num_frames)]
            for index, picture in enumerate(container.decode(stream)):
                if index in wanted:
                    small = resize.reformat(picture, self.width, self.height, "rgb24", interpolation="AREA")
                    frames.append(small.to_ndarray())
                if index == wanted[-1]:
                    break
        return np.stack(frames)
