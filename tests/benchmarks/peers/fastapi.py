"""FastAPI: a plain function as route, run in its thread pool. `uvicorn tests.benchmarks.peers.fastapi:app`."""

import io
from typing import Annotated

from fastapi import FastAPI, UploadFile
from fastapi.params import File

from tests.benchmarks.peers.classifier import CORES, Classifier

app = FastAPI()
classifier = Classifier(threads=CORES)


@app.post("/classify")
def classify(file: Annotated[UploadFile, File()]) -> dict[str, str | float]:
    return classifier(io.BytesIO(file.file.read()))
