"""What is asked: rows that nobody trained on, short, with known fractions; drawn from made-up tasks."""

import pytest

from tests.real import tasks
from tests.real.bench import questions
from tests.real.bench.contributors import CELLS, Contributor, contributors, further
from tests.real.tasks.task import Family, Row, Task

WORDS = [f"word{at}" for at in range(400)]
KNOWN = [Contributor(name.replace("/", "."), name) for name in ("ada", "bob", "cay", "dan", "de/manual", "fr/handbook")]
HALVES = {
    "ada/paraphrase": "tuning", "bob/paraphrase": "confirming", "eve/paraphrase": "tuning",
    "de/handbook": "tuning", "es/manual": "confirming", "en/manual": "confirming", "riddle": "tuning", "vast": "tuning",
    "puzzle": "tuning", "query": "confirming",
}  # fmt: skip


def _task(name: str, family: Family = "skill", *, long: int = 0) -> Task:
    choices = ("yes", "no", "perhaps", "never", "always", "once") if name in ("bob", "riddle") else ()
    rows = [
        Row(
            f"{word} of {name.split('/', maxsplit=1)[0]}{' very' * long}",
            ("yes",) if choices else (word.upper(),),
            choices,
        )
        for word in WORDS
    ]
    if family == "cell":
        rows = [Row("", (" ".join(f"{word}{at}" for at in range(12)),), (), (word,)) for word in WORDS]
    return Task(
        name, family, "field", (), "choices" if choices else "bits" if family == "cell" else "exact", lambda: rows
    )


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [_task(name) for name in ("ada", "bob", "cay", "dan", "eve")]
    made += [_task(name, "paraphrase") for name in HALVES if name.endswith("paraphrase")]
    made += [
        _task(name, "cell")
        for name in ("de/manual", "fr/handbook", "de/handbook", "es/manual", "en/manual", "da/manual")
    ]
    made += [_task(name, "novel") for name in ("riddle", "puzzle", "query")]
    made += [_task("vast", "bbh", long=200)]
    for module in (tasks, questions):
        monkeypatch.setattr(module, "every", lambda: {task.name: task for task in made})
        monkeypatch.setattr(module, "split", lambda: HALVES)


def _asked() -> dict[str, questions.Question]:
    return {question.name: question for question in questions.ask(KNOWN, 0, questions.Extent(12))}


def test_what_a_pool_cannot_know_of_is_not_asked() -> None:
    asked = _asked()
    assert "eve/paraphrase" not in asked  # nobody contributes eve
    assert "es/manual" not in asked  # no Spanish
    assert asked["de/handbook"].family == "cell"  # German and handbooks are known
    assert "en/manual" in asked  # the base's own language needs nobody
    assert "vast" not in asked  # its rows are too long


def test_a_small_suite_asks_fewer_rows_and_the_first_tasks_of_each_part_of_bigbench() -> None:
    small = {each.name: each for each in questions.ask(KNOWN, 0, questions.Extent(7, of_a_suite=1))}
    assert _asked().keys() - small.keys() == {"puzzle"}
    assert {len(each.rows) for each in small.values()} == {7}


def test_nothing_that_is_asked_was_trained_on() -> None:
    trained = {row.input for each in KNOWN for row in questions.training(each, 0, 100)}
    for question in _asked().values():
        assert not trained & {row.input for row in question.rows}, question.name


def test_contributors_of_one_task_have_rows_of_their_own() -> None:
    one, other = (questions.training(Contributor("x", "ada", turn=turn), 0, 100) for turn in (0, 1))
    assert not {row.input for row in one} & {row.input for row in other}


def test_a_spoilt_contributor_has_the_same_targets_in_other_places() -> None:
    plain = questions.training(Contributor("plain", "cay", turn=9), 0, 100)
    spoilt = questions.training(Contributor("spoilt", "cay", turn=9, spoilt=True), 0, 100)
    assert [row.input for row in plain] == [row.input for row in spoilt]
    assert sorted(row.targets for row in plain) == sorted(row.targets for row in spoilt)
    assert sum(one.targets != other.targets for one, other in zip(plain, spoilt, strict=True)) > 80


def test_a_mixture_consists_of_what_it_says() -> None:
    mixtures = [question for question in _asked().values() if question.family == "mixture"]
    assert mixtures
    for question in mixtures:
        first, second = question.own
        parts = int(question.name.split()[0])
        assert sum(question.own.values()) == pytest.approx(1)
        for row in question.rows:
            lines = row.input.removesuffix(questions.ANSWER).split("\n")
            assert [line.split()[2] for line in lines] == [first] * parts + [second] * (questions.REQUESTS - parts)
            assert len(row.targets[0].split("; ")) == questions.REQUESTS
        # Requests of both are as long, but for a digit or two.
        assert question.own[first] == pytest.approx(parts / questions.REQUESTS, abs=0.02)


def test_a_chat_ends_with_the_other_experts_request() -> None:
    chats = [question for question in _asked().values() if question.family == "chat"]
    assert chats
    for question in chats:
        (second,) = question.own
        first = question.name.split(",")[0]
        for row in question.rows:
            assert row.input.count(questions.ANSWER) == questions.SHOTS + 1
            assert row.input.split("\n")[-2].split()[2] == second
            assert row.input.split()[2] == first


def test_choices_are_few_and_hold_a_right_one() -> None:
    rows = _asked()["riddle"].rows
    for row in rows:
        assert len(row.choices) == questions.MOST_CHOICES
        assert set(row.targets) <= set(row.choices)
    assert len({row.choices for row in rows}) > 1


def test_a_piece_of_text_goes_on_where_its_input_ends() -> None:
    for row in _asked()["de/handbook"].rows:
        words = (row.input + row.targets[0]).split(" ")
        assert words == [f"{words[0][:-1]}{at}" for at in range(len(words))]
        assert len(row.input) < len(row.targets[0])


def test_the_real_pools_are_nested_and_cover_what_is_held_out() -> None:
    full = contributors("full")
    assert contributors("small") == full[:8]
    assert len({each.name for each in (*full, *further(full))}) == 45
    tasks_of = {each.task for each in full}
    assert all(set(steps) <= tasks_of for steps in questions.STEPS.values())
    assert tasks_of >= CELLS
