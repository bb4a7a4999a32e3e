"""Train, let the file grow, train again, be evaluated: no row that was trained on is ever judged by."""

import json
import random
from pathlib import Path

import pytest

from client.daemon import handlers
from client.daemon.handlers import Work
from client.daemon.policy import DaemonPolicy
from client.daemon.state import DaemonFolder
from client.data.examples import Examples, Pair, _place
from client.training import phase
from protocol.errors import Code, Refused
from tests.client.conftest import SPLIT_KEY, Cli, Site, Trained, make_site
from tests.client.daemon.test_handlers import calibrating, mirror, order

pytestmark = pytest.mark.parametrize("trained", ["t5"], indirect=True)  # `site` is over a T5 in any case
SHORT = ("--device", "cpu", "--expert-steps", 2, "--gate-steps", 1)


def add_rows(data: Path, count: int) -> None:
    """Put new rows anywhere among the old ones, and the old ones anywhere."""
    draw = random.Random(count)
    rows = [*data.read_text().splitlines()]
    for _ in range(count):
        letters = " ".join(draw.choice("abcdef") for _ in range(4))
        rows.append(json.dumps({"input": f"reverse {letters}", "target": letters[::-1]}))
    draw.shuffle(rows)
    data.write_text("\n".join(rows) + "\n")


def judging(site: Site, trained: Trained, monkeypatch: pytest.MonkeyPatch, judged: list[Pair]) -> Work:
    """Make a node that notes by which rows it judges an empty list of experts."""

    def score(_: object, pairs: list[Pair], *__: object) -> float:
        judged.extend(pairs)
        return 1.0

    monkeypatch.setattr(handlers, "_loss", score)
    monkeypatch.setattr(handlers, "pull_exactly", lambda *_, **__: mirror(trained, empty=True))
    monkeypatch.setattr(handlers, "pull", lambda *_, **__: mirror(trained, empty=True))
    place = DaemonFolder(site.workspace)
    (place.releases / "bundles").mkdir(parents=True)
    return Work(place, device="cpu")


@pytest.mark.parametrize("share", [(), ("--held-out", 0.05)])
def test_evaluation_never_sees_a_row_that_was_trained_on(
    site: Site, trained: Trained, cli: Cli, monkeypatch: pytest.MonkeyPatch, share: tuple[object, ...]
) -> None:
    seen: set[tuple[int, ...]] = set()
    run = phase.run

    def watch(work: phase.Phase, model: object, tokenizer: object, examples: Examples, *rest: object) -> None:
        seen.update(map(tuple, examples.train["input_ids"]))
        run(work, model, tokenizer, examples, *rest)  # type: ignore[arg-type] # as it came

    judged: list[Pair] = []
    monkeypatch.setattr(phase, "run", watch)
    node = judging(site, trained, monkeypatch, judged)
    for _ in range(2):
        assert cli("train", "--data", site.data, "-w", site.workspace.root, *SHORT, *share)[0] == 0
        add_rows(site.data, 12)
        judged.clear()
        node.answer(order(site, "evaluate"), DaemonPolicy(data=site.data))
        assert node.model is not None
        tokens = {tuple(node.model.base.tokenizer(pair.prompt)["input_ids"]) for pair in judged}
        assert len(tokens) >= 2
        assert seen.isdisjoint(tokens)


def test_where_the_one_row_that_was_held_out_is_gone_nobody_is_judged(
    site: Site, trained: Trained, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Pair] = []
    node, policy = judging(site, trained, monkeypatch, judged), DaemonPolicy(data=site.data)
    assert cli("train", "--data", site.data, "-w", site.workspace.root, *SHORT, "--held-out", 1e-6)[0] == 0
    node.answer(order(site, "evaluate"), policy)
    (held_out,) = {pair.prompt for pair in judged}
    judged.clear()
    left = [row for row in site.data.read_text().splitlines() if json.loads(row)["input"] != held_out]
    site.data.write_text("\n".join(left) + "\n")
    with pytest.raises(Refused, match="may have been trained on") as refused:
        node.answer(order(site, "evaluate"), policy)
    assert refused.value.code is Code.DATA_EMPTY
    assert not judged


def by_place(count: int) -> list[str]:
    """Make rows in the order of their places, all above the share that the pool holds out."""
    rows = (Pair(f"reverse a {number}", f"{number} a") for number in range(1000))
    high = sorted((place, pair) for pair in rows if (place := _place(SPLIT_KEY, pair)) > 0.5)
    return [json.dumps({"input": pair.prompt, "target": pair.target}) for _, pair in high[:: len(high) // count]]


def test_a_row_that_calibrated_is_never_judged_by_and_rows_that_are_new_are(
    trained: Trained, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = trained.site
    site, judged = make_site(tmp_path, of.base, of.pool, of.operator), list[Pair]()
    node, policy = judging(site, trained, monkeypatch, judged), DaemonPolicy(data=site.data)
    a, b, c, *others = by_place(5)
    train = ("train", "--data", site.data, "-w", site.workspace.root, *SHORT)
    site.data.write_text(f"{b}\n{c}\n")
    assert cli(*train)[0] == 0
    node.answer(order(site, "evaluate"), policy)
    assert {pair.prompt for pair in judged} == {json.loads(b)["input"]}
    with monkeypatch.context() as patch:
        patch.setattr(handlers, "pull_exactly", lambda *_, **__: mirror(trained, empty=False))
        site.data.write_text(f"{a}\n{b}\n{c}\n")
        node.answer(calibrating(site), policy)
    judged.clear()
    site.data.write_text(f"{b}\n{c}\n")
    with pytest.raises(Refused, match="may have been trained on") as refused:
        node.answer(order(site, "evaluate"), policy)
    assert (refused.value.code, judged) == (Code.DATA_EMPTY, [])
    site.data.write_text("\n".join(others) + "\n")  # the file is another's from now on
    assert cli(*train)[0] == 0
    node.answer(order(site, "evaluate"), policy)
    assert {pair.prompt for pair in judged} == {json.loads(others[0])["input"]}


def test_what_an_older_version_saw_is_found_out_by_training_again(
    site: Site, trained: Trained, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Pair] = []
    node, policy = judging(site, trained, monkeypatch, judged), DaemonPolicy(data=site.data)
    train = ("train", "--data", site.data, "-w", site.workspace.root, *SHORT, "--held-out", 1e-6)
    status, made, _ = cli(*train)
    assert status == 0
    (run,) = site.workspace.runs.iterdir()
    record = json.loads((run / "run.json").read_bytes())
    record.pop("boundary", None)
    (run / "run.json").write_text(json.dumps(record))  # as it was when nothing noted what it saw
    (run / "seen.bin").unlink(missing_ok=True)
    with pytest.raises(Refused, match="may have been trained on"):
        node.answer(order(site, "evaluate"), policy)
    assert cli(*train)[:2] == (0, made)
    node.answer(order(site, "evaluate"), policy)
    assert len({pair.prompt for pair in judged}) == 1
