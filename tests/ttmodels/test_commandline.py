"""What all commands do alike."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ttmodels.commandline import check_output

SLOW_IMPORT = """
import sys
from ttmodels.commandline import command, require

require()
print("importing", flush=True)
try:
    import time
    time.sleep(60)
except BaseException:
    pass  # as some modules do while they are imported
"""
PRINTING = """
import sys
from ttmodels.commandline import command


@command
def main(arguments=None):
    for _ in range(100_000):
        print("a line")
    return 0


sys.exit(main())
"""


def test_an_interruption_of_the_imports_is_one_line() -> None:
    with subprocess.Popen([sys.executable, "-c", SLOW_IMPORT], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        assert done.stdout is not None
        assert done.stdout.readline() == b"importing\n"
        done.send_signal(signal.SIGINT)
        assert done.communicate(timeout=20)[1] == b"\ninterrupted\n"
        assert done.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("module", ["exporters.to_onnx", "ttmodels.train", "ttmodels.evaluate"])
def test_an_interrupted_command_says_so(module: str) -> None:
    """At any moment from its first own line on."""
    for seconds in (0.3, 0.8):
        with subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", module, "--help"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as done:
            assert done.stderr is not None
            for line in done.stderr:
                if "ttmodels.commandline" in line:
                    break
            time.sleep(seconds)
            done.send_signal(signal.SIGINT)
            printed = done.communicate(timeout=30)[1]
        assert "Traceback" not in printed
        assert (done.returncode, "interrupted" in printed) in ((130, True), (0, False))


def test_a_reader_that_goes_is_no_fault() -> None:
    with subprocess.Popen([sys.executable, "-c", PRINTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        assert done.stdout is not None
        assert done.stdout.readline() == b"a line\n"
        done.stdout.close()
        assert done.stderr is not None
        assert done.stderr.read() == b""
    assert done.returncode == 141


def test_an_output_is_no_input_under_any_name(tmp_path: Path) -> None:
    source = tmp_path / "a" / "left" / "0.mp4"
    source.parent.mkdir(parents=True)
    source.write_bytes(b"")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "other").symlink_to(tmp_path / "a")
    for out in (source, tmp_path / "link", tmp_path / "a" / "left" / ".." / "left" / "0.mp4"):
        with pytest.raises(ValueError, match=r"--json: expected another file .* which is .*0.mp4"):
            check_output("--json", out, source)
    with pytest.raises(ValueError, match="expected another file"):
        check_output("--json", tmp_path / "other" / "left" / "0.mp4", None, tmp_path / "a")
    with pytest.raises(ValueError, match="--json: expected a file to write, found a folder"):
        check_output("--json", tmp_path, source)
    check_output("--json", None, source)
    check_output("--json", tmp_path / "new.json", source, tmp_path / "none")
    (tmp_path / "a" / "figures.json").write_text("")
    check_output("--json", tmp_path / "a" / "figures.json", tmp_path / "a")  # beside the classes' folders
