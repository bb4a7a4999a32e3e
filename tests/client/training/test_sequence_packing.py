"""Examples that share rows: each is read as if it were alone, and training learns the same."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DataCollatorForSeq2Seq

from client.job import produce
from client.training.plan import TrainingRequest
from client.training.sequence_packing import check_packing, pack
from protocol.bundle import ADAPTER_WEIGHTS, GATES
from protocol.errors import Code, Refused
from protocol.signing import Identity
from router.base.loading import load_base
from tests import factories
from tests.client.conftest import NOW, RECIPE, make_site


def draw(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Examples of many lengths, some of one token, with prompts of many lengths."""
    dice = random.Random(seed)
    examples = []
    for _ in range(count):
        tokens = [dice.randrange(3, 20) for _ in range(dice.randint(2, 30))]
        masked = dice.randrange(len(tokens) - 1)
        examples.append({"input_ids": tokens, "labels": [-100] * masked + tokens[masked:]})
    return examples


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("count", [1, 2, 16])
def test_a_packed_loss_is_the_loss(family: str, count: int, request: pytest.FixtureRequest) -> None:
    base = load_base(str(request.getfixturevalue(f"{family}_base")), device="cpu")
    check_packing(base)
    examples = draw(count, seed=count)
    batch = pack(examples)
    assert batch["input_ids"].shape[1] == max(len(each["input_ids"]) for each in examples)
    assert batch["input_ids"].shape[0] <= len(examples)
    with torch.no_grad():
        packed = base.model(**batch).loss
        padded = base.model(**DataCollatorForSeq2Seq(base.tokenizer)(examples)).loss
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-6)


def test_nothing_of_an_example_is_lost() -> None:
    examples = draw(40, seed=1)
    batch = pack(examples)
    counted = (batch["labels"] != -100).sum().item()
    assert counted == sum(sum(label != -100 for label in each["labels"][1:]) for each in examples)
    assert (batch["position_ids"] == 0).sum() >= 40


def test_packed_training_learns_the_same(llama_base: Path, tmp_path: Path, operator: Identity) -> None:
    recipe = RECIPE.model_copy(update={"expert_steps": 6, "gate_steps": 4, "eval_every": 3})
    site = make_site(tmp_path, llama_base, factories.make_pool(llama_base, operator, recipe), operator)
    bundles = [
        produce(
            site.workspace,
            TrainingRequest((site.data,), name=name, device="cpu", packing=name == "packed"), lambda _:
            None, NOW,
        )
        for name in ("padded", "packed")
    ]  # fmt: skip
    for file in (ADAPTER_WEIGHTS, GATES):
        padded, packed = (load_file(bundle.folder / file) for bundle in bundles)
        for name, tensor in padded.items():
            torch.testing.assert_close(packed[name], tensor, rtol=2e-2, atol=2e-4)


def test_a_model_that_mixes_examples_is_refused(llama_base: Path, t5_base: Path) -> None:
    base = load_base(str(llama_base), device="cpu")
    forward = base.model.forward
    base.model.forward = lambda **inputs: forward(**{**inputs, "position_ids": None})
    for mixing in (base, load_base(str(t5_base), device="cpu")):
        with pytest.raises(Refused, match="would see each other") as refused:
            check_packing(mixing)
        assert refused.value.code is Code.SETTINGS_INVALID
