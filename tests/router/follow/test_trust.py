"""A router moves neither backwards nor sideways, and trusts one key."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protocol.bundle import Bundle
from protocol.documents import timestamp
from protocol.errors import Code, Refused
from protocol.signing import Identity
from router.follow.pull import pull, pull_calibration
from router.follow.workspace import open_mirror
from router.model.routed_model import RoutedModel
from tests import factories
from tests.router.catalog import Catalog, set_clock


def test_never_backwards(catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path) -> None:
    catalog.publish(bundles, number=5)
    pull(tmp_path / "node", address)
    catalog.publish(bundles[:1], number=4)
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "node", address)
    assert refused.value.code is Code.RELEASE_ROLLBACK
    assert open_mirror(tmp_path / "node").release.spec.number == 5


def test_never_sideways(catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path) -> None:
    catalog.publish(bundles[:1], number=1)
    pull(tmp_path / "node", address)
    catalog.publish(bundles[:2], number=1)
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "node", address)
    assert refused.value.code is Code.RELEASE_FORK


def test_never_sideways_across_releases_that_were_skipped(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    node = tmp_path / "node"
    catalog.publish(bundles[:1], number=1)
    pull(node, address)
    for number in (2, 3):
        catalog.publish(bundles[:number], number=number, created="2020-01-01T00:00:00Z", expires="2020-01-02T00:00:00Z")
    catalog.publish(bundles, number=4)
    pull(node, address)  # what lies between may have expired
    catalog.release = None
    catalog.publish(bundles, number=5)
    catalog.publish(bundles[:1], number=6)
    with pytest.raises(Refused) as refused:
        pull(node, address)
    assert refused.value.code is Code.RELEASE_FORK
    assert open_mirror(node).release.spec.number == 4


def test_an_expired_release_is_no_news_but_what_is_here_stays(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    catalog.publish(bundles, number=1, expires=timestamp(now + timedelta(hours=1)))
    pull(tmp_path / "node", address)
    set_clock(monkeypatch, now + timedelta(hours=2))
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "node", address)
    assert refused.value.code is Code.RELEASE_EXPIRED
    assert len(open_mirror(tmp_path / "node").bundles) == 3


def test_another_coordinator_is_not_trusted(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, t5_base: Path
) -> None:
    catalog.publish(bundles, number=1)
    pull(tmp_path / "node", address)
    stranger = Identity.generate()
    catalog.pool, catalog.identity = factories.make_pool(t5_base, stranger), stranger
    catalog.publish(bundles, number=2)
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "node", address)
    assert refused.value.code is Code.UNTRUSTED
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "fresh", address, pool_key=Identity.generate().public)
    assert refused.value.code is Code.UNTRUSTED


def test_another_pool_of_the_same_operator_is_refused(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, t5_base: Path
) -> None:
    catalog.publish(bundles, number=1)
    pull(tmp_path / "node", address)
    catalog.pool = factories.make_pool(t5_base, catalog.identity, max_rank=3)
    with pytest.raises(Refused) as refused:
        pull(tmp_path / "node", address)
    assert refused.value.code is Code.WRONG_POOL


def test_the_key_that_is_trusted_is_shown_or_given(
    catalog: Catalog, address: str, tmp_path: Path, t5_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catalog.publish([], number=1)
    key, stranger = catalog.identity.public, Identity.generate().public
    with pytest.raises(Refused) as refused:
        RoutedModel.from_release(address, str(t5_base), folder=tmp_path / "a", pool_key=stranger, device="cpu")
    assert refused.value.code is Code.UNTRUSTED
    RoutedModel.from_release(address, str(t5_base), folder=tmp_path / "b", pool_key=key, device="cpu")
    assert caplog.messages == []
    RoutedModel.from_release(address, str(t5_base), folder=tmp_path / "c", device="cpu")
    assert [key.hex in message for message in caplog.messages] == [True]


def test_a_misspelt_option_trusts_nobody(catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path) -> None:
    catalog.publish(bundles[:1], number=1)
    with pytest.raises(TypeError, match="pool_keys"):
        pull(tmp_path / "node", address, pool_keys="x")  # type: ignore[call-arg]
    assert not (tmp_path / "node").exists()
    with pytest.raises(TypeError, match="pool_key"):  # which it would not look at
        pull_calibration(tmp_path / "node", address, None, pool_key=None)  # type: ignore[call-arg, arg-type]
