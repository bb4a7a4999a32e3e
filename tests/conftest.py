"""Fixtures of every room."""

from pathlib import Path

import pytest

from protocol.signing import Identity
from tests import factories


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take long, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: "system" not in item.path.parts)


@pytest.fixture(scope="session")
def t5_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factories.make_t5(tmp_path_factory.mktemp("t5-base"))


@pytest.fixture(scope="session")
def llama_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factories.make_llama(tmp_path_factory.mktemp("llama-base"))


@pytest.fixture(scope="session")
def gpt2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return factories.make_gpt2(tmp_path_factory.mktemp("gpt2-base"))


@pytest.fixture
def identity() -> Identity:
    return Identity.generate()
