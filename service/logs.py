"""How log lines look: for a person, or as one JSON object each. Lines that belong to a request carry its id."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Literal

from service.trace import current

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but tabs and the ends of lines."""

LogFormat = Literal["text", "json"]


class TextFormatter(logging.Formatter):
    """Time, level, logger, the request's id where there is one, message; further lines of it are set in."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(of_request)s%(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        trace = current()
        record.of_request = f"{trace.request_id} " if trace else ""
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        # What a client or a decoder makes part of a message begins no line that looks like another.
        harmless = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", super().format(record))
        return harmless.replace("\n", "\n    ")


class JsonFormatter(logging.Formatter):
    """One object a line. What a record's `fields` holds becomes members of it."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace := current():
            line |= {"request_id": trace.request_id, **trace.ids}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


_FORMATTERS: dict[LogFormat, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


def configure(level: str, log_format: LogFormat) -> None:
    """Have everything that this process logs, libraries too, written to the standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[log_format]())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)


def structured() -> bool:
    """Whether lines are JSON, so that nothing else may be written beside them."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)
