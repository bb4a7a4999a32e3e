"""The GPU's bench says so where there is no GPU; its pieces run at a tiny size on a CPU."""

import json
from functools import partial

import pytest
import torch

from tests.bench import gpu
from tests.bench.device import take_turns
from tests.router.experts import PATH

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main()
    said = capsys.readouterr()
    assert "There is no CUDA GPU here" in said.err
    assert json.loads(said.out) == {"schema": 1, "device": None}


def test_its_pieces_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PATH": PATH, "ROUNDS": 2, "CALLS": 1, "ARRIVALS": 3, "RIVAL_EXPERTS": 9, "RANK": 4}.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr("tests.bench.layer.D", 32)
    with torch.no_grad():
        pool = gpu.grow_pools([5, 9], {PATH: (32, 32)}, CPU, torch.bfloat16)[9]
        row = gpu.measure_layer(pool, 8, CPU)
        assert row["experts"] == 9
        assert 2 <= row["distinct"] <= 9
        assert row["goal"] == pytest.approx(1.3 * row["floor"], abs=0.02)
        assert row["speedup_over_arrow"] > 0
        assert gpu.agreement(pool, 50, CPU) >= 0.98
        assert gpu.measure_growth(pool, CPU)["old_generation_bitwise_equal"]
        assert gpu.max_error(CPU) <= 1e-6
        stack = gpu.Stack(1, 16, 24).to(torch.bfloat16)
        assert len(stack.shapes) == 9
        assert gpu.measure_step(stack, gpu.grow_pools([3], stack.shapes, CPU, torch.bfloat16)[3], CPU)["ratio"] > 0


def test_turns_are_taken() -> None:
    called: list[str] = []
    took = take_turns({name: partial(called.append, name) for name in "ab"}, CPU, rounds=2)
    assert called == ["a", "b"] * 3
    assert [len(times) for times in took.values()] == [2, 2]
