"""A base that is spread over memory and disk answers like one that is not."""

import gc
from pathlib import Path
from typing import get_args

import pytest
import torch

from protocol.adapters import Kind
from protocol.errors import Refused
from protocol.signing import Identity
from router import settings as router_settings
from router.base import memory
from router.base.device_map import is_offloaded, spreading_options
from router.base.linear import bias_of, device_of, find_linear, linear_modules, weight_of
from router.base.loading import load_base
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests import factories

SOME = {"cpu": "70KB"}
INPUTS = ["please reverse it : a b", "say c d"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@pytest.fixture(params=["t5", "llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(f"{request.param}_base")
    return folder


@pytest.mark.parametrize("method", ["phatgoose", "merged"])
def test_experts_of_every_kind_answer_alike(base: Path, method: str, tmp_path: Path, identity: Identity) -> None:
    pool = factories.make_pool(base, identity)
    bundles = [
        factories.make_bundle(tmp_path / kind, pool, identity, name=kind, kind=kind, seed=number)
        for number, kind in enumerate(KINDS)
    ]
    plain = RoutedModel.from_bundles(str(base), bundles, device="cpu")
    spread = RoutedModel.from_bundles(str(base), bundles, device="auto", max_memory=SOME)
    assert is_offloaded(spread.base.model)
    choice = RoutingChoice(method)
    assert spread.generate(INPUTS, choice, max_new_tokens=4) == plain.generate(INPUTS, choice, max_new_tokens=4)
    assert spread.losses(INPUTS, ["b a", "d"], choice) == pytest.approx(plain.losses(INPUTS, ["b a", "d"], choice))


def test_a_gpu_whose_share_is_given_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask makes a CUDA context there, which takes hundreds of megabytes."""
    asked = []

    def free(device: torch.device) -> int:
        asked.append(str(device))
        return 1 << 30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(memory, "free_bytes", free)
    with pytest.raises(Refused, match="no GPU 3"):
        spreading_options({"3": "1GiB"})
    assert asked == []
    most = spreading_options({"1": "0GiB", "cpu": "2GiB"})["max_memory"]
    assert asked == ["cuda:0", "cuda:2"]
    share = int(0.9 * (1 << 30))
    assert most == {0: share, 1: 0, 2: share, "cpu": 2 << 30}


def test_a_weight_that_is_elsewhere_is_read_whole(base: Path) -> None:
    plain = load_base(str(base), device="cpu").model
    spread = load_base(str(base), device="auto", max_memory=SOME).model
    for path in linear_modules(plain):
        ours, theirs = find_linear(spread, path), find_linear(plain, path)
        assert torch.equal(weight_of(ours, path), weight_of(theirs, path))
        assert device_of(ours) == torch.device("cpu")
        bias = bias_of(ours)
        assert (bias is None) == (theirs.bias is None)
        assert bias is None or torch.equal(bias, theirs.bias)
    assert is_offloaded(spread)  # and let go of again


def test_nothing_is_left_of_a_model_that_is_gone(
    llama_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = load_base(str(llama_base), device="auto", max_memory=SOME).model
    assert len(list(tmp_path.iterdir())) == 1
    del model
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_base_that_fits_is_not_spread(llama_base: Path) -> None:
    base = load_base(str(llama_base), device="auto")
    assert not is_offloaded(base.model)
    assert base.model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_workspace_may_say_how_much(tmp_path: Path) -> None:
    (tmp_path / router_settings.FILE).write_text(
        'coordinator = "localhost:1"\nbase = "b"\ndevice = "auto"\n[max_memory]\n0 = "20GiB"\ncpu = "8GiB"\n'
    )
    settings = router_settings.load(tmp_path)
    assert settings.loading["device"] == "auto"
    assert settings.loading["max_memory"] == {"0": "20GiB", "cpu": "8GiB"}
