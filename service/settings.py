"""The service's settings: fields here, `TTVIDEO_<FIELD>` in the environment. Made once, in `__main__`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.logs import LogFormat
from service.video.bounds import Bounds
from service.video.child import Policy
from service.video.device import Device
from service.video.sandbox import Limits, Mode

Provider = Literal["auto", "cpu", "cuda"]


def _words(value: Any) -> Any:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _site(value: str) -> str:
    if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s,]+", value):
        raise ValueError("expected a site as https://example.org, without a path, or *")
    return value


Origin = Annotated[str, AfterValidator(_site)]
Graphs = Literal["auto", "on", "off"]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TTVIDEO_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    models: Path | None = None
    """Folder of models laid out NAME/VERSION/model.onnx, served beside the bundled one."""
    default_model: str | None = None
    """NAME, or NAME/VERSION, that answers when a request names none. Without it: the only model of `models`, else the
    bundled one."""
    model_control: Literal["none", "explicit"] = "none"
    """Whether models may be loaded and unloaded by request (/v2/repository), or are those of the start."""
    provider: Provider = "auto"
    device_id: Annotated[int, Field(ge=0)] = 0
    gpu_memory_bytes: Annotated[int, Field(ge=1 << 20)] | None = None
    """GPU memory that each model may take; all that is free without it."""
    cuda_graphs: Graphs = "auto"
    """Whether runs are recorded as CUDA graphs: `auto` where a model allows it, `on` or the model is refused, `off`."""

    max_upload_bytes: Annotated[int, Field(ge=1)] = 256 * 1024 * 1024
    """All files of a request together."""
    max_files: Annotated[int, Field(ge=1)] = 16
    """Videos in one request."""
    max_windows: Annotated[int, Field(ge=1)] = 1000
    """Of a video's timeline."""
    max_tensor_bytes: Annotated[int, Field(ge=1)] = 64 * 1024 * 1024
    """The body of an inference request under /v2, as it comes and decompressed."""
    upload_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """The longest wait for the next piece of a body; past it the upload is answered 408."""
    min_upload_rate: Annotated[float, Field(ge=0)] = 1000.0
    """Bytes a second that a body must bring on average, after the first `upload_timeout_s`; else it is answered 408."""
    deadline_s: Annotated[float, Field(gt=0)] = 30.0
    """From the end of the upload to the answer."""
    spool_dir: Path | None = None
    """Where uploads wait to be decoded; the system's temporary folder without it."""
    max_spool_bytes: Annotated[int, Field(ge=1)] = 4 * 1024 * 1024 * 1024
    """Of all uploads there together; one more is answered 507."""

    max_pixels: Annotated[int, Field(ge=1)] = Bounds.max_pixels
    """Width times height of a video's pictures."""
    max_duration_s: Annotated[float, Field(gt=0)] = Bounds.max_duration_s
    max_frames: Annotated[int, Field(ge=1)] = Bounds.max_frames
    """Pictures in a video."""
    max_streams: Annotated[int, Field(ge=1)] = Bounds.max_streams
    """Streams in a file, of any kind."""

    decode_device: Device = "cpu"
    """What decodes videos: the processor, or the video engine of the GPU `device_id`."""
    sandbox: Mode = "auto"
    """What holds decoder processes: `auto` what this kernel can, `required` all of it or no start, `off` nothing."""
    decoder_memory_bytes: Annotated[int, Field(ge=1 << 29)] = Limits.address_space_bytes
    """The address space of a decoder process."""
    decoder_max_clips: Annotated[int, Field(ge=1)] = Policy.max_clips
    """After so many a decoder process is renewed."""
    decoder_max_rss_bytes: Annotated[int, Field(ge=1)] = Policy.max_rss_bytes
    """A decoder process that holds more memory after a clip is renewed."""
    decode_workers: Annotated[int, Field(ge=1)] | None = None
    """Decoder processes; one more than there are usable cores without it."""
    model_threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of one run of a model on the CPU; half of the usable cores without it. All models together run so many at
    once as the cores have threads for."""
    max_batch: Annotated[int, Field(ge=1)] = 16
    max_queue_delay_ms: Annotated[float, Field(ge=0)] = 0.0
    """How long the first clip of a batch waits for company; 0 takes what is there."""
    max_queue: Annotated[int, Field(ge=1)] = 64
    """Requests under way, from upload to answer; one more is answered 503."""
    max_sequences: Annotated[int, Field(ge=1)] = 2048
    """Live sequences, those of /v2 and of /stream together; one more is answered 503. Each holds the model's state, a
    few KiB, and what waits of its pieces."""
    sequence_idle_s: Annotated[float, Field(gt=0)] = 60.0
    """A sequence of which nothing comes for so long is ended."""
    max_encoded_streams: Annotated[int, Field(ge=0)] = 16
    """Encoded streams of /stream at once, each with a decoder process of its own; one more is answered `busy`."""
    max_message_bytes: Annotated[int, Field(ge=1)] = 2 * 1024 * 1024
    """A message to /stream; a larger one closes the socket."""
    api_keys: SecretStr = SecretStr("")
    """NAME:KEY, separated by spaces or commas. With a key here or a file, whoever asks must bring one."""
    api_keys_file: Path | None = None
    """NAME:KEY, one a line; read again when it changes."""
    open_metrics: bool = False
    """Whether /metrics needs no key, where everything else does."""
    rate_limit: Annotated[float, Field(gt=0)] | None = None
    """Requests a second of one key, or of one address where there is no key; one more is answered 429."""
    rate_burst: Annotated[int, Field(ge=1)] | None = None
    """Requests that may come at once after a pause; those of one second without it."""
    cors_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_words)] = ()
    """Web sites whose pages may ask from a browser, as https://example.org, separated by spaces or commas; or *."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: LogFormat = "text"

    @field_validator("rate_burst")
    @classmethod
    def _burst_of_a_rate(cls, burst: int | None, given: ValidationInfo) -> int | None:
        if burst is not None and "rate_limit" in given.data and given.data["rate_limit"] is None:
            raise ValueError("expected rate_limit beside it")
        return burst

    def decoder_policy(self) -> Policy:
        """The settings that a decoder process follows."""
        return Policy(
            bounds=Bounds(
                max_pixels=self.max_pixels,
                max_duration_s=self.max_duration_s,
                max_frames=self.max_frames,
                max_streams=self.max_streams,
            ),
            device=self.decode_device,
            device_id=self.device_id,
            sandbox=self.sandbox,
            limits=Limits(address_space_bytes=self.decoder_memory_bytes),
            max_clips=self.decoder_max_clips,
            max_rss_bytes=self.decoder_max_rss_bytes,
        )
