"""The command line: its options, in groups, and the settings that they give."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import __version__

if TYPE_CHECKING:
    from service.settings import Settings

PROGRAM = "python -m service"


class _Help(argparse.HelpFormatter):
    """A number is N and a path PATH, where argparse says the option's name again."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return {int: "N", float: "N", Path: "PATH"}.get(action.type, "TEXT")  # type: ignore[call-overload,no-any-return]


def parser() -> argparse.ArgumentParser:
    """The parser of `python -m service`, its `classify` and its `doctor`."""
    serve = argparse.ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s [OPTION...] [classify FILE... | doctor]",
        formatter_class=_Help,
        allow_abbrev=False,  # --model of classify would be an abbreviation of options here
        description="Serve video classifiers over HTTP. Every option has its TTVIDEO_ environment variable, as "
        "TTVIDEO_MAX_QUEUE for --max-queue. In parentheses stands what holds without it.",
    )
    serve.add_argument("--version", action="version", version=f"ttvideo {__version__}")
    _add_model_options(serve)
    _add_video_options(serve)
    _add_server_options(serve)
    commands = serve.add_subparsers(dest="command", metavar="classify|doctor")
    # Defaults are left to the parser above: an option given before the command must not be undone by it.
    classify = commands.add_parser(
        "classify",
        usage=f"{PROGRAM} classify [OPTION...] FILE...",
        formatter_class=_Help,
        allow_abbrev=False,
        help="classify files without a server",
        description="Classify files without a server. Exit code: 0, 1 where any file failed, 2 where the start did.",
    )
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
    _add_model_options(classify, default=argparse.SUPPRESS)
    _add_video_options(classify, default=argparse.SUPPRESS)
    doctor = commands.add_parser(
        "doctor",
        usage=f"{PROGRAM} doctor [OPTION...]",
        formatter_class=_Help,
        allow_abbrev=False,
        help="say what is usable here, and why something is not",
        description="Try everything that the service needs, with the settings given, and say what is usable and why "
        "something is not. Exit code: 0 where it can serve as configured, 1 where not.",
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object: version, usable, findings, settings")
    _add_model_options(doctor, default=argparse.SUPPRESS)
    _add_video_options(doctor, default=argparse.SUPPRESS)
    _add_server_options(doctor, default=argparse.SUPPRESS)
    return serve


def settings(arguments: argparse.Namespace) -> Settings:
    """What the options say, then the environment, then the defaults.

    Raises:
        StartError: a value is refused; names the setting.
    """
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
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}, got {fault['input']!r}"
            for fault in error.errors()
        )
        raise StartError(f"settings: {faults}") from error


def unknown_variables() -> list[str]:
    """Variables of the environment that look like settings and are none."""
    from service.settings import Settings

    prefix = Settings.model_config["env_prefix"]
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith(prefix) and name[len(prefix) :].lower() not in Settings.model_fields
    )


def _add_model_options(parser: argparse.ArgumentParser, **default: Any) -> None:
    group = parser.add_argument_group("models", "what is served, and where it runs")
    group.add_argument("--models", type=Path, help="folder of models, NAME/VERSION/model.onnx (none)", **default)
    group.add_argument(
        "--default-model",
        help="NAME or NAME/VERSION that answers unasked (the model of --models where that holds one name, else the "
        "bundled one; the latest version)",
        **default,
    )
    group.add_argument("--provider", choices=["auto", "cpu", "cuda"], help="where models run (auto)", **default)
    group.add_argument(
        "--require-cuda",
        dest="provider",
        action="store_const",
        const="cuda",
        help="fail to start where CUDA does not work",
        **default,
    )
    group.add_argument("--device-id", type=int, help="which CUDA device (0)", **default)
    group.add_argument(
        "--gpu-memory-bytes", type=int, help="GPU memory that each model may take (all that is free)", **default
    )
    group.add_argument(
        "--cuda-graphs",
        choices=["auto", "on", "off"],
        help="whether runs on CUDA are recorded as graphs: where a model allows it, or it is refused, or never (auto)",
        **default,
    )
    group.add_argument(
        "--model-threads",
        type=int,
        help="threads of one run of a model on the CPU (half of the usable cores)",
        **default,
    )
    group.add_argument("--max-batch", type=int, help="most clips in one run of a model (16)", **default)


def _add_video_options(parser: argparse.ArgumentParser, **default: Any) -> None:
    group = parser.add_argument_group("videos", "what is decoded, and by what")
    group.add_argument("--decode-workers", type=int, help="decoder processes (usable cores and one)", **default)
    group.add_argument(
        "--decode-device",
        choices=["cpu", "cuda"],
        help="what decodes videos: the processor, or the GPU --device-id (cpu)",
        **default,
    )
    group.add_argument("--max-pixels", type=int, help="width x height of a video's pictures (36000000)", **default)
    group.add_argument("--max-duration-s", type=float, help="seconds that a video lasts (600)", **default)
    group.add_argument("--max-frames", type=int, help="pictures in a video (36000)", **default)
    group.add_argument("--max-windows", type=int, help="windows in a video's timeline (1000)", **default)
    group.add_argument("--max-streams", type=int, help="streams in a file (64)", **default)
    group.add_argument(
        "--sandbox",
        choices=["auto", "required", "off"],
        help="what decoders give up: what this kernel can, all of it or no start, or nothing (auto)",
        **default,
    )
    group.add_argument(
        "--decoder-memory-bytes", type=int, help="address space of a decoder process (4294967296)", **default
    )
    group.add_argument("--decoder-max-clips", type=int, help="clips until a decoder is renewed (1000)", **default)
    group.add_argument(
        "--decoder-max-rss-bytes",
        type=int,
        help="resident memory past which a decoder is renewed (536870912)",
        **default,
    )
    group.add_argument("--spool-dir", type=Path, help="where uploads wait (the temporary folder)", **default)


def _add_server_options(parser: argparse.ArgumentParser, **default: Any) -> None:
    group = parser.add_argument_group("requests", "where they come in, and how much of them")
    group.add_argument("--host", help="address to listen on (127.0.0.1)", **default)
    group.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (8000)", **default)
    group.add_argument("--max-queue", type=int, help="clips under way; one more is answered 503 (64)", **default)
    group.add_argument(
        "--max-queue-delay-ms", type=float, help="how long the first clip of a batch waits for company (0)", **default
    )
    group.add_argument(
        "--max-upload-bytes", type=int, help="of all files of a request; more is answered 413 (268435456)", **default
    )
    group.add_argument("--max-files", type=int, help="videos in one request (16)", **default)
    group.add_argument(
        "--max-spool-bytes", type=int, help="of all uploads under way; more is answered 507 (4294967296)", **default
    )
    group.add_argument(
        "--upload-timeout-s",
        type=float,
        help="longest wait for the next piece of an upload; then it is 408 (10)",
        **default,
    )
    group.add_argument(
        "--min-upload-rate",
        type=float,
        help="bytes a second that an upload must bring after --upload-timeout-s; else it is 408 (1000)",
        **default,
    )
    group.add_argument(
        "--deadline-s", type=float, help="seconds from the end of the upload to the answer (30)", **default
    )
    group.add_argument(
        "--max-tensor-bytes", type=int, help="largest body of an inference request (67108864)", **default
    )
    group.add_argument(
        "--model-control",
        choices=["none", "explicit"],
        help="whether models may be loaded and unloaded by request, under /v2/repository (none)",
        **default,
    )

    group = parser.add_argument_group("live video and sequences")
    group.add_argument(
        "--max-sequences", type=int, help="live sequences and streams; one more is answered 503 (2048)", **default
    )
    group.add_argument(
        "--sequence-idle-s", type=float, help="idle seconds after which a sequence is ended (60)", **default
    )
    group.add_argument(
        "--max-encoded-streams", type=int, help="encoded live streams, a process for each (16)", **default
    )
    group.add_argument("--max-message-bytes", type=int, help="largest message of a live stream (2097152)", **default)

    group = parser.add_argument_group("access", "who may ask, and how often")
    group.add_argument(
        "--api-keys-file",
        type=Path,
        help="keys that requests must bring, NAME:KEY one a line, read again when it changes; or a few keys in "
        "TTVIDEO_API_KEYS (no key is asked for)",
        **default,
    )
    open_metrics: dict[str, Any] = {"default": None} | default
    group.add_argument(
        "--open-metrics",
        action="store_true",
        help="/metrics needs no key (it needs one, if others do)",
        **open_metrics,
    )
    group.add_argument(
        "--rate-limit",
        type=float,
        help="requests a second of a key, or of an address without one (no limit)",
        **default,
    )
    group.add_argument(
        "--rate-burst",
        type=int,
        help="requests that may come at once, with --rate-limit (those of one second)",
        **default,
    )
    group.add_argument(
        "--cors-origins", help="web sites whose pages may ask, as https://example.org, or * (none)", **default
    )

    group = parser.add_argument_group("log")
    group.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], help="the least that is told (info)", **default
    )
    group.add_argument(
        "--log-format", choices=["text", "json"], help="log lines for people, or JSON objects (text)", **default
    )
