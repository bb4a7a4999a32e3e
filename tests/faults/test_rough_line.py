"""Lines that break anywhere, or are slow: an upload and a pull go on where they stopped, and come to a good end."""

import random
from contextlib import suppress
from pathlib import Path

import pytest

from client.submission import upload
from protocol.adapters import Shape
from protocol.bundle import Bundle
from protocol.documents import Pool, Receipt, read_receipt, sign_pool
from protocol.errors import Unavailable
from protocol.signing import Identity
from router.follow.pull import pull
from router.follow.workspace import Mirror
from tests import factories
from tests.coordinator.conftest import Clock, Served, make_pool
from tests.coordinator.contributor import enrolment
from tests.faults.rough_line import rough
from tests.router.catalog import Catalog, serving

CUTS = 6


@pytest.fixture(scope="module")
def coordinator() -> Identity:
    return Identity.generate()


@pytest.fixture(scope="module")
def wide(coordinator: Identity) -> Pool:
    """A pool whose bundles have two megabytes."""
    spec = make_pool(coordinator).spec
    return sign_pool(spec.model_copy(update={"modules": {"m": Shape(d_in=1 << 14, d_out=1 << 14)}}), coordinator)


@pytest.fixture(scope="module")
def ada() -> Identity:
    return Identity.generate()


@pytest.fixture(scope="module")
def large(wide: Pool, ada: Identity, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return factories.make_bundle(tmp_path_factory.mktemp("large") / "b", wide, ada, rank=16)


def send(pool: Pool, bundle: Bundle, identity: Identity, port: int) -> Receipt:
    slept: list[float] = []
    coordinator = upload.Coordinator(f"127.0.0.1:{port}", give_up_after_s=1e6, sleep=slept.append)
    receipt, raw = upload.submit(bundle, enrolment(pool.digest, identity, "ada"), pool, coordinator, lambda _: None)
    assert read_receipt(raw, pool).bundle == bundle.digest
    return receipt


@pytest.mark.parametrize("seed", [0, 1])
def test_an_upload_over_a_line_that_breaks(
    tmp_path: Path, coordinator: Identity, wide: Pool, large: Bundle, ada: Identity, seed: int
) -> None:
    served = Served(tmp_path, wide, coordinator, Clock())
    total = large.manifest.total_bytes
    with (
        served.running() as address,
        rough(int(address.rpartition(":")[2]), cuts=CUTS, most=total // 2, seed=seed) as line,
    ):
        assert send(wide, large, ada, line.port).sequence == 1
        assert len(line.cut) >= 2
        # Of each connection that was cut at most what lay in buffers is sent again.
        assert line.passed < total + CUTS * (2 << 20)
        assert send(wide, large, ada, line.port).sequence == 1
    assert all(served.store.verify(file.sha256) for file in large.manifest.files.values())


def test_an_upload_over_a_slow_line(
    tmp_path: Path, coordinator: Identity, wide: Pool, large: Bundle, ada: Identity
) -> None:
    served = Served(tmp_path, wide, coordinator, Clock())
    with served.running() as address, rough(int(address.rpartition(":")[2]), pause_s=0.005) as line:
        assert send(wide, large, ada, line.port).sequence == 1
        assert line.passed >= large.manifest.total_bytes


def pulled(node: Path, port: int) -> Mirror:
    """Pull as a router does, who comes back after one that failed."""
    for _ in range(CUTS):
        with suppress(Unavailable):
            return pull(node, f"127.0.0.1:{port}")
    return pull(node, f"127.0.0.1:{port}")


def test_a_pull_over_a_line_that_breaks(t5_base: Path, tmp_path: Path) -> None:
    identity = Identity.generate()
    catalog = Catalog(factories.make_pool(t5_base, identity), identity)
    bundles = [
        factories.make_bundle(tmp_path / f"b{n}", catalog.pool, identity, name=f"e{n}", rank=16, seed=n)
        for n in range(3)
    ]
    catalog.publish(bundles, number=1)
    most = sum(bundle.manifest.total_bytes for bundle in bundles) // 3
    with serving(catalog) as address:
        for seed in random.Random(0).sample(range(1000), 1):
            node = tmp_path / f"node-{seed}"
            with rough(int(address.rpartition(":")[2]), cuts=CUTS, most=most, seed=seed) as line:
                mirror = pulled(node, line.port)
            assert [bundle.digest for bundle in mirror.bundles] == [bundle.digest for bundle in bundles]
            assert line.cut
