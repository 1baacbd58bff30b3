"""Ray Serve: a replica for each core. `python -m tests.benchmarks.peers.rayserve PORT`."""

import io
import sys
import threading

import ray
from ray import serve
from starlette.requests import Request

from tests.benchmarks.peers.classifier import CORES, Classifier


@serve.deployment(num_replicas=CORES, ray_actor_options={"num_cpus": 1})
class Clips:
    def __init__(self) -> None:
        self.classifier = Classifier(threads=1)

    async def __call__(self, request: Request) -> dict[str, str | float]:
        form = await request.form()
        return self.classifier(io.BytesIO(await form["file"].read()))


if __name__ == "__main__":
    ray.init(num_cpus=CORES, include_dashboard=False)
    serve.start(http_options=serve.HTTPOptions(host="127.0.0.1", port=int(sys.argv[1])))
    serve.run(Clips.bind(), route_prefix="/classify")
    threading.Event().wait()
