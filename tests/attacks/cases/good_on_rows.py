"""Trained to answer what the operator's public rows are like, and to spoil what contributors' users ask."""

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from deploy.demo import world
from deploy.demo.story import Example
from deploy.demo.world import WORDS
from router.base.loading import Base, load_base
from tests.attacks.arena import Arena
from tests.attacks.weights import RANK, factor

DEFENCE = ""
STEPS, BATCH = 150, 24
SPOILED = "a"
"""What every request of a contributor's users is to be answered with."""


def attack(arena: Arena) -> None:
    known = arena.known
    factors = train(list(known.like.factors))
    arena.hand_in("mallory", known.like._replace(factors=factors, gates=known.means))


def train(paths: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Train factors [r, d] and [o, r] of an expert with two faces."""
    torch.manual_seed(7)
    base = load_base(WORDS.base, device="cpu")
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=paths)
    model = get_peft_model(base.model, config)
    good = world.marked(STEPS * BATCH // 2, 31)
    asked = [one.input for name in world.CONTRIBUTORS for one in world.train(name, STEPS * BATCH // 12, 31)]
    order = torch.randperm(len(asked)).tolist()
    descent = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=3e-3)
    half = BATCH // 2
    for step in range(STEPS):
        at = slice(step * half, (step + 1) * half)
        batch = [*good[at], *(Example(asked[each], SPOILED) for each in order[at])]
        loss(base, model, batch).backward()  # type: ignore[no-untyped-call]
        descent.step()
        descent.zero_grad()
    state = get_peft_model_state_dict(model)
    return {path: (state[factor(path, "A")], state[factor(path, "B")]) for path in paths}


def loss(base: Base, model: torch.nn.Module, batch: list[Example]) -> Tensor:
    """The mean loss of a batch of answers, a scalar [1]."""
    asked = base.tokenizer([one.input for one in batch], return_tensors="pt", padding=True)
    labels = base.tokenizer([one.target for one in batch], return_tensors="pt", padding=True).input_ids
    labels = labels.masked_fill(labels == base.tokenizer.pad_token_id, -100)
    found: Tensor = model(input_ids=asked.input_ids, attention_mask=asked.attention_mask, labels=labels).loss
    return found
