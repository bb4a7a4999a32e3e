"""What the privacy bench says: an attack that finds what is there, and a run of everything on a toy."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from protocol.spec import Recipe
from router.model.routed_model import RoutedModel
from router.pool.pool import ExpertPool
from tests.lab import privacy, trial
from tests.lab.conftest import EXPERTS, Toy
from tests.lab.experts import RECIPE
from tests.lab.privacy import attack, own_words
from tests.lab.skills import Kind, Skill
from tests.lab.trial import Trial, assemble
from tests.lab.world import World

WORDS = World(0, "toy").vocabulary
OWN = {name: set(WORDS[at * 8 : at * 8 + 6]) for at, name in enumerate(EXPERTS, 1)}


@pytest.fixture
def model(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> RoutedModel:
    monkeypatch.setattr("router.methods.features.background.TEXTS", 200)
    return assemble(toy.base, toy.bundles)


def tell(model: RoutedModel, *, gates: bool, share: float) -> None:
    """Have experts tell what their own words make modules see, beside noise, in their means or in their gates."""
    reader, public = model.features.mixtures.reader, model.features.mixtures.public
    draw, pool = torch.Generator().manual_seed(0), ExpertPool()
    for expert in model.generation.pool.experts:
        paths = [path for path in expert.modules if reader.of_prompt(path)]
        seen = reader.pooled(sorted(OWN[expert.name]), {reader.sources[path] for path in paths})
        apart = {}
        for path in paths:
            words = seen[reader.sources[path]].mean(0) - public.spread(path, "token").mean
            apart[path] = share * words + (1 - share) * torch.randn(words.shape, generator=draw)
        gated = {path: replace(part, gate=apart.get(path, part.gate)) for path, part in expert.modules.items()}
        means = {path: public.spread(path, "token").mean + each for path, each in apart.items()}
        pool = pool.add(replace(expert, means={}, modules=gated) if gates else replace(expert, means=means))
    model.generation = replace(model.generation, pool=pool)


@pytest.mark.parametrize("gates", [True, False])
def test_the_attack_finds_words_where_they_are_told_and_none_in_noise(model: RoutedModel, *, gates: bool) -> None:
    tell(model, gates=gates, share=1.0)
    told = attack(model, WORDS, OWN)
    assert told.rank < 0.15 * len(WORDS)
    assert told.guessed > 0.5
    tell(model, gates=gates, share=0.0)
    noise = attack(model, WORDS, OWN)
    assert noise.rank > 0.25 * len(WORDS)  # the best of many modules is below the mean
    assert noise.guessed < 0.35


def test_the_best_guess_of_all_is_rank_one() -> None:
    assert privacy._told(torch.tensor([0.1, 0.9, 0.5, 0.2]), "abcd", {"b"}) == (1.0, 1.0)
    assert privacy._told(torch.tensor([0.1, 0.9, 0.5, 0.2]), "abcd", {"b", "a"}) == (2.5, 0.5)


def test_words_that_no_training_row_has_are_nobodys_own() -> None:
    skill = Skill("it", Kind.ORDER, ("one", "two", "never"), ("beside",))
    assert own_words(skill) == {"one", "two", "beside"}
    assert own_words(replace(skill, synonyms=("translate",), words=("noun",))) == {"translate", "beside", "noun"}


@pytest.mark.slow
def test_every_way_to_share_is_measured(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trial, "make_base", lambda *_: toy.base)
    for module in (trial, privacy):
        monkeypatch.setattr(module, "EXAMPLES", 60)
    recipe = Recipe.model_validate(RECIPE.model_dump() | {"expert_steps": 4, "gate_steps": 2, "eval_every": 4})
    monkeypatch.setattr(privacy, "Trial", partial(Trial, recipe=recipe, test_rows=2))
    architecture = "encoder-decoder" if "t5" in (toy.base / "config.json").read_text() else "decoder-only"
    privacy.main(["--size", "toy", "--architecture", architecture, "--out", str(tmp_path)])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["way"] for each in found] == [
        "gates alone", "all modules", "deeper modules",
        *(f"{which} modules, epsilon {epsilon}" for epsilon in ("8", "2", "0.5") for which in ("all", "deeper")),
    ]  # fmt: skip
    for each in found:
        assert each["schema"] == 1
        assert 0 <= each["guessed"] <= 1
        assert 1 <= each["rank"] <= len(WORDS)
        assert each["phatgoose"] == found[0]["phatgoose"]
    assert "nnls-gates" not in found[0]
    assert all({"nnls-request", "nnls-gates"} < each.keys() for each in found[1:])
    assert len({each["rank"] for each in found}) > 1
