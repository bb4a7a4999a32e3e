"""trace, save and export, in this process."""

import json
from inspect import signature
from pathlib import Path
from typing import get_type_hints

import pytest
from peft import PeftModel

from protocol.errors import Code, Refused
from protocol.openssf.model_signature import ModelSigner
from router.base.loading import load_base
from router.cli import options
from router.model.opening import load_model
from router.query.request import RoutingChoice
from tests.router.verbs import call, pulled_node


@pytest.fixture(scope="module")
def node(t5_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a release of two experts."""
    return pulled_node(t5_base, tmp_path_factory.mktemp("town"))


def test_every_choice_has_its_flag() -> None:
    flags = [*signature(options.method).parameters, *signature(options.choice).parameters]
    assert flags == list(get_type_hints(RoutingChoice))


def test_trace_writes_what_was_asked_for(node: Path, tmp_path: Path) -> None:
    png, html = tmp_path / "map.png", tmp_path / "map.html"
    said = call(
        "trace", "-w", node, "--device", "cpu", "--max-new-tokens", 2, "--png", png, "--html", html, "--json",
        "--full", "--oracle", "copy", "please copy it", "say it",
    )  # fmt: skip
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "KL(oracle || routing)" in html.read_text()
    document = json.loads(said.stdout)
    (panel,) = document["panels"]
    assert (panel["title"], panel["oracle"]) == ("2 requests", "ada/copy")
    assert panel["kl_from_oracle"] > 0
    route = document["answers"][1]["routes"][0]
    assert len(route["full"]) == len(route["experts"]) == 3  # two words and </s>
    assert [sum(row) for row in route["full"]] == pytest.approx([1, 1, 1], abs=1e-5)
    # Of two experts two are chosen, so what is chosen is all there is.
    at, weights = route["experts"][0], route["weights"][0]
    assert [route["full"][0][expert] for expert in at] == pytest.approx(weights, abs=2e-6)


def test_whole_distributions_hold_more_than_what_was_chosen(node: Path) -> None:
    said = call(
        "trace", "-w", node, "--device", "cpu", "--max-new-tokens", 2, "--json", "--full", "--k", 1, "please copy it"
    )
    for route in json.loads(said.stdout)["answers"][0]["routes"]:
        for (chosen,), (weight,), full in zip(route["experts"], route["weights"], route["full"], strict=True):
            assert weight == 1
            assert full[chosen] == max(full) < 1


def test_trace_by_task_measures_the_distance_from_each_oracle(node: Path, tmp_path: Path) -> None:
    lines = [
        {"task": "reversing", "input": "reverse it : a b", "oracle": "reverse", "score": 0.9},
        {"task": "copying", "input": "copy it : a b", "oracle": "ada/copy", "score": 0.4},
        {"task": "copying", "input": "copy it : c", "score": 0.6},
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = call(
        "trace", "-w", node, "--device", "cpu", "--max-new-tokens", 2, "--json", "--full",
        "--tasks", tmp_path / "tasks.jsonl",
    )  # fmt: skip
    document = json.loads(said.stdout)
    assert [(panel["title"], panel["score"]) for panel in document["panels"]] == [("reversing", 0.9), ("copying", 0.5)]
    assert abs(document["correlation_of_kl_and_score"]) == pytest.approx(1)  # of two points
    assert len(document["answers"]) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["a b"],
        ["--json"],
        ["--json", "--full", "--server", "127.0.0.1:1", "a b"],
        ["--json", "--tasks", "x.jsonl", "a b"],
        ["--json", "--server", "127.0.0.1:1", "--saved", "x", "a b"],
    ],
)
def test_trace_refuses_what_does_not_fit_together(node: Path, arguments: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        call("trace", "-w", node, *arguments)
    assert refused.value.code is Code.REQUEST_INVALID


def test_a_saved_model_answers_without_its_workspace(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = json.loads(call("save", "-w", node, "--with-base", "--json", tmp_path / "model").stdout)
    assert (saved["experts"], len(saved["identity"])) == (2, 64)
    monkeypatch.chdir(tmp_path)
    options = ("--device", "cpu", "--max-new-tokens", 4, "--json", "please reverse it : a b")
    alone, here = (json.loads(call("ask", *place, *options).stdout) for place in (("--saved", "model"), ("-w", node)))
    assert alone["answers"] == here["answers"]


def test_what_a_saved_model_works_out_once_is_kept(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.methods.features.background.TEXTS", 40)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    call("save", "-w", node, "--with-base", tmp_path / "model")
    model = load_model(tmp_path, tmp_path / "model", [], {"device": "cpu"}, pytest.fail)
    public = model.features.mixtures.public
    public.spread(next(iter(model.features.mixtures.reader.sources)), "token")
    assert list((tmp_path / "cache" / "greylag").glob("public-*.safetensors"))


def test_a_model_that_takes_a_while_says_so(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.base.progress.PATIENCE_S", 0)
    said = call("ask", "-w", node, "--device", "cpu", "--max-new-tokens", 1, "a")
    assert "Loading the model" in said.stderr


def test_an_exported_adapter_is_opened_by_plain_peft(node: Path, t5_base: Path, tmp_path: Path) -> None:
    said = call(
        "export", "-w", node, "--device", "cpu", "--max-new-tokens", 2, "--out", tmp_path / "lora", "--rank", 3,
        "--json", "please copy it",
    )  # fmt: skip
    document = json.loads(said.stdout)
    assert document["rank"] == 3
    assert 0 < document["kept"] < 1
    assert sum(document["shares"].values()) == pytest.approx(1)
    adapter = PeftModel.from_pretrained(load_base(str(t5_base), device="cpu").model, str(tmp_path / "lora"))
    assert len([name for name, _ in adapter.named_parameters() if "lora_A" in name]) == document["modules"]


@pytest.mark.parametrize("verb", [("export", "--out", "lora"), ("trace", "--json"), ("ask",), ("ask", "--requests")])
def test_an_empty_stdin_asks_nothing(node: Path, verb: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(Refused, match="There is nothing to ask") as refused:
        call(*verb, "-", "-w", tmp_path)  # before any model is looked for
    assert refused.value.code is Code.REQUEST_INVALID


@pytest.mark.parametrize("verb", [("save", "."), ("export", "--out", ".", "a b")])
def test_the_folder_one_stands_in_is_not_exchanged(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as refused:
        call(*verb, "-w", node)
    assert refused.value.code is Code.WORKSPACE_EXISTS
    assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.parent.glob(f".{tmp_path.name}*")) == []


def test_what_is_saved_or_exported_is_signed_by_one_key_of_the_workspace(node: Path, tmp_path: Path) -> None:
    (node / "model.key").unlink(missing_ok=True)  # of another test
    assert "Made the key" in call("save", "-w", node, tmp_path / "model").stderr
    assert "Made the key" not in call("export", "-w", node, "--out", tmp_path / "lora", "a b").stderr
    for folder, some in ((tmp_path / "model", "greylag.json"), (tmp_path / "lora", "adapter_config.json")):
        document = json.loads(call("verify", folder, "--key", node / "model.pub", "--json").stdout)
        assert some in document["files"]
        (folder / some).write_bytes((folder / some).read_bytes() + b" ")
        with pytest.raises(Refused) as refused:
            call("verify", folder, "--key", node / "model.pub")
        assert refused.value.code is Code.DIGEST_MISMATCH


def test_a_key_of_ones_own_signs(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ModelSigner.generate()
    own.save(tmp_path / "own.key")
    (tmp_path / "own.pub").write_bytes(own.public.pem)
    call("save", "-w", node, "--signing-key", tmp_path / "own.key", tmp_path / "model")
    assert "is as it was signed" in call("verify", tmp_path / "model", "--key", tmp_path / "own.pub").stdout
    with pytest.raises(Refused) as refused:
        call("save", "-w", node, "--signing-key", tmp_path / "none.key", tmp_path / "again")
    assert refused.value.code is Code.KEY_UNREADABLE
    assert not (tmp_path / "again").exists()
