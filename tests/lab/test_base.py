import itertools
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.nn import functional

from protocol.spec import Architecture
from router.base.batching import encode_pairs, pair_batch
from router.base.fingerprint import fingerprint
from router.base.loading import Base, load_base
from router.base.tokens import encode_input, encode_target
from tests.lab import base
from tests.lab.base import COURSES, Course, make_base, make_model, make_tokenizer
from tests.lab.world import World

BRIEF = {
    architecture: Course(architecture, width=16, inner=16, layers=1, batch=8, steady=2, cooling=2, look=1)
    for architecture in get_args(Architecture)
}


@pytest.fixture(params=get_args(Architecture))
def architecture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Architecture:
    found: Architecture = request.param
    monkeypatch.setitem(COURSES, found, BRIEF[found])
    return found


def make_school(architecture: Architecture) -> tuple[base._School, Base]:
    world = World(0, "toy")
    tokenizer = make_tokenizer(world.vocabulary, architecture)
    torch.manual_seed(0)
    model = make_model(BRIEF[architecture], tokenizer).eval()
    return base._School(world, 0, model, tokenizer, BRIEF[architecture], str), Base(model, tokenizer)


def test_a_school_reads_rows_as_client_and_router_do(architecture: Architecture) -> None:
    school, made = make_school(architecture)
    rows = list(itertools.islice(World(0, "toy").pretraining(1), 20))
    for row in rows:
        assert school._tokens(row["input"]) == encode_input(made.tokenizer, row["input"], architecture)
        answer = encode_target(made.tokenizer, row["target"], architecture)
        assert [*school._tokens(row["target"], framed=False), made.tokenizer.eos_token_id] == answer
    logits, wanted, kept = school._read(rows)
    batch, labels = pair_batch(
        made, encode_pairs(made, [row["input"] for row in rows], [row["target"] for row in rows])
    )
    expected = made.model(**batch, labels=labels).loss
    torch.testing.assert_close(functional.cross_entropy(logits, wanted), expected)
    assert kept.sum(1).tolist() == [len(row["target"].split()) + 1 for row in rows]


def test_a_row_is_right_if_every_word_of_its_answer_is(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    school, _ = make_school(architecture)
    wanted = torch.tensor([1, 2, 3, 4])
    logits = functional.one_hot(torch.tensor([1, 2, 3, 0]), 5).float()
    kept = torch.tensor([[True, False, True], [False, True, True]])
    monkeypatch.setattr(school, "_read", lambda _: (logits, wanted, kept))
    assert school._share([]) == 0.5


def test_a_base_that_learnt_nothing_is_an_error_and_is_not_kept(architecture: Architecture, tmp_path: Path) -> None:
    said: list[object] = []
    with pytest.raises(RuntimeError, match=r"not fit.*order 0.000"):
        make_base(World(0, "toy"), architecture, 0, tmp_path, said.append)
    assert not list(tmp_path.iterdir())
    assert "cooling begins after step 2" in str(said)


def test_equal_seeds_make_equal_bases_that_are_found_again(
    architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base._School, "check", lambda _: None)
    world = World(0, "toy")
    folder = make_base(world, architecture, 0, tmp_path / "a")
    again = make_base(world, architecture, 0, tmp_path / "b")
    assert folder.name == again.name
    assert fingerprint(str(folder)).weights == fingerprint(str(again)).weights
    others = {make_base(World(1, "toy"), architecture, 0, tmp_path / "a"), make_base(world, architecture, 1, tmp_path)}
    assert folder.name not in {other.name for other in others}
    assert load_base(str(folder), device="cpu").architecture == architecture
    monkeypatch.setattr(base, "make_model", None)  # nothing is trained any more
    assert make_base(world, architecture, 0, tmp_path / "a") == folder


def test_cooling_begins_once_the_last_skill_is_there(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    school, _ = make_school(architecture)
    shares = iter([0.1, 0.95])
    monkeypatch.setattr(school, "_exact", lambda *_, **__: next(shares))
    school._course = Course(architecture, learning_rate=1.0, warm_up=4, look=10, cooling=5)
    rates = list(school._rates())
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[20:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
