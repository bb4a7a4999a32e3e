"""Fixtures of the protocol's tests."""

import re

import pytest

from protocol.wire import grpc_client


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry as often as always, without the waits."""
    quick = [
        (name, re.sub(r'"[0-9.]+s"', '"0.01s"', value) if isinstance(value, str) else value)
        for name, value in grpc_client.OPTIONS
    ]
    assert quick != list(grpc_client.OPTIONS)
    monkeypatch.setattr(grpc_client, "OPTIONS", quick)
