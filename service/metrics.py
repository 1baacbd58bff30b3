"""Every series that /metrics shows."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The series of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.build = Info("ttvideo_build", "Version of the service", registry=registry)
        self.requests = Counter(
            "ttvideo_requests",
            "Answered requests; code is `ok` or an error's stable code",
            ["route", "status", "code"],
            registry=registry,
        )
        self.key_requests = Counter(
            "ttvideo_key_requests", "Answered requests by the name of their API key", ["key", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "ttvideo_request_seconds", "From request to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.stage_seconds = Histogram(
            "ttvideo_stage_seconds",
            "Stages of a request, those that failed too: upload, queue (for a decoder), decode, infer (wait and run)",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.upload_bytes = Counter("ttvideo_upload_bytes", "Bytes of video received", registry=registry)
        self.spool_bytes = Gauge("ttvideo_spool_bytes", "Bytes of uploads that wait or are decoded", registry=registry)
        self.spool_bytes_limit = Gauge(
            "ttvideo_spool_bytes_limit", "Bytes of uploads that may wait or be decoded", registry=registry
        )
        self.files = Counter(
            "ttvideo_files",
            "Files of requests with several; code is `ok` or the stable code of its own problem",
            ["code"],
            registry=registry,
        )
        self.frames_decoded = Counter("ttvideo_frames_decoded", "Frames handed to a model", registry=registry)
        self.batch_size = Histogram(
            "ttvideo_batch_size", "Clips in one run of a model", ["model"], buckets=_BATCH, registry=registry
        )
        self.batch_limit = Gauge(
            "ttvideo_batch_limit",
            "Clips that a run of a model may take now: fewer for a while where there was no memory for more",
            ["model", "version"],
            registry=registry,
        )
        self.in_flight = Gauge("ttvideo_requests_in_flight", "Clips between upload and answer", registry=registry)
        self.in_flight_limit = Gauge(
            "ttvideo_requests_in_flight_limit", "Clips that may be between upload and answer", registry=registry
        )
        self.queue_depth = Gauge(
            "ttvideo_queue_depth", "Clips waiting for a decoder or for a model", ["queue"], registry=registry
        )
        self.sequences = Gauge("ttvideo_sequences", "Live sequences, of /v2 and of /stream", registry=registry)
        self.encoded_streams = Gauge(
            "ttvideo_encoded_streams", "Encoded live streams, each with a decoder process", registry=registry
        )
        self.sequences_over = Counter(
            "ttvideo_sequences_over",
            "Sequences that ended; code is `ok` or why they were ended",
            ["code"],
            registry=registry,
        )
        self.sequence_steps = Counter(
            "ttvideo_sequence_steps", "Frames of sequences that were answered", registry=registry
        )
        self.decode_workers = Gauge("ttvideo_decode_workers", "Living decoder processes", registry=registry)
        self.decode_workers_wanted = Gauge(
            "ttvideo_decode_workers_wanted", "Decoder processes that there should be", registry=registry
        )
        self.decode_workers_replaced = Counter(
            "ttvideo_decode_workers_replaced", "Decoder processes that crashed or were killed", registry=registry
        )
        self.decode_workers_recycled = Counter(
            "ttvideo_decode_workers_recycled",
            "Decoder processes that were renewed in good health: after enough clips, memory or processor time",
            ["reason"],
            registry=registry,
        )
        self.sandbox = Gauge(
            "ttvideo_decoder_sandbox",
            "1 where this kernel enforces a layer of the decoders' sandbox, and what it holds back; else 0 and why",
            ["layer", "detail"],
            registry=registry,
        )
        self.core_plan = Gauge(
            "ttvideo_core_plan",
            "Who works on the cores: cores by affinity and quota, decode_workers, model_threads of a run, model_runs",
            ["part"],
            registry=registry,
        )
        self.ready = Gauge("ttvideo_ready", "1 from the end of the warm-up until shutdown begins", registry=registry)
        self.provider = Gauge(
            "ttvideo_provider_info",
            "1; the provider that a model runs on, and why that is not CUDA",
            ["model", "version", "provider", "reason"],
            registry=registry,
        )
        self.model = Gauge(
            "ttvideo_model_info", "1; the models served", ["model", "version", "precision", "sha256"], registry=registry
        )
        self.model_nodes = Gauge(
            "ttvideo_model_nodes",
            "Nodes of a model's graph by the provider that ONNX Runtime gives them to",
            ["model", "version", "provider"],
            registry=registry,
        )

    def render(self) -> bytes:
        return generate_latest(self.registry)
