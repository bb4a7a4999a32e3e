"""What is refused before it is tokenised."""

from pathlib import Path

import pytest

from protocol.errors import Code, Refused
from router.base import batching
from router.model.routed_model import RoutedModel
from router.query.request import Inputs, Turn
from tests import factories


@pytest.fixture
def model(tmp_path: Path) -> RoutedModel:
    """Of 128 positions, and words of at most 7 letters."""
    return RoutedModel.from_base(str(factories.make_llama(tmp_path)), device="cpu")


def test_what_is_far_too_long_is_not_tokenised(model: RoutedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 128 * len("reverse")
    assert len(model.read("rotate " * 100)[0].tokens) == 101
    with pytest.raises(Refused, match="tokens long") as refused:
        model.read("a " * (longest // 2))  # only the tokenizer knows
    assert refused.value.code is Code.DATA_TOO_LONG
    monkeypatch.setattr(batching, "_read", lambda *_: pytest.fail("it was tokenised"))
    asked: list[Inputs] = ["a" * (longest + 1), ["a", "b " * longest], [Turn(role="user", content="a " * longest)]]
    for inputs in asked:
        with pytest.raises(Refused, match="letters long") as refused:
            model.read(inputs)
        assert refused.value.code is Code.DATA_TOO_LONG


def test_a_base_without_positions_takes_what_its_caller_bounds(t5_base: Path) -> None:
    model = RoutedModel.from_base(str(t5_base), device="cpu")
    assert len(model.read("a " * 5000)[0].tokens) > 5000
    assert len(model.read("a " * 50, 100)[0].tokens) > 50
    with pytest.raises(Refused, match="letters long"):
        model.read("a " * 5000, 100)
