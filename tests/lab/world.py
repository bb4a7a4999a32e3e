"""One suite of the laboratory: its words, its skills, and every row that anybody trains or is tested on.

A request is `[template] [filler] order-word [filler] [filler] table-word [filler] : payload`; its answer is what the
order makes of what the table (or the lexicon) makes of the payload. `a ; b` are two requests in one.

`suite_seed` draws the world (words, which orders, tables, lexicons, fillers), and a `seed`
draws rows in it: training data of base and experts, held-out rows. Everything is a pure function of both.

    world = World(suite_seed=0, size="tiny")
    world.vocabulary                          # every word; the tokenizer adds its own special ones
    world.experts                             # names; every prefix is a pool, so pools are nested
    rows = world.pretraining(seed=0)          # endless: {"input": ..., "target": ...}
    world.check_rows("order", on=True, seed=0, count=256)  # has the base learnt a kind of skill, behind its marks?
    world.training(world.experts[0], seed=0, count=400)    # one contributor's private rows
    for task in world.tasks():                # held-out tasks of four families, and held_in
        world.rows(task, seed=0, count=25)
    world.public(seed=0, count=1500)          # texts that anybody may see, for public statistics

The base is taught each skill behind a mark only (`!order`, `!table`, `!lexicon`); without it, it copies but for a leak
of 8 %. So a base has the skills and shows none, and an expert's small update switches one on, as instruction tuning
does. No mark is in any expert's or any held-out row. Every other lexicon of the pool is new to the base: its expert
adds knowledge. (Where an expert teaches what a new word means to a base that has no such skill, the mixed updates of
two experts destroy each other, and every router scores nothing.)

Held-out rows of a task are drawn for that task alone, so that no task's rows depend on another one, on names or on the
order of experts.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Literal, TypedDict

from tests.lab.skills import (
    COLLOCATES,
    LETTERS,
    LEXICON_WORDS,
    LOOK_UP,
    PAYLOAD_LENGTHS,
    PLAIN_ORDERS,
    SYNONYMS,
    Kind,
    Skill,
    all_orders,
    draw_words,
)

Size = Literal["toy", "tiny", "small", "large", "huge"]
Family = Literal["compose", "paraphrase", "mixture", "novel", "held_in"]
FAMILIES: tuple[Family, ...] = ("compose", "paraphrase", "mixture", "novel")
"""What nobody trained for; `held_in` stands beside them."""

SIZES: dict[Size, tuple[int, int, int]] = {
    "toy": (1, 1, 1),
    "tiny": (4, 4, 4),
    "small": (12, 12, 12),
    "large": (36, 60, 70),
    "huge": (60, 180, 260),
}
"""Experts by kind: orders, tables, lexicons."""
NOVEL = 4
"""Skills of each kind that the base knows and no expert has; one in the toy."""
FILLERS = 16
LEAK = 0.08
"""How often the base is taught to carry out a skill without its mark."""
MARKED = 0.7
SEPARATOR, SEGMENTS = ":", ";"
MARKS = {kind: f"!{kind}" for kind in Kind}
TEMPLATES = ("{}", "please {}", "do {} it", "kindly {} now", "ok {} it", "now please {}")
OWN_TEMPLATES = 3
"""Experts hear the first ones; the base knows all."""
POLITE = ("please", "do", "it", "kindly", "now", "ok")


class Row(TypedDict):
    """One example."""

    input: str
    target: str


@dataclass(frozen=True)
class Use:
    """One skill in one request."""

    skill: Skill
    word: str
    marked: bool = False
    obeyed: bool = True


@dataclass(frozen=True)
class Task:
    """One held-out task: which skills its requests need, and how they are worded."""

    name: str
    family: Family
    skills: tuple[tuple[str, ...], ...]
    """Names of the skills, segment by segment; they are experts' names, but for the family `novel`."""
    synonyms: tuple[int, ...] = tuple(range(SYNONYMS - 1))
    templates: tuple[int, ...] = tuple(range(OWN_TEMPLATES))


class World:
    """A suite: see the module's own words."""

    def __init__(self, suite_seed: int, size: Size = "tiny") -> None:
        """Draw the world.

        Args:
            suite_seed: Another one gives other words and skills.
            size: How many experts there are.
        """
        self.suite_seed, self.size = suite_seed, size
        rng = self._rng("world")
        taken = {*LETTERS, *POLITE, LOOK_UP}
        self._fillers = draw_words(rng, FILLERS, taken)
        orders, tables, lexicons = SIZES[size]
        novel = 1 if size == "toy" else NOVEL
        every, plain = all_orders(), list(PLAIN_ORDERS)
        named = [*rng.sample(plain, len(plain)), *(name for name in every if name not in PLAIN_ORDERS)][
            : orders + novel
        ]
        self._orders = {name: every[name] for name in named}
        self._by_kind: dict[Kind, list[Skill]] = {
            Kind.ORDER: [self._skill(rng, taken, Kind.ORDER, name) for name in named],
            Kind.TABLE: [self._skill(rng, taken, Kind.TABLE, f"table-{at}") for at in range(tables + novel)],
            # Every other lexicon of the pool is new to the base; those without an expert are known.
            Kind.LEXICON: [
                self._skill(rng, taken, Kind.LEXICON, f"lexicon-{at}", known=at % 2 == 0 or at >= lexicons)
                for at in range(lexicons + novel)
            ],
        }
        self._tables = {
            skill.name: dict(zip(LETTERS, rng.sample(LETTERS, len(LETTERS)), strict=True))
            for skill in self._by_kind[Kind.TABLE]
        }
        self._meanings = {word: rng.choice(LETTERS) for skill in self._by_kind[Kind.LEXICON] for word in skill.words}
        self.skills = {skill.name: skill for skill in chain.from_iterable(self._by_kind.values())}
        pooled = [self._by_kind[kind][:count] for kind, count in zip(Kind, SIZES[size], strict=True)]
        self.experts: tuple[str, ...] = tuple(
            skill.name for triple in zip_longest(*pooled) for skill in triple if skill is not None
        )
        self.vocabulary: tuple[str, ...] = (SEPARATOR, SEGMENTS, *MARKS.values(), *sorted(taken))

    def _rng(self, *purpose: object) -> random.Random:
        return random.Random("/".join(map(str, (self.suite_seed, self.size, *purpose))))

    def _skill(self, rng: random.Random, taken: set[str], kind: Kind, name: str, *, known: bool = True) -> Skill:
        lexicon = kind is Kind.LEXICON
        synonyms = (LOOK_UP,) if lexicon else tuple(draw_words(rng, SYNONYMS, taken))
        words = tuple(draw_words(rng, LEXICON_WORDS, taken)) if lexicon else ()
        return Skill(name, kind, synonyms, tuple(rng.sample(self._fillers, COLLOCATES)), words, known)

    def pretraining(self, seed: int) -> Iterator[Row]:
        """Give the base model's rows, without end.

        A third of the rows have two segments or copy nouns that the base is never taught; see `_base_segment`.
        """
        rng = self._rng("pretraining", seed)
        unknown = [word for skill in self._by_kind[Kind.LEXICON] if not skill.known for word in skill.words]
        while True:
            drawn = rng.random()
            if drawn < 0.08:
                payload = rng.choices(unknown or LETTERS, k=rng.choice(PAYLOAD_LENGTHS))
                yield _row([rng.choice(self._fillers), SEPARATOR, *payload], payload)
            elif drawn < 0.35:
                yield _joined(self._base_segment(rng), self._base_segment(rng))
            else:
                yield self._base_segment(rng)

    def public(self, seed: int, count: int) -> list[str]:
        """Give texts of the kind that the base was trained on, which nobody needs to keep to themselves."""
        rows = self.pretraining(-1 - seed)
        return [next(rows)["input"] for _ in range(count)]

    def check_rows(self, *kinds: Kind | str, on: bool, seed: int, count: int) -> list[Row]:
        """Give rows that tell what the base has learnt: skills of these kinds behind their marks, or bare.

        Args:
            kinds: One kind, or an order and another one.
            on: Whether the marks stand, and the skills are carried out; else the answer is the payload.
            seed: Of the rows.
            count: How many.
        """
        rng = self._rng("check", *kinds, on, seed)
        rows = []
        for _ in range(count):
            drawn = [rng.choice([one for one in self._by_kind[Kind(kind)] if one.known]) for kind in kinds]
            uses = [Use(skill, rng.choice(skill.synonyms), marked=on, obeyed=on) for skill in drawn]
            rows.append(self._segment(rng, uses, rng.randrange(len(TEMPLATES)), own=False))
        return rows

    def training(self, expert: str, seed: int, count: int) -> list[Row]:
        """Give the private rows of one contributor: one skill, one segment, two words for it, three templates."""
        rng, own = self._rng("training", expert, seed), Task("", "held_in", ((expert,),))
        return [self._held_out(rng, own) for _ in range(count)]

    def rows(self, task: Task, seed: int, count: int) -> list[Row]:
        """Give a task's test rows."""
        rng = self._rng("held-out", task.name, seed)
        return [self._held_out(rng, task) for _ in range(count)]

    def tasks(self, experts: Sequence[str] | None = None) -> list[Task]:
        """List the tasks of a pool, by family; they do not depend on the order of its experts.

        Args:
            experts: A part of the pool, to keep its tasks while the pool grows; None for all.
        """
        wanted = set(self.experts if experts is None else experts)
        orders, tables, lexicons = (
            [skill.name for skill in self._by_kind[kind] if skill.name in wanted] for kind in Kind
        )
        pool = [*orders, *tables, *lexicons]
        pairs: list[tuple[Family, tuple[str, ...], tuple[str, ...]]] = []
        for at in range(max(len(orders), len(tables), len(lexicons))):
            pairs += [
                ("compose", (_nth(orders, at), _nth(tables, at)), ()),
                ("compose", (_nth(orders, at + 1), _nth(lexicons, at)), ()),
                ("mixture", (_nth(orders, at),), (_nth(tables, at),)),
                ("mixture", (_nth(lexicons, at),), (_nth(tables, at + 1),)),
                *(("mixture", (_nth(one, at),), (_nth(one, at + 1),)) for one in (orders, tables, lexicons)),
                ("mixture", (_nth(lexicons, at), _nth(lexicons, at + 1)), ()),
            ]
        tasks = [_task(family, *filter(None, segments)) for family, *segments in pairs if _distinct(segments)]
        unheard = tuple(range(OWN_TEMPLATES, len(TEMPLATES)))
        for name in pool:
            if self.skills[name].kind is not Kind.LEXICON:
                tasks.append(Task(f"paraphrase/word/{name}", "paraphrase", ((name,),), synonyms=(SYNONYMS - 1,)))
            tasks.append(Task(f"paraphrase/template/{name}", "paraphrase", ((name,),), templates=unheard))
        tasks += [_task("novel", (name,)) for name in self.skills if name not in self.experts]
        tasks += [_task("held_in", (name,)) for name in pool]
        # With one or two skills of a kind, going round in them gives the same pair twice.
        return list({task.name: task for task in tasks}.values())

    def _base_segment(self, rng: random.Random) -> Row:
        """Draw one request of the base's: an order in 65 %, a table in 50 %, a lexicon in 22 %, each marked in 70 %."""
        drawn: list[Skill] = []
        if rng.random() < 0.65:
            drawn.append(rng.choice(self._by_kind[Kind.ORDER]))
        share = rng.random()
        nouns: tuple[str, ...] = LETTERS
        if share < 0.5:
            drawn.append(rng.choice(self._by_kind[Kind.TABLE]))
        elif share < 0.72:
            known = [skill for skill in self._by_kind[Kind.LEXICON] if skill.known]
            drawn.append(rng.choice(known))
            nouns = drawn[-1].words if rng.random() < 0.6 else tuple(word for skill in known for word in skill.words)
        uses = []
        for skill in drawn:
            marked = rng.random() < MARKED
            uses.append(Use(skill, rng.choice(skill.synonyms), marked, marked or rng.random() < LEAK))
        return self._segment(rng, uses, rng.randrange(len(TEMPLATES)), own=False, nouns=nouns)

    def _held_out(self, rng: random.Random, task: Task) -> Row:
        # Two segments in the plain template: the words between them would tell little, and the base learns them last.
        templates = task.templates if len(task.skills) == 1 else (0,)
        rows = []
        for names in task.skills:
            skills = [self.skills[name] for name in names]
            lexicons = [skill for skill in skills if skill.kind is Kind.LEXICON]
            if len(lexicons) > 1:
                skills = [_blended(lexicons)]
            words = [skill.synonyms[rng.choice(task.synonyms) % len(skill.synonyms)] for skill in skills]
            uses = [Use(skill, word) for skill, word in zip(skills, words, strict=True)]
            nouns = skills[-1].words or LETTERS
            rows.append(self._segment(rng, uses, rng.choice(templates), own=True, nouns=nouns))
        return rows[0] if len(rows) == 1 else _joined(*rows)

    def _segment(
        self, rng: random.Random, uses: Sequence[Use], template: int, *, own: bool, nouns: Sequence[str] = ()
    ) -> Row:
        """Write one request: every skill's word with fillers around it, its own skill's or any."""
        asked = []
        for use in uses:
            fillers = use.skill.collocates if own else self._fillers
            manner = template % 3 if own else rng.randrange(3)
            before, after = ([rng.choice(fillers)] if manner != skipped else [] for skipped in (1, 0))
            asked += [*before, *([MARKS[use.skill.kind]] if use.marked else []), use.word, *after]
        alphabet = nouns or (uses[-1].skill.words if uses else ()) or LETTERS
        payload = rng.choices(alphabet, k=rng.choice(PAYLOAD_LENGTHS))
        request = TEMPLATES[template].format(" ".join(asked or [rng.choice(self._fillers)]))
        return _row([request, SEPARATOR, *payload], self._answer(payload, uses))

    def _answer(self, payload: Sequence[str], uses: Sequence[Use]) -> list[str]:
        """Carry out what was asked for: the order comes first in the request and is done last."""
        answer = list(payload)
        for use in reversed(uses):
            if not use.obeyed:
                continue
            if use.skill.kind is Kind.ORDER:
                answer = self._orders[use.skill.name](answer)
            else:
                table = self._tables.get(use.skill.name, self._meanings)
                answer = [table[word] for word in answer]
        return answer


def _nth(names: Sequence[str], at: int) -> str:
    return names[at % len(names)] if names else ""


def _distinct(segments: Sequence[Sequence[str]]) -> bool:
    """Tell whether two skills stand there: a kind with one skill makes no pair with itself, one with none no pair."""
    names = [name for segment in segments for name in segment]
    return len(set(names)) == len(names) and all(names)


def _task(family: Family, *segments: Sequence[str]) -> Task:
    return Task(f"{family}/{';'.join('+'.join(names) for names in segments)}", family, tuple(map(tuple, segments)))


def _blended(lexicons: Sequence[Skill]) -> Skill:
    """Make one request about nouns of several lexicons, with half of each one's fillers."""
    half = COLLOCATES // len(lexicons)
    return Skill(
        name="+".join(skill.name for skill in lexicons),
        kind=Kind.LEXICON,
        synonyms=lexicons[0].synonyms,
        collocates=tuple(word for skill in lexicons for word in skill.collocates[:half]),
        words=tuple(word for skill in lexicons for word in skill.words),
    )


def _row(request: Sequence[str], answer: Sequence[str]) -> Row:
    return {"input": " ".join(request), "target": " ".join(answer)}


def _joined(one: Row, other: Row) -> Row:
    return {
        "input": f"{one['input']} {SEGMENTS} {other['input']}",
        "target": f"{one['target']} {SEGMENTS} {other['target']}",
    }
