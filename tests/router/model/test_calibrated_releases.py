"""Releases that carry a calibration: fetched by content, taken up, carried on, left behind."""

from pathlib import Path

import numpy as np
import pytest

from protocol.bundle import Bundle, sha256_of
from protocol.errors import Code, Refused
from router.follow.pull import pull
from router.follow.workspace import CALIBRATIONS, check_disk, open_mirror
from router.model.routed_model import RoutedModel
from router.pool.calibration import Calibration
from router.query.request import RoutingChoice
from tests.router.catalog import Catalog


def test_a_calibration_comes_along_and_goes(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, t5_base: Path
) -> None:
    empty = Calibration.zeros([bundle.digest for bundle in bundles[:2]], sorted(catalog.pool.spec.modules))
    generator = np.random.default_rng(0)
    drawn = empty.at(generator.normal(0, 1, empty.vector.shape).astype(np.float32))
    (tmp_path / "calibration").write_bytes(drawn.content)
    texts, node = ["please reverse it : a b c"], tmp_path / "node"
    catalog.publish(bundles[:2], number=1)
    plain = RoutedModel.from_mirror(str(t5_base), pull(node, address), device="cpu")
    catalog.publish(bundles[:2], number=2, calibration=tmp_path / "calibration")
    mirror = pull(node, address)
    assert mirror.calibration is not None
    assert mirror.calibration.digest == drawn.digest
    again = open_mirror(node)
    assert again.calibration is not None
    model = RoutedModel.from_mirror(str(t5_base), again, device="cpu")
    before, after = plain.losses(texts, texts), model.losses(texts, texts)
    assert before != after
    # One that grows carries the same file on; the newcomer has no bias.
    catalog.publish(bundles, number=3, calibration=tmp_path / "calibration")
    model.take_up(pull(node, address))
    assert model.losses(texts, texts, RoutingChoice(deny=("e2",))) == pytest.approx(after, rel=1e-6)
    assert model.losses(texts, texts, RoutingChoice(release=2)) == pytest.approx(after, rel=1e-6)
    catalog.publish(bundles[:2], number=4)
    model.take_up(pull(node, address))
    assert model.losses(texts, texts) == pytest.approx(before, rel=1e-4)


def test_a_damaged_calibration_is_noticed(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path
) -> None:
    path, node = tmp_path / "calibration", tmp_path / "node"
    path.write_bytes(Calibration.zeros([], []).content)
    catalog.publish(bundles[:1], number=1, calibration=path)
    pull(node, address)
    kept = node / CALIBRATIONS / sha256_of(path)
    kept.write_bytes(kept.read_bytes()[::-1])
    with pytest.raises(Refused) as refused:
        open_mirror(node)
    assert refused.value.code is Code.DIGEST_MISMATCH
    assert pull(node, address).calibration is not None  # fetched afresh
    assert check_disk(node).damaged == {}
    kept.unlink()
    assert [error.code for error in check_disk(node).damaged.values()] == [Code.FILE_MISSING]
    with pytest.raises(Refused, match="is missing"):
        open_mirror(node)
