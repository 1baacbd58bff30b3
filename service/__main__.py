"""`python -m service` serves; `... classify FILE...` answers here and now, without a server; `... doctor` says what is
usable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path

from service import options

START_FAILED = 2
NOBODY_READS = 141
"""128 + SIGPIPE, as a shell has it."""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 a file could not be classified, 2 the start failed, 141 nobody reads on."""
    arguments = options.parser().parse_args(argv)
    from service import logs  # imported late: --help answers at once
    from service.errors import StartError

    try:
        settings = options.settings(arguments)
        quiet = arguments.command == "classify" and arguments.log_level is None
        logs.configure("warning" if quiet else settings.log_level, settings.log_format)
        for name in options.unknown_variables():
            logging.getLogger("service").warning("%s in the environment is no setting of this service", name)
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


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
