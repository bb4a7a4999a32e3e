"""Methods are timed over as many tokens each, wherever their answers would end."""

from pathlib import Path

import pytest
import torch

from tests.real.bench import pace
from tests.real.bench.test_lower import make_model


def test_every_method_writes_as_many_tokens_as_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, written = make_model(tmp_path), list[int]()
    monkeypatch.setattr(pace, "ROUNDS", 1)
    write = model.base.model.generate

    def counted(**given: torch.Tensor) -> torch.Tensor:
        found = write(**given)
        written.append(found.shape[1] - given["input_ids"].shape[1])
        return found

    monkeypatch.setattr(model.base.model, "generate", counted)
    found = pace.pace(model, ["reverse a b c", "copy a"], ["phatgoose", "nnls-request"])
    assert set(found) == {"phatgoose", "nnls-request"}
    assert all(ratio > 0 for ratio in found.values())
    assert set(written) == {pace.TOKENS}
    assert len(written) == 6  # three methods, a warm-up and a round
