"""The programs answer --help without waking the heavy libraries, and say nothing that is not theirs."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "datasets", "sqlalchemy", "grpc", "pydantic", "numpy")


@pytest.mark.parametrize("room", ["client", "coordinator", "router"])
def test_a_door_opens_quickly(room: str) -> None:
    program = f"import sys, {room}.cli; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == []


@pytest.mark.parametrize("room", ["client", "coordinator", "router"])
def test_every_verb_explains_itself(room: str) -> None:
    program = f"from {room}.cli import main; main()"
    top = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True, timeout=60,
        env={"COLUMNS": "200", "NO_COLOR": "1", "PATH": ""},
    )  # fmt: skip
    assert top.stderr == ""
    assert "Usage" in top.stdout


@pytest.mark.parametrize("room", ["client", "coordinator", "router"])
def test_an_unknown_flag_is_a_usage_error(room: str) -> None:
    program = f"from {room}.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program, "--nonsense"], capture_output=True, text=True, timeout=60)  # noqa: PLW1510 - it is to fail
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
