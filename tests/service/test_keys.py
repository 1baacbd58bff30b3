"""API keys: how they are written down, found, and read again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from service.errors import StartError
from service.keys import REREAD_S, Keys

ALICE, BOB = "alices-secret-key-0001", "bobs-secret-key-000002"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_keys_none_is_asked_for() -> None:
    assert not Keys()
    assert not Keys(" , ")


def test_keys_of_the_environment_and_of_a_file_are_found_by_name(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    hashed = hashlib.sha256(b"carols-secret-key-00003").hexdigest()
    file.write_text(f"# who may ask\n\n  bob : {BOB}\nbob:bobs-next-secret-key\n  # carol\ncarol:sha256:{hashed}\n")
    keys = Keys(f"alice:{ALICE},other:another-secret-key-0004", file)
    assert keys
    assert keys.names == ["alice", "bob", "carol", "other"]
    for key, name in (
        (ALICE, "alice"),
        (BOB, "bob"),
        ("bobs-next-secret-key", "bob"),
        ("another-secret-key-0004", "other"),
    ):
        assert keys.name_of(key) == name
    assert keys.name_of("carols-secret-key-00003") == "carol"
    for wrong in ("", "alice", ALICE[:-1], ALICE + " ", ALICE.upper(), hashed, f"sha256:{hashed}", "\xfc\udcff"):
        assert keys.name_of(wrong) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no-colon-in-this-one", "line 2: expected NAME:KEY"),
        (f"two words:{ALICE}", "line 2: expected NAME:KEY"),
        (":" + ALICE, "line 2: expected NAME:KEY"),
        ("alice:short-secret", "line 2: expected a key of at least 16 visible ASCII characters, got another of 12"),
        ("alice:", "got another of 0, as alice's"),
        ("alice:a secret in words", "at least 16 visible ASCII"),
        (f"alice:{BOB}", "alice and bob have the same key"),
    ],
)
def test_a_wrong_line_is_named_and_not_shown(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"bob:{BOB}\n{line}\n")
    with pytest.raises(StartError, match=said) as caught:
        Keys("", file)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"expected a file of API keys at .*No such file"):
        Keys("", tmp_path / "keys")


def replace(file: Path, text: str) -> None:
    """As an editor or Kubernetes does it."""
    other = file.with_suffix(".new")
    other.write_text(text)
    other.replace(file)


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, clock = tmp_path / "keys", Clock()
    file.write_text(f"alice:{ALICE}\n")
    keys = Keys("", file, clock)
    replace(file, f"bob:{BOB}\n")
    assert (keys.name_of(ALICE), keys.name_of(BOB)) == ("alice", None), "it is not looked at for every request"
    clock.now += REREAD_S
    assert (keys.name_of(ALICE), keys.name_of(BOB)) == (None, "bob")
    for broken in ("alice:short\n", None):
        clock.now += REREAD_S
        file.unlink() if broken is None else replace(file, broken)
        assert keys.name_of(BOB) == "bob"
        assert "API keys stay as they were" in caplog.text
        caplog.clear()
    clock.now += REREAD_S
    replace(file, "")
    assert keys.name_of(BOB) is None
    assert keys, "a file that lost its last key does not open the door"
