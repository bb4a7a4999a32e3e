import itertools
from collections import Counter

import pytest

from tests.lab.skills import LETTERS, PAYLOAD_LENGTHS, PLAIN_ORDERS, Kind, all_orders
from tests.lab.world import FAMILIES, MARKS, SIZES, Row, Size, Task, World


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def _every_row(world: World, count: int = 4) -> list[Row]:
    rows = [row for task in world.tasks() for row in world.rows(task, 0, count)]
    rows += [row for expert in world.experts for row in world.training(expert, 0, count)]
    return rows


def test_the_same_seeds_give_the_same_rows_and_others_give_others(world: World) -> None:
    def drawn(suite_seed: int, seed: int) -> list[list[Row]]:
        one = World(suite_seed)
        return [
            list(itertools.islice(one.pretraining(seed), 20)),
            one.training(one.experts[0], seed, 20),
            one.rows(one.tasks()[0], seed, 20),
        ]

    assert drawn(3, 1) == drawn(3, 1)
    for other in (drawn(3, 2), drawn(4, 1)):
        assert all(one != two for one, two in zip(drawn(3, 1), other, strict=True))
    assert set(World(3).vocabulary) != set(World(4).vocabulary)
    assert world.public(0, 5) == world.public(0, 5)


def test_every_word_is_in_the_vocabulary(world: World) -> None:
    rows = [*_every_row(world), *itertools.islice(world.pretraining(0), 500)]
    assert {word for row in rows for word in f"{row['input']} {row['target']}".split()} <= set(world.vocabulary)
    assert len(world.vocabulary) == len(set(world.vocabulary))


def test_marks_stand_in_the_base_rows_alone(world: World) -> None:
    marks = set(MARKS.values())
    assert not any(marks & set(row["input"].split()) for row in _every_row(world))
    assert any(marks & set(row["input"].split()) for row in itertools.islice(world.pretraining(0), 50))


def test_the_tiny_suite_has_64_held_out_tasks(world: World) -> None:
    counts = Counter(task.family for task in world.tasks())
    assert counts == {"compose": 8, "paraphrase": 20, "mixture": 24, "novel": 12, "held_in": 12}
    assert len({task.name for task in world.tasks()}) == sum(counts.values())
    for task in world.tasks():
        names = [name for segment in task.skills for name in segment]
        assert (task.family == "novel") != set(names).issubset(world.experts)
        assert len(names) == (2 if task.family in {"compose", "mixture"} else 1)


def test_tasks_and_their_rows_do_not_depend_on_the_order_of_experts(world: World) -> None:
    core = world.experts[:6]
    assert world.tasks(core) == world.tasks(core[::-1])
    assert {task.family for task in world.tasks(world.experts[:1])} == {"paraphrase", "novel", "held_in"}
    held = {task.name for task in world.tasks(core) if task.family != "novel"}
    assert held != {task.name for task in world.tasks() if task.family != "novel"}


def test_a_composed_request_is_answered_by_the_table_and_then_the_order() -> None:
    world = World(0)
    world._orders = dict.fromkeys(world._orders, PLAIN_ORDERS["reverse"])
    world._tables = {name: dict(zip(LETTERS, LETTERS[1:] + LETTERS[:1], strict=True)) for name in world._tables}
    order, table = world.experts[:2]
    for row in world.rows(Task("it", "compose", ((order, table),)), 0, 10):
        request, payload = row["input"].split(" : ")
        assert row["target"].split() == [(LETTERS * 2)[LETTERS.index(letter) + 1] for letter in payload.split()[::-1]]
        assert {*world.skills[order].synonyms[:2]} & {*request.split()}
        assert {*world.skills[table].synonyms[:2]} & {*request.split()}


def test_unheard_words_and_templates_are_heard_in_paraphrases_alone(world: World) -> None:
    unheard = {skill.synonyms[2] for skill in world.skills.values() if skill.kind is not Kind.LEXICON}
    unheard |= {"kindly", "ok", "now"}
    for task in world.tasks():
        asked = [row["input"].partition(" : ")[0].split() for row in world.rows(task, 0, 10)]
        assert all(bool(unheard & set(words)) == (task.family == "paraphrase") for words in asked)


def test_a_mixed_payload_has_words_of_both_lexicons(world: World) -> None:
    mixed = next(task for task in world.tasks() if task.family == "mixture" and len(task.skills) == 1)
    one, other = (set(world.skills[name].words) for name in mixed.skills[0])
    payloads = [set(row["input"].partition(" : ")[2].split()) for row in world.rows(mixed, 0, 20)]
    assert all(payload <= one | other for payload in payloads)
    assert any(payload & one and payload & other for payload in payloads)


def test_checks_tell_marked_requests_from_bare_ones(world: World) -> None:
    for row in world.check_rows("order", "table", on=True, seed=0, count=10):
        assert {"!order", "!table"} <= set(row["input"].split())
    for row in world.check_rows("lexicon", on=False, seed=0, count=10):
        assert "!lexicon" not in row["input"]
        assert row["input"].endswith(f": {row['target']}")


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_their_experts_and_every_prefix_is_mixed(size: Size) -> None:
    world = World(1, size)
    assert len(world.experts) == len(set(world.experts)) == sum(SIZES[size])
    assert {world.skills[name].kind for name in world.experts[:3]} == set(Kind)
    assert {task.family for task in world.tasks()} == {*FAMILIES, "held_in"}
    assert {"toy": 3, "tiny": 12, "small": 36, "large": 166, "huge": 500}[size] == len(world.experts)


def test_half_of_the_lexicons_with_experts_are_new_to_the_base(world: World) -> None:
    lexicons = [skill for skill in world.skills.values() if skill.kind is Kind.LEXICON]
    new = {word for skill in lexicons if not skill.known for word in skill.words}
    assert [skill.known for skill in lexicons] == [True, False, True, False, True, True, True, True]
    for row in itertools.islice(world.pretraining(0), 500):
        # Where such a noun stands, the base is taught to copy it.
        asked = row["input"].split()
        assert not new & set(asked) or row["target"].split() == asked[2:]


def test_no_two_orders_do_the_same() -> None:
    done = [tuple(tuple(order(LETTERS[:length])) for length in PAYLOAD_LENGTHS) for order in all_orders().values()]
    assert len(set(done)) == len(done) > 100
    assert all(each and set(each) <= set(LETTERS) for made in done for each in made)
