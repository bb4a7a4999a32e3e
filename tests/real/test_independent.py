"""The independent recomputation agrees with the product where both are right, and tells what was changed where not."""

import ast
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from protocol.bundle import GATES, Bundle, pack
from protocol.signing import Identity
from protocol.spec import Means, Statistics
from router.methods.features import mixture
from router.methods.nnls_cautious import cautious_weights
from router.methods.nnls_request import request_weights
from router.query.request import RoutingChoice
from tests.factories import make_bundle, make_llama, make_pool
from tests.lab.trial import assemble
from tests.real.bench import __main__ as bench
from tests.real.bench import suite
from tests.real.bench.contributors import Contributor
from tests.real.bench.questions import Question
from tests.real.bench.score import Asked, score
from tests.real.bench.test_bench import out  # noqa: F401 - a fixture
from tests.real.independent import __main__ as independent
from tests.real.independent import formulas
from tests.real.independent.model import Base
from tests.real.tasks.task import Row

NAMES = ("anna", "berta", "clara")
LEFT_OUT = "model.layers.1.self_attn.o_proj"
"""What clara does not touch."""
WORDS = ["reverse", "copy", "rotate", "cipher", "say", "it", "a", "b", "c", "d", "e", "f", "g", "h"]


@dataclass(frozen=True)
class Made:
    """What a run of the bench leaves behind."""

    base: Path
    bundles: Path
    suite: Path
    scores: Path

    def gates(self, name: str) -> Path:
        (found,) = self.bundles.glob(f"{name}/bundles/*/gates.safetensors")
        return found

    def check(self, capsys: pytest.CaptureFixture[str], rows: int = 40) -> tuple[int, dict[str, dict[str, float]]]:
        options = {"base": self.base, "bundles": self.bundles, "suite": self.suite, "scores": self.scores, "rows": rows}
        status = independent.main([word for name, value in options.items() for word in (f"--{name}", str(value))])
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert document["agree"] == (status == 0)
        return status, document["methods"]


def _row(at: int) -> Row:
    # Every third row is of the same kind.
    words = [WORDS[at % 3], *(WORDS[(at * step + step) % len(WORDS)] for step in (1, 3, 5))][: 2 + at % 2]
    return Row(" ".join(words), (words[-1], words[0]), (words[-1], "c d", "a") if at % 2 else ())


def _tell_means(bundle: Bundle, base: Base, texts: list[str], identity: Identity) -> Bundle:
    """Have a bundle tell what its modules see of some texts."""
    gates, modules = bundle.folder / GATES, list(bundle.spec.modules)
    seen = [base.seen(base.prompt(text), modules) for text in texts]
    means = {f"{path}.mean": torch.stack([each[path][0].mean(0) for each in seen]).mean(0) for path in modules}
    save_file(load_file(gates) | means, gates, {"format": "pt"})
    return pack(bundle.folder, bundle.spec, identity)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    for module in (mixture, formulas):
        monkeypatch.setattr(module, "ENDINGS", (3, 4))  # requests are of four tokens or five
    base, identity = make_llama(tmp_path / "base"), Identity.generate()
    pool, bundles, reader = make_pool(base, identity), [], Base(str(base))
    for at, name in enumerate(NAMES):
        modules = [path for path in pool.spec.modules if (name, path) != ("clara", LEFT_OUT)]
        drawn = make_bundle(
            tmp_path / "pool" / name / "bundles" / "only", pool, identity, name=name, rank=2 + 2 * at, modules=modules,
            seed=at, statistics=Statistics(means=Means()),
        )  # fmt: skip
        bundles.append(_tell_means(drawn, reader, [_row(each).input for each in range(at, 36, 3)], identity))
    rows = [_row(at) for at in range(36)]
    plain, choices = [row for row in rows if not row.choices], [row for row in rows if row.choices]
    questions = [
        Question("write", "composition", "tuning", "exact", tuple(plain[:9])),
        Question("continue", "cell", "tuning", "bits", tuple(plain[9:])),
        Question("choose", "bbl", "confirming", "choices", tuple(choices)),
    ]
    known, public = [Contributor(name, name) for name in NAMES], [f"say {' '.join(WORDS[at:])}  it" for at in range(12)]
    suite.write(tmp_path / "suite.json", "smoke", 0, known, [], {}, [Row(text, ("",)) for text in public], questions)
    (tmp_path / "public.txt").write_text("".join(f"{' '.join(text.split())}\n" for text in public))
    model = assemble(base, bundles, tmp_path / "public.txt")
    for method in independent.METHODS:
        score(model, questions, Asked(method, RoutingChoice(method)), {}, tmp_path / "scores")
    return Made(base, tmp_path / "pool", tmp_path / "suite.json", tmp_path / "scores")


def test_it_agrees_with_the_product(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    status, methods = made.check(capsys)
    assert status == 0
    for found in methods.values():
        assert (found["agrees"], found["disagrees"]) == (36, 0)
        assert found["most_apart"] < 1e-4
    assert sum(1 for _ in independent.read_scores(made.scores / "phatgoose.jsonl")) == 3


@pytest.mark.parametrize(("field", "by"), [("nats", 0.01), ("values", 1.0)])
def test_a_score_that_was_changed_is_told(
    made: Made, capsys: pytest.CaptureFixture[str], field: str, by: float
) -> None:
    kept = made.scores / "phatgoose.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    lines[0][field][3] += by
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, methods = made.check(capsys)
    assert status == 1
    assert [found["disagrees"] for found in methods.values()] == [1, 0, 0]


def test_other_gates_are_told_of_the_method_that_routes_by_them(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    gates = made.gates("anna")
    tensors = load_file(gates)
    save_file({name: -each if name.endswith(".gate") else each for name, each in tensors.items()}, gates)
    _, methods = made.check(capsys)
    assert methods["phatgoose"]["disagrees"] > 12
    assert methods["nnls-request"]["disagrees"] == methods["nnls-cautious"]["disagrees"] == 0


def test_other_means_are_told_of_the_other(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    gates = made.gates("anna")
    tensors = load_file(gates)
    save_file({name: -each if name.endswith(".mean") else each for name, each in tensors.items()}, gates)
    _, methods = made.check(capsys)
    assert methods["phatgoose"]["disagrees"] == 0
    assert methods["nnls-request"]["disagrees"] > 12
    assert methods["nnls-cautious"]["disagrees"] > 12


@pytest.mark.parametrize(
    ("constant", "value", "methods"),
    [
        ("model.K", 1, {"phatgoose"}),
        ("formulas.K", 1, {"nnls-request", "nnls-cautious"}),
        ("formulas._DIRECTIONS", 2, {"nnls-request", "nnls-cautious"}),
        ("formulas.ENDINGS", (), {"nnls-cautious"}),
    ],
)
def test_a_formula_that_differs_is_told(
    made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, constant: str, value: object,
    methods: set[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(f"tests.real.independent.{constant}", value)
    status, told = made.check(capsys)
    assert status == 1
    assert {name for name, found in told.items() if found["disagrees"]} == methods


def test_rows_are_spread_over_families(made: Made) -> None:
    questions = json.loads(made.suite.read_text())["questions"]
    picked = independent.pick(questions, 12)
    assert [each.question["family"] for each in picked[:3]] == ["composition", "cell", "bbl"]
    assert len({(each.question["name"], each.at) for each in picked}) == 12
    assert len(independent.pick(questions, 1000)) == 36


def test_what_is_decided_by_less_than_the_tolerance_is_even() -> None:
    found = independent.Outcome(1.0, 2.0, independent.TOLERANCE / 2)
    assert independent.compare(found, 0.0, 2.0) == "even"
    assert independent.compare(found._replace(margin=1.0), 0.0, 2.0) == "disagrees"
    assert independent.compare(found, 1.0, 2.1) == "disagrees"
    assert independent.compare(found._replace(nats=float("nan")), 1.0, 2.0) == "disagrees"


def test_shares_are_where_no_share_could_be_better() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        root = draw.normal(size=(7, 5))
        gram, target = root @ root.T + 0.01 * np.eye(7), draw.normal(size=7)
        c = formulas.solve(gram, target)
        best = c @ gram @ c / 2 - target @ c
        for _ in range(50):
            other = np.maximum(c + draw.normal(size=7) * draw.choice([1e-3, 1e-1, 1]), 0)
            assert other @ gram @ other / 2 - target @ other >= best - 1e-9


def test_weights_are_the_products_for_few_many_alike_and_unfamiliar() -> None:
    draw, unfamiliar, capped = np.random.default_rng(0), 0, 0
    for _ in range(300):
        c = np.maximum(draw.normal(draw.choice([-0.2, 0.1]), draw.choice([0.1, 0.5]), size=8), 0)
        labels = draw.integers(8, size=8)
        # Numbered as the product does, by the first of each.
        family = np.array([int(np.flatnonzero(labels == each)[0]) for each in labels])
        wanted = request_weights(c, family, 2, None)
        assert formulas.request_weights(c, family.tolist()) == pytest.approx(wanted.tolist())
        assert formulas.cautious_weights(c, family.tolist()) == pytest.approx(cautious_weights(c, family, 2).tolist())
        unfamiliar += (wanted > 0).sum() > 2
        capped += bool(np.isclose(np.bincount(family, weights=wanted), 1).any())
    assert min(unfamiliar, capped) > 30


def test_families_are_chains_of_likenesses() -> None:
    angles = np.array([0.0, 0.4, 1.5, 0.8, -1.5])  # cosine .9 is an angle of .45
    vectors = np.stack([np.cos(angles), np.sin(angles)]).T
    number = formulas.families(vectors @ vectors.T)
    assert number[0] == number[1] == number[3]
    assert len({number[0], number[2], number[4]}) == 3


def test_it_imports_nothing_of_the_product() -> None:
    allowed = {"torch", "transformers", "safetensors", "numpy", *sys.stdlib_module_names}
    for file in Path(independent.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert all(name.startswith("tests.real.independent") or name.split(".")[0] in allowed for name in names), (
                file
            )


@pytest.mark.slow
def test_it_finds_what_the_bench_made_last(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    base = make_llama(tmp_path / "base")
    asked = ["--base", str(base), "--layers", "1-1", "--size", "smoke", "--steps", "8", "--out", str(out)]
    bench.main([*asked, "--workers", "1", "--no-oracle", "--methods", *independent.METHODS])
    capsys.readouterr()
    assert independent.main(["--bench", str(out), "--base", str(base), "--rows", "20"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["experts"], told["agree"]) == (3, True)
    assert all(found["agrees"] == 20 for found in told["methods"].values())


def test_without_scores_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="run make bench-real first"):
        independent.main(["--bench", str(tmp_path)])
