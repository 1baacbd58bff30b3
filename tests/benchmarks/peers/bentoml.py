"""BentoML: a worker process for each core. `bentoml serve tests.benchmarks.peers.bentoml:Clips`."""

from pathlib import Path

import bentoml

from tests.benchmarks.peers.classifier import CORES, Classifier


@bentoml.service(workers=CORES)
class Clips:
    def __init__(self) -> None:
        self.classifier = Classifier(threads=1)

    @bentoml.api
    def classify(self, file: Path) -> dict[str, str | float]:
        return self.classifier(str(file))
