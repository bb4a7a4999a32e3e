"""Every code of the error table has someone who raises it and a test that sees it."""

import re
from pathlib import Path

import pytest

from protocol.errors import Code
from tests.house.sources import ROOMS, ROOT, python_files

TABLE = ROOT / "protocol" / "errors.py"
HERE = Path(__file__)


def names(files: list[Path], pattern: str) -> set[str]:
    """Collect the codes that files name."""
    found: set[str] = set()
    for path in files:
        found.update(re.findall(pattern, path.read_text()))
    return found


# Raised means handed to something as its code; comparing with a code is not enough.
RAISE = r"(?:\(|code(?:: Code)? ?=)\s*Code\.([A-Z][A-Z_]*)\b"
# The conformance suite hands codes to its own checks.
SOURCES = [path for path in python_files(*ROOMS) if path != TABLE and "conformance" not in path.relative_to(ROOT).parts]
RAISED = names(SOURCES, RAISE)
TESTED = names([path for path in python_files("tests") if path != HERE], r"\b([A-Z][A-Z_]{2,})\b")


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_a_code_is_raised_and_tested(code: Code) -> None:
    assert code.name in RAISED
    assert code.name in TESTED


def test_nothing_raises_a_code_that_the_table_lacks() -> None:
    assert set(Code.__members__) >= RAISED


def test_a_code_that_is_only_compared_with_is_found_out(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        "if error.code is Code.COMPARED:\n    raise Refused(\n        Code.BUILT, 'x')\nf(code=Code.HANDED)\n"
    )
    assert names([source], RAISE) == {"BUILT", "HANDED"}
