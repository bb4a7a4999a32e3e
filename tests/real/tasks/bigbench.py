"""BIG-bench: contributors' tasks, and the suites of the paper that nobody trains on.

Its files carry a canary against finding their way into training text: they are read out of the package, and no row is
copied anywhere. What is held out is asked as BIG-bench asks it, prefixes and choices included.
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from protocol.errors import Code, Refused
from tests.real.packages import files_of
from tests.real.tasks.task import Family, Metric, Row, Task, balanced

PACKAGE = "bigbench"
BBH = (
    "causal_judgment", "date_understanding", "disambiguation_qa", "formal_fallacies_syllogisms_negation",
    "geometric_shapes", "hyperbaton", "logical_deduction", "movie_recommendation", "navigate", "object_counting",
    "penguins_in_a_table", "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection",
    "snarks", "sports_understanding", "temporal_sequences", "tracking_shuffled_objects", "word_sorting",
)  # fmt: skip
"""The paper's 22 of BIG-bench Hard but for boolean expressions, multistep arithmetic and web of lies: programs here."""
BBL = (
    "bbq_lite_json", "conceptual_combinations", "conlang_translation", "formal_fallacies_syllogisms_negation",
    "hindu_knowledge", "known_unknowns", "linguistics_puzzles", "logic_grid_puzzle", "logical_deduction",
    "novel_concepts", "operators", "play_dialog_same_or_different", "repeat_copy_logic", "strange_stories",
    "strategyqa", "vitaminc_fact_verification", "winowhy",
)  # fmt: skip
"""The paper's 17 of BIG-bench Lite."""
LEFT_OUT = (
    "dyck_languages", "auto_debugging", "code_line_description", "emoji_movie", "language_identification",
    "parsinlu_reading_comprehension", "symbol_interpretation",
)  # fmt: skip
"""What else Hard and Lite have, but for misconceptions in Russian, which ask nothing; the paper leaves them out."""
NOVEL = (
    "analytic_entailment", "anachronisms", "cause_and_effect", "color", "cs_algorithms", "empirical_judgments",
    "english_proverbs", "entailed_polarity", "epistemic_reasoning", "fantasy_reasoning", "figure_of_speech_detection",
    "general_knowledge", "human_organs_senses", "identify_odd_metaphor", "irony_identification",
    "logical_fallacy_detection", "misconceptions", "moral_permissibility", "odd_one_out", "phrase_relatedness",
    "physical_intuition", "physics", "presuppositions_as_nli", "riddle_sense", "sentence_ambiguity",
    "similarities_abstraction", "simple_ethical_questions", "social_iqa", "tense", "timedial", "understanding_fables",
    "undo_permutation",
)  # fmt: skip
"""Kinds of tasks that no contributor has."""
BITS = ("conlang_translation",)
"""ROUGE in the paper."""


def load(name: str) -> list[dict[str, Any]]:
    """Read a task of BIG-bench, subtask by subtask.

    Raises:
        Refused: `DATA_UNREADABLE` if the package is missing, `TASK_ROW` if the task has no examples.
    """
    (folder,) = files_of(PACKAGE).glob(f"*/*/benchmark_tasks/{name}")
    return list(read_files(sorted(folder.rglob("task.json"))))


def read_files(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Read task files, but for those that only hold others together.

    Raises:
        Refused: `TASK_ROW` if no file has examples, or an example has neither targets nor choices.
    """
    empty = True
    for path in paths:
        said = json.loads(path.read_text())
        for number, example in enumerate(said.get("examples", ())):
            if not (example.get("target") or example.get("target_scores")):
                raise Refused(
                    Code.TASK_ROW,
                    f"Example {number} of {path.parent.name} has neither targets nor choices.",
                    "Look at its task.json.",
                )
        if "examples" in said:
            empty = False
            yield said
    if empty:
        raise Refused(Code.TASK_ROW, "There are no examples in the task's files.", "It may be a program: leave it out.")


def answers(example: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell what is right, and what there is to choose, if anything is."""
    if scores := example.get("target_scores"):
        best = max(scores.values())
        texts = {choice: choice.strip() for choice in scores}
        right = (texts[choice] for choice, score in scores.items() if score == best)
        return tuple(dict.fromkeys(right)), tuple(dict.fromkeys(texts.values()))
    target = example["target"]
    return tuple(dict.fromkeys(each.strip() for each in ([target] if isinstance(target, str) else target))), ()


def suite(name: str) -> Iterator[Row]:
    """Ask everything of a task as BIG-bench asks it without examples; some rows have choices and no question."""
    rng = random.Random(name)
    asked = (ask(said, example, rng) for said in load(name) for example in said["examples"])
    return (row for row in asked if row.input)


def ask(said: dict[str, Any], example: dict[str, Any], rng: random.Random) -> Row:
    """Write one example with its task's prefixes."""
    right, choices = answers(example)
    text = str(said.get("task_prefix", "")) + said.get("example_input_prefix", "\nQ: ") + example["input"]
    if choices and said.get("append_choices_to_input", True) is True:
        prefix = said.get("choice_prefix", "\n  choice: ")
        text += prefix + prefix.join(rng.sample(sorted(choices), len(choices)))
    return Row((text + said.get("example_output_prefix", "\nA: ")).strip(), right, choices)


def rows(name: str, change: Callable[[Row], Row | None] = lambda row: row) -> Iterator[Row]:
    """Read a task's examples bare, as a contributor would have them."""
    for said in load(name):
        for example in said["examples"]:
            if changed := change(Row(example["input"].strip(), *answers(example))):
                yield changed


def _held_out(name: str, family: Family, also: Family | None = None) -> Task:
    metric: Metric = "bits" if name in BITS else "exact" if name in FREE else "choices"
    return Task(name.replace("_", "-"), family, "reasoning", (PACKAGE,), metric, lambda: suite(name), also=also)


FREE = (
    "auto_debugging", "linguistics_puzzles", "object_counting", "operators", "parsinlu_reading_comprehension",
    "repeat_copy_logic", "tense", "word_sorting",
)  # fmt: skip
"""Written, not chosen."""


def _found(pattern: str) -> Callable[[Row], Row | None]:
    """Keep what matches, and of that the group."""
    compiled = re.compile(pattern, re.DOTALL)
    return lambda row: replace(row, input=found[1]) if (found := compiled.match(row.input)) else None


def _bare(row: Row) -> Row:
    """Take the full stop from a word that is no sentence."""
    return replace(row, targets=tuple(each.rstrip(".").strip() for each in row.targets))


def _spoken(row: Row) -> Row:
    def say(text: str) -> str:
        return text.replace("_", " ")

    spoken = replace(row, targets=tuple(map(say, row.targets)), choices=tuple(map(say, row.choices)))
    return replace(spoken, input=row.input.removeprefix("Utterance: "))


def _goal(row: Row) -> Row | None:
    found = re.match(r"The most reasonable goal of '(.*)' is$", row.input, re.DOTALL)
    return replace(row, input=f"{found[1]}\nGoals: {'; '.join(sorted(row.choices))}") if found else None


def _relation(relation: str, least: int) -> Callable[[], list[Row]]:
    """Take one relation of Wikidata, where there is one right answer that is not rare."""
    keep = _found(rf"The {relation} of (.*) is$")
    return lambda: balanced((row for row in rows("qa_wikidata", keep) if len(row.targets) == 1), least)


def tasks() -> list[Task]:
    """List the tasks that contributors have, and those that nobody has."""
    return [
        *_of_sentences(),
        *_of_talk_and_facts(),
        *(_held_out(name, "bbh", "bbl" if name in BBL else None) for name in BBH),
        *(_held_out(name, "bbl") for name in BBL if name not in BBH),
        *(_held_out(name, "novel") for name in (*LEFT_OUT, *NOVEL)),
    ]


def _skill(name: str, field: str, metric: Metric, read: Callable[[], Iterable[Row]], *wordings: str) -> Task:
    heard = wordings[:-1] or wordings
    return Task(name, "skill", field, (PACKAGE,), metric, read, heard, wordings[len(heard) :])


def _of_sentences() -> list[Task]:
    def mapping(name: str, part: str, *wordings: str) -> Task:
        return _skill(name, "grammar", "exact", lambda: rows(f"linguistic_mappings/{part}_json"), *wordings)

    def instruction(name: str, number: str, metric: Metric, *wordings: str) -> Task:
        return _skill(name, "reading", metric, lambda: rows(f"natural_instructions/subtask{number}", _bare), *wordings)

    return [
        mapping("past-tense", "past_tense", "Past tense of: {}", "What is the past tense of {}?",
                "Yesterday they did this. Which form of the verb {} is right?"),
        mapping("plural", "plural", "Plural of: {}", "What is the plural of {}?", "One {}, but two"),
        mapping("negation", "sentence_negation", "Negate: {}", "Say the opposite with a negation: {}",
                "Make this sentence negative: {}"),
        mapping("question-formation", "question_formation", "Turn into a question: {}", "{}\nAsk whether this is so."),
        mapping("pronoun", "pronoun_replacement", "Use a pronoun: {}", "{}\nReplace the repeated name by a pronoun."),
        instruction("question-type", "046_miscellaenous_question_typing", "exact", "{}\nWhat type of question is it?",
                    "{}\nIs asked for an entity, a number, a place, a person or what else?"),
        instruction("shared-word", "039_qasc_find_overlapping_words", "exact",
                    "{}\nWhich word do both sentences share?", "{}\nName a word that occurs in both."),
        instruction("combine-facts", "038_qasc_combined_fact", "bits", "{}\nWhat follows from both facts?"),
        instruction("question-of-fact", "040_qasc_question_generation", "bits", "{}\nWrite a question about it."),
        instruction("answer-of-fact", "041_qasc_answer_generation", "exact", "{}"),
        instruction("changed-pronoun", "034_winogrande_question_modification_object", "bits",
                    "{}\nChange the sentence so that the other word is the answer."),
    ]  # fmt: skip


def _of_talk_and_facts() -> list[Task]:
    return [
        _skill("intent", "dialogue", "choices", lambda: rows("intent_recognition", _spoken), "{}\nIntent?",
               "What does the speaker want? {}"),
        _skill("social-support", "dialogue", "choices", lambda: balanced(rows("social_support"), 80),
               "Reply: {}\nIs it unsupportive, neutral, or supportive?"),
        _skill("implicature", "dialogue", "choices", lambda: rows("implicatures"),
               "{}\nDoes speaker 2 mean yes or no?"),
        _skill("same-speaker", "dialogue", "choices", lambda: balanced(rows("movie_dialog_same_or_different", _short)),
               "{}"),
        _skill("goal", "daily life", "choices", lambda: rows("goal_step_wikihow/goal_inference", _goal),
               "Step: {}\nWhich goal?"),
        _skill("metaphor", "meaning", "choices", lambda: rows("metaphor_boolean"),
               "{}\nDoes the second sentence say what the first one means? True or False?"),
        _skill("claim", "facts", "choices",
               lambda: balanced(rows("fact_checker/fever", _found(r"On .*? the following claim was made: (.*)\nQ: "))),
               "Claim: {}\ntrue or false?", "Someone says: {}\nIs it true or false?"),
        _skill("phonetic-sentence", "sound", "exact",
               lambda: rows("international_phonetic_alphabet_transliterate", _found(r"English: (.*)\nIPA:")),
               "In the phonetic alphabet: {}"),
        _skill("neighbour-element", "chemistry", "exact", lambda: rows("periodic_elements/subtask_1"), "{}"),
        _skill("unit", "measures", "choices", lambda: rows("unit_conversion/unit_identification"), "{}"),
        _skill("date", "formats", "exact", lambda: rows("unnatural_in_context_learning/dates"), "Rewrite the date: {}"),
        _skill("unscramble", "spelling", "exact",
               lambda: rows("word_unscrambling", _found(r"The word (\S+) is a scrambled version")), "Unscramble: {}"),
        *(
            _skill(name, "facts", "choices", _relation(relation, least), *wordings)
            for name, relation, least, *wordings in (
                ("native-language", "native language", 25, "The native language of {} is",
                 "What did {} speak at home?"),
                ("citizenship", "country of citizenship", 40, "The country of citizenship of {} is"),
                ("religion", "religion", 25, "The religion of {} is"),
            )
        ),
    ]  # fmt: skip


def _short(row: Row) -> Row | None:
    """Leave out long dialogues, which cost much and teach no more."""
    return row if len(row.input) <= 400 else None
