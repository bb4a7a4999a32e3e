"""Every parser is fuzzed from what it takes, for some seconds each where there is time."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.parsers import PARSERS
from tests.house.sources import ROOT

SECONDS = 8


@pytest.mark.parametrize("name", PARSERS)
def test_each_reader_takes_something_that_its_fuzzing_begins_with(name: str) -> None:
    """Otherwise nothing but the first check would be fuzzed."""
    parser = PARSERS[name]
    taken = {reader for seed in parser.seeds() for reader in parser.try_all(seed)}
    assert taken == set(parser.readers)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_whatever_is_not_read_is_refused(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is built for Linux on x86-64 alone")
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS), "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs
    assert int(runs[1]) > 100
    assert not list(tmp_path.glob(f"{name}-*")), "what was found would lie there"
