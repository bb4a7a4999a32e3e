"""What a router asks of a bundle, too: the coordinator's side is in its tests of eligibility."""

from pathlib import Path

import pytest
from safetensors.numpy import save_file

from protocol import bundle, tensors
from protocol.bundle import GATES
from protocol.compatibility import check_fit, check_tensors
from protocol.errors import Code, Refused
from protocol.spec import Centroid, Means, Policy, Statistics
from tests.protocol import samples


def test_tensors_are_held_against_what_was_signed(tmp_path: Path) -> None:
    spec = samples.expert()
    packed = bundle.pack(samples.unsigned(tmp_path / "one"), spec, samples.CONTRIBUTOR)
    check_tensors(packed)
    gates = samples.arrays(tensors.gate_tensors(spec))
    save_file({name: each for name, each in gates.items() if name != "v.gate"}, packed.folder / GATES)
    with pytest.raises(Refused) as refused:
        check_tensors(packed)
    assert refused.value.code is Code.TENSOR_NAMES


def test_a_pool_that_asks_for_statistics_says_which_is_missing_and_takes_who_tells_them(tmp_path: Path) -> None:
    pool = samples.pool(policy=Policy(statistics=("means", "centroid")))
    means = Means()
    for told, missing in (
        (Statistics(), "means"), (Statistics(means=means), "centroid"),
        (Statistics(means=means, centroid=Centroid(width=8)), None),
    ):  # fmt: skip
        spec = samples.expert(pool=pool.digest, statistics=told)
        manifest = bundle.pack(samples.unsigned(tmp_path / str(missing), spec), spec, samples.CONTRIBUTOR).manifest
        if missing is None:
            check_fit(manifest, pool)
            continue
        with pytest.raises(Refused, match=f"tells no {missing}") as refused:
            check_fit(manifest, pool)
        assert refused.value.code is Code.STATISTICS_MISSING
        assert refused.value.hint.endswith("train --share means --share centroid")
