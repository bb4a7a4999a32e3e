"""Triton decides when it is imported whether it interprets, so these tests have a process to themselves."""

import os

import pytest

from router.pool import device_table

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the interpreter: room for a few experts, and few tokens for each of the ways.

    Up to 2 go to `route_few`, up to 4 to `select_shrink`.
    """
    from router.layer.kernels import launch  # noqa: PLC0415 - not where there is no Triton

    monkeypatch.setattr(device_table, "_FIRST_ROWS", 16)
    monkeypatch.setattr(launch, "FEWEST", 2)
    monkeypatch.setattr(launch, "FEW", 4)
