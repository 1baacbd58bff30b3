"""LitServe: a worker process for each core. `python -m tests.benchmarks.peers.litserve PORT`."""

import io
import sys

import litserve
from fastapi import Request

from tests.benchmarks.peers.classifier import CORES, Classifier


class ClipAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.classifier = Classifier(threads=1)

    def decode_request(self, request: Request) -> io.BytesIO:
        return io.BytesIO(request["file"].file.read())

    def predict(self, video: io.BytesIO) -> dict[str, str | float]:
        return self.classifier(video)

    def encode_response(self, output: dict[str, str | float]) -> dict[str, str | float]:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(ClipAPI(api_path="/classify"), accelerator="cpu", workers_per_device=CORES)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
