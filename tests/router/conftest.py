"""Base models of both families, a pool over each, and a catalogue that serves one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.bundle import Bundle
from protocol.documents import Pool
from protocol.signing import Identity
from tests import factories
from tests.router.catalog import Catalog, serving


@pytest.fixture(scope="session", params=["t5_base", "llama_base"])
def base(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session")
def pool(base: Path) -> Pool:
    return factories.make_pool(base, Identity.generate())


@pytest.fixture
def catalog(t5_base: Path, identity: Identity) -> Catalog:
    return Catalog(factories.make_pool(t5_base, identity), identity)


@pytest.fixture
def address(catalog: Catalog) -> Iterator[str]:
    with serving(catalog) as where:
        yield where


@pytest.fixture
def bundles(catalog: Catalog, tmp_path: Path) -> list[Bundle]:
    return [
        factories.make_bundle(tmp_path / f"b{n}", catalog.pool, catalog.identity, name=f"e{n}", seed=n)
        for n in range(3)
    ]
