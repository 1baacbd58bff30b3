"""`python -m service` serves; `... classify FILE...` answers here and now, without a server; `... doctor` says what is
usable."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import __version__

if TYPE_CHECKING:
    from service.settings import Settings

START_FAILED = 2
NOBODY_READS = 141
"""128 + SIGPIPE, as a shell has it."""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 a file could not be classified, 2 the start failed, 141 nobody reads on."""
    arguments = _parser().parse_args(argv)
    from service import logs  # imported late: --help answers at once
    from service.errors import StartError

    try:
        settings = _settings(arguments)
        quiet = arguments.command == "classify" and arguments.log_level is None
        logs.configure("warning" if quiet else settings.log_level, settings.log_format)
        if arguments.command == "doctor":
            from service.doctor import doctor

            return doctor(settings, as_json=arguments.json)
        if settings.provider == "cuda":  # whoever insists on it hears at once that it is not there
            from service.engine.provider import choose

            choose("cuda", settings.device_id)
        from service.video.process import prepare

        prepare()  # decoders load FFmpeg while this process loads everything else
        if arguments.command == "classify":
            from service.commandline import classify

            paths = [Path(name) for name in arguments.files]
            return asyncio.run(
                classify(
                    paths,
                    settings,
                    top_k=arguments.top_k,
                    model=arguments.model,
                    version=arguments.version,
                    window_s=arguments.window_s,
                    stride_s=arguments.stride_s,
                    as_json=arguments.json,
                )
            )
        from service.server import serve

        asyncio.run(serve(settings))
        return 0
    except StartError as error:
        if logs.structured():
            logging.getLogger("service").critical(error)
        else:
            print(f"ttvideo: {error}", file=sys.stderr)
        return START_FAILED
    except BrokenPipeError:
        # Python would complain once more while it flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        allow_abbrev=False,  # --model of the command below would be an abbreviation of options here
        description="Serve video classifiers over HTTP. Every option has its TTVIDEO_ environment variable, as "
        "TTVIDEO_MAX_QUEUE for --max-queue.",
    )
    parser.add_argument("--version", action="version", version=f"ttvideo {__version__}")
    _add_model_options(parser)
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (8000)")
    parser.add_argument("--max-queue", type=int, help="clips under way; one more is answered 503 (64)")
    parser.add_argument(
        "--max-queue-delay-ms", type=float, help="how long the first clip of a batch waits for company (0)"
    )
    parser.add_argument(
        "--max-upload-bytes", type=int, help="of all files of a request; more is answered 413 (268435456)"
    )
    parser.add_argument("--max-files", type=int, help="videos in one request (16)")
    parser.add_argument(
        "--max-spool-bytes", type=int, help="of all uploads under way; more is answered 507 (4294967296)"
    )
    parser.add_argument(
        "--min-upload-rate",
        type=float,
        help="bytes a second that an upload must bring after --upload-timeout-s; else it is 408 (1000)",
    )
    parser.add_argument("--max-tensor-bytes", type=int, help="largest body of an inference request (67108864)")
    parser.add_argument(
        "--model-control",
        choices=["none", "explicit"],
        help="whether models may be loaded and unloaded by request, under /v2/repository (none)",
    )
    parser.add_argument(
        "--upload-timeout-s", type=float, help="longest wait for the next piece of an upload; then it is 408 (10)"
    )
    parser.add_argument("--deadline-s", type=float, help="seconds from the end of the upload to the answer (30)")
    parser.add_argument("--max-sequences", type=int, help="live sequences and streams; one more is answered 503 (2048)")
    parser.add_argument("--sequence-idle-s", type=float, help="idle seconds after which a sequence is ended (60)")
    parser.add_argument("--max-encoded-streams", type=int, help="encoded live streams, a process for each (16)")
    parser.add_argument("--max-message-bytes", type=int, help="largest message of a live stream (2097152)")
    parser.add_argument(
        "--api-keys-file",
        type=Path,
        help="keys that requests must bring, NAME:KEY one a line, read again when it changes; or a few keys in "
        "TTVIDEO_API_KEYS (no key is asked for)",
    )
    parser.add_argument(
        "--open-metrics", action="store_true", default=None, help="/metrics needs no key (it needs one, if others do)"
    )
    parser.add_argument(
        "--rate-limit", type=float, help="requests a second of a key, or of an address without one (no limit)"
    )
    parser.add_argument("--rate-burst", type=int, help="requests that may come at once (those of one second)")
    parser.add_argument("--cors-origins", help="web sites whose pages may ask, as https://example.org, or * (none)")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--log-format", choices=["text", "json"], help="log lines for people, or JSON objects (text)")
    commands = parser.add_subparsers(dest="command", metavar="classify|doctor")
    classify = commands.add_parser(
        "classify",
        help="classify files without a server",
        description="Classify files without a server. Exit code: 0, 1 where any file failed, 2 where the start did.",
    )
    doctor = commands.add_parser(
        "doctor",
        help="say what is usable here, and why something is not",
        description="Try everything that the service needs, with the settings given, and say what is usable and why "
        "something is not. Exit code: 0 where it can serve as configured, 1 where not.",
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object: version, usable, findings, settings")
    _add_model_options(doctor, default=argparse.SUPPRESS)
    classify.add_argument("files", nargs="+", metavar="FILE", help="a video; - is the standard input")
    classify.add_argument(
        "--json",
        action="store_true",
        help='one JSON object a line and file: {"file": FILE, "classification": what the server answers}, '
        '{"file": FILE, "timeline": what the server answers} or '
        '{"file": FILE, "error": {"type", "title", "status", "detail", "code"}}',
    )
    classify.add_argument("--top-k", type=int, help="labels to show")
    classify.add_argument("--model", help="a model's name")
    classify.add_argument("--version", help="a model's version")
    classify.add_argument("--window-s", type=float, help="seconds of a window: a timeline, one line a span")
    classify.add_argument("--stride-s", type=float, help="seconds from the start of a window to the next (--window-s)")
    # The defaults are left to the parser above: an option given before the command must not be undone by it.
    _add_model_options(classify, default=argparse.SUPPRESS)
    return parser


def _add_model_options(parser: argparse.ArgumentParser, **default: Any) -> None:
    parser.add_argument("--models", type=Path, help="folder of models, NAME/VERSION/model.onnx", **default)
    parser.add_argument(
        "--default-model",
        help="NAME or NAME/VERSION that answers unasked (the model of --models where that holds one name, else the "
        "bundled one; the latest version)",
        **default,
    )
    parser.add_argument("--decode-workers", type=int, help="decoder processes (usable cores)", **default)
    parser.add_argument(
        "--decode-device",
        choices=["cpu", "cuda"],
        help="what decodes videos: the processor, or the GPU --device-id (cpu)",
        **default,
    )
    parser.add_argument("--max-pixels", type=int, help="width x height of a video's pictures (36000000)", **default)
    parser.add_argument("--max-duration-s", type=float, help="seconds that a video lasts (600)", **default)
    parser.add_argument("--max-frames", type=int, help="pictures in a video (36000)", **default)
    parser.add_argument("--max-windows", type=int, help="windows in a video's timeline (1000)", **default)
    parser.add_argument("--max-streams", type=int, help="streams in a file (64)", **default)
    parser.add_argument(
        "--sandbox",
        choices=["auto", "required", "off"],
        help="what decoders give up: what this kernel can, all of it or no start, or nothing (auto)",
        **default,
    )
    parser.add_argument(
        "--decoder-memory-bytes", type=int, help="address space of a decoder process (4294967296)", **default
    )
    parser.add_argument("--decoder-max-clips", type=int, help="clips until a decoder is renewed (1000)", **default)
    parser.add_argument(
        "--decoder-max-rss-bytes",
        type=int,
        help="resident memory past which a decoder is renewed (536870912)",
        **default,
    )
    parser.add_argument("--spool-dir", type=Path, help="where uploads wait (the temporary folder)", **default)
    parser.add_argument("--max-batch", type=int, help="most clips in one run of a model (16)", **default)
    parser.add_argument(
        "--model-threads",
        type=int,
        help="threads of one run of a model on the CPU (half of the usable cores)",
        **default,
    )
    parser.add_argument("--device-id", type=int, help="which CUDA device (0)", **default)
    parser.add_argument(
        "--gpu-memory-bytes", type=int, help="GPU memory that each model may take (all that is free)", **default
    )
    parser.add_argument(
        "--cuda-graphs",
        choices=["auto", "on", "off"],
        help="whether runs on CUDA are recorded as graphs: where a model allows it, or it is refused, or never (auto)",
        **default,
    )
    parser.add_argument("--provider", choices=["auto", "cpu", "cuda"], help="where models run (auto)", **default)
    parser.add_argument(
        "--require-cuda",
        dest="provider",
        action="store_const",
        const="cuda",
        help="fail to start where CUDA does not work",
        **default,
    )


def _settings(arguments: argparse.Namespace) -> Settings:
    from pydantic import ValidationError

    from service.errors import StartError
    from service.settings import Settings

    given = {
        name: value for name, value in vars(arguments).items() if name in Settings.model_fields and value is not None
    }
    try:
        return Settings(**given)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, got {fault['input']!r}" for fault in error.errors()
        )
        raise StartError(f"settings: {faults}") from error


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
