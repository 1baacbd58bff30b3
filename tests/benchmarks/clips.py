"""The clip that the benchmarks of the service upload: made here, H.264 as x264 makes it, of a known label."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, RATE = 320, 240, 30
NOISE = 6.0
"""Of the camera: the standard deviation of a pixel, of 255."""
LABEL = "right"
"""What the bundled model sees in it."""


def write_clip(path: Path, seconds: float) -> None:
    """A bright disk that moves to the right before a dark ground that stands still, seen by a noisy camera."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 90, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.uint8)
    ground = av.VideoFrame.from_ndarray(coarse, format="rgb24").reformat(width=WIDTH, height=HEIGHT).to_ndarray()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    num_frames = round(seconds * RATE)
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(num_frames):
            centre = WIDTH * (0.15 + 0.7 * i / num_frames)
            inside = np.clip(33 - np.hypot(x - centre, y - HEIGHT / 2), 0, 1)[..., None]
            picture = ground + inside * (235.0 - ground) + rng.normal(0, NOISE, ground.shape)
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
