"""The service's settings: fields here, `TTVIDEO_<FIELD>` in the environment. Made once, in `__main__`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Provider = Literal["auto", "cpu", "cuda"]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TTVIDEO_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    models: Path | None = None
    """Folder of models laid out NAME/VERSION/model.onnx, served beside the bundled one."""
    default_model: str | None = None
    """NAME, or NAME/VERSION, that answers when a request names none. Without it: the only model of `models`, else the
    bundled one."""
    provider: Provider = "auto"
    device_id: Annotated[int, Field(ge=0)] = 0

    max_upload_bytes: Annotated[int, Field(ge=1)] = 256 * 1024 * 1024
    upload_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """The longest wait for the next piece of a body; past it the upload is answered 408."""
    deadline_s: Annotated[float, Field(gt=0)] = 30.0
    """From the end of the upload to the answer."""
    spool_dir: Path | None = None
    """Where uploads wait to be decoded; the system's temporary folder without it."""

    decode_workers: Annotated[int, Field(ge=1)] | None = None
    """Decoder processes; as many as there are usable cores without it."""
    max_batch: Annotated[int, Field(ge=1)] = 16
    max_queue_delay_ms: Annotated[float, Field(ge=0)] = 0.0
    """How long the first clip of a batch waits for company; 0 takes what is there."""
    max_queue: Annotated[int, Field(ge=1)] = 64
    """Requests under way, from upload to answer; one more is answered 503."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
