"""What a demo shows of any story, and (slow) the road of a small one, twice."""

import json
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from deploy.demo import __main__ as words
from deploy.demo import measure
from deploy.demo.federation import found_pool
from deploy.demo.play import play
from deploy.demo.screen import Screen, answer_table
from deploy.demo.story import Contributor, Example, Founding, Question, Story
from router.query.answer import Answer, ModuleRoute

RECIPE = (
    "--rank", 2, "--alpha", 4, "--expert-steps", 4, "--gate-steps", 2, "--batch-size", 4, "--eval-every", 2,
    "--max-input-tokens", 24, "--max-target-tokens", 8, "--layers", "1",
)  # fmt: skip


def told(base: Path) -> Story:
    """Two contributors over a base that knows nothing."""
    rows = [Example(f"reverse it : {a} {b}", f"{b} {a}") for a in "abcdef" for b in "ghijk"]
    turned = [Example(f"rotate it : {a} {b}", f"{b} {a}") for a in "abcdef" for b in "ghijk"]

    def contributor(mine: list[Example]) -> Contributor:
        return Contributor(mine[4:], [Question(row.input, (row.target,)) for row in mine[:4]])

    public = tuple(f"copy it : {a} {a}" for a in "lmnopqrs")
    founding = Founding(str(base), RECIPE, public[:2], ("means",), public)
    both = [Question("reverse and rotate it : a b", ("a b",))]
    contributors = {"ada": contributor(rows), "bob": contributor(turned)}
    return Story(founding, contributors, {("ada", "bob"): both}, max_new_tokens=3, drawn=2)


def test_the_first_line_of_an_answer_counts_and_any_right_answer() -> None:
    question = Question("Opposite of: up\nAnswer:", (" down", " downwards"))
    assert question.answered_by(" down\nOpposite of: left")
    assert question.answered_by("downwards ")
    assert not question.answered_by(" downstairs")
    assert not question.answered_by("\nleft\ndown")
    assert not question.answered_by("")


def test_a_story_is_known_by_what_is_founded_and_trained_on(tmp_path: Path) -> None:
    story = told(tmp_path)
    asked_less = replace(story, pairs={}, drawn=1)
    other_base = replace(story, founding=replace(story.founding, base="another"))
    ada = story.contributors["ada"]
    fewer_rows = replace(story, contributors={**story.contributors, "ada": replace(ada, private=ada.private[1:])})
    assert asked_less.digest == story.digest
    assert len({story.digest, other_base.digest, fewer_rows.digest}) == 3


def test_figures_that_disappoint_are_said() -> None:
    good = {"base": 0.1, "own_expert": 0.9, "merged": 0.2, "routed": 0.8}
    own = {"fine": good, "useless": good | {"own_expert": 0.1}, "lost": good | {"routed": 0.0}}
    both = {"fine + lost": good | {"routed": 0.9}}
    assert list(measure.shortfalls({"fine": good}, {})) == []
    said = "\n".join(measure.shortfalls(own, both))
    assert "expert of useless is no better" in said
    assert "requests of lost are answered no better" in said
    assert "what needs fine + lost is answered no better" in said
    assert len(said.splitlines()) == 3


def test_a_wrong_answer_is_shown_beside_the_right_one() -> None:
    route = ModuleRoute("m", True, np.array([[0, 1]]), np.array([[0.75, 0.25]], np.float32))
    answer = Answer(" sold\nPlural of:", 1, "phatgoose", ("x",), ("y",), (route,))
    console = Console(width=120, record=True, file=StringIO())
    console.print(answer_table([("ada", Question("[sell]", (" bought",)), answer)], ("ada", "bob")))
    shown = console.export_text()
    for part in ("[sell]", "sold", "bought", "ada 75%  bob 25%"):
        assert part in shown
    assert "Plural" not in shown


@pytest.mark.parametrize("phase", ["expert", "gates", "means", "upload", "centroid"])
def test_every_phase_of_a_contribution_is_shown(phase: str) -> None:
    shown = StringIO()
    Screen(["ada"], Console(file=shown, width=120)).progress("ada", {"phase": phase, "step": 1, "of": 2})
    assert "ada" in shown.getvalue()


def test_the_world_of_words_asks_every_contributor_and_every_pair() -> None:
    story = words.story()
    assert len(story.contributors) == 6
    assert {name for pair in story.pairs for name in pair} == {*story.contributors}
    for one in story.contributors.values():
        assert not {row.input for row in one.private} & {question.input for question in one.held_out}


@pytest.mark.slow
def test_a_pool_is_found_again_for_the_same_and_founded_anew_for_another(t5_base: Path, tmp_path: Path) -> None:
    founding, folder = told(t5_base).founding, tmp_path / "demo"
    first = found_pool(folder, founding, digest="a")
    (folder / "kept").touch()
    assert found_pool(folder, founding, digest="a") == first
    assert (folder / "kept").is_file()
    (folder / "founded.json").unlink()  # as if it was interrupted
    assert found_pool(folder, founding, digest="a") != first
    assert not (folder / "kept").exists()
    second = found_pool(folder, founding, digest="a")
    assert found_pool(folder, founding, digest="b") != second


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_second_run_finds_what_the_first_one_trained(llama_base: Path, tmp_path: Path) -> None:
    story, folder = told(llama_base), tmp_path / "demo"
    began = time.time()
    first = play(story, folder)
    trained = {path: path.stat().st_mtime for path in folder.glob("contributors/*/bundles/*/adapter_model.safetensors")}
    assert len(trained) == 2
    assert min(trained.values()) > began
    second = play(story, folder)
    for report in (first, second):
        assert report["contributors"] == report["release"] == 2
        assert json.loads(json.dumps(report)) == report
        assert len(report["refused"]) == 4  # type: ignore[arg-type]
    assert second["requests"] == first["requests"]
    assert {path: path.stat().st_mtime for path in trained} == trained
    assert (folder / "heat-map.png").read_bytes().startswith(b"\x89PNG")
