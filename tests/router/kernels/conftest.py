"""Triton decides when it is imported whether it interprets, so these tests have a process to themselves."""

import os

import pytest

from router import table

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make room for a few experts only: the interpreter walks over empty blocks, too."""
    monkeypatch.setattr(table, "_FIRST_ROWS", 16)
