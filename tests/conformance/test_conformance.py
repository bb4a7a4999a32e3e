"""The suite against a real server over TLS, without a worker: every case that no verdict is waited for, by subject."""

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator.cli.main import app
from coordinator.conformance.answer import AnsweredError, UnmetError, WireAnswer, find_fault
from coordinator.conformance.case import Case, Need
from coordinator.conformance.cases import envelopes, numbers, statements, tensors
from coordinator.conformance.catalogue import UNCAUSED, all_cases, select
from coordinator.conformance.runner import Counters, needs_met, play, play_all
from coordinator.conformance.stage import Stage
from coordinator.conformance.wire import connected
from protocol.errors import Code
from tests.conformance.trial import Trial, found_without_model, running

CASES = all_cases()
SUBJECTS = list(dict.fromkeys(case.subject for case in CASES if Need.WORKER not in case.needs))


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    folder = tmp_path_factory.mktemp("trial") / "pool"
    found_without_model(folder)
    with running(folder, worker=False) as served:
        yield served


@pytest.fixture
def stage(trial: Trial, request: pytest.FixtureRequest) -> Iterator[Stage]:
    with connected(trial.address, trial.ca) as wire:
        tag = f"{zlib.crc32(request.node.nodeid.encode()):08x}"
        yield Stage(wire, trial.address, tls=True, tag=tag, patience_s=1)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_call_is_answered_as_it_must_be(subject: str, stage: Stage, trial: Trial) -> None:
    chosen = select(CASES, needs_met(stage, worker=False), [f"{subject}/*"])
    outcomes = list(play_all(chosen, stage, Counters(trial.counters)))
    assert [(each.case.name, each.fault) for each in outcomes if each.fault] == []
    assert len(outcomes) == len(chosen) > 0


def test_the_verb_tells_how_many_passed_and_what_each_was(trial: Trial, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    flags = [*trial.flags, "--no-worker", "--only", "envelope/Enrol/*", "--only", "log/*", "--report", str(report)]
    done = CliRunner().invoke(app, ["conformance", *flags, "--json"])
    document = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, document["failed"]) == (0, 0)
    assert document == {"schema": 1, "cases": document["cases"], "passed": document["cases"], "failed": 0}
    rows = json.loads(report.read_text())["cases"]
    assert len(rows) == document["cases"] > 50
    assert next(row for row in rows if row["name"] == "envelope/Enrol/words")["answer"].startswith("INVALID_ARGUMENT")


def test_a_case_that_is_not_met_fails_the_verb(trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [replace(case, expects=Code.TOO_LARGE) for case in CASES if case.name == "envelope/Enrol/words"]
    monkeypatch.setattr("coordinator.conformance.catalogue.all_cases", lambda: wrong)
    done = CliRunner().invoke(app, ["conformance", *trial.flags, "--no-worker", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {"schema": 1, "cases": 1, "passed": 0, "failed": 1}
    assert "FAILED envelope/Enrol/words: Expected RESOURCE_EXHAUSTED TOO_LARGE; got" in done.stderr


def test_the_list_needs_no_server() -> None:
    done = CliRunner().invoke(app, ["conformance", "--list", "--only", "envelope/*"])
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [case.name for case in CASES if case.subject == "envelope"]


def test_without_an_address_it_says_what_is_missing() -> None:
    done = CliRunner().invoke(app, ["conformance"])
    assert done.exit_code == 2
    assert "--address" in done.stderr


def test_a_pool_of_approved_keys_is_refused_before_anything_is_played(stage: Stage) -> None:
    policy = stage.pool.spec.policy.model_copy(update={"enrolment": "approved"})
    stage.pool = replace(stage.pool, spec=stage.pool.spec.model_copy(update={"policy": policy}))
    with pytest.raises(Exception, match="SETTINGS_INVALID"):
        needs_met(stage, worker=False)


def test_a_deployment_without_fleet_has_other_cases(tmp_path: Path) -> None:
    found_without_model(tmp_path / "pool")
    with running(tmp_path / "pool", worker=False, fleet=False) as served, connected(served.address, served.ca) as wire:
        stage = Stage(wire, served.address, tls=True, tag="0f", patience_s=1)
        there = needs_met(stage, worker=False)
        assert Need.NO_FLEET in there
        assert Need.FLEET not in there
        (off,) = select(CASES, there, ["binding/*"])
        assert play(off, stage, Counters(served.counters)).fault == ""


# What the suite covers.


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_every_code_has_a_case_or_a_reason_why_not(code: Code) -> None:
    expected = {case.expects for case in CASES}
    assert (code in expected) != (code in UNCAUSED), "give it a case, or say why a stranger cannot cause it"
    assert UNCAUSED.get(code, "Why.").endswith(".")


def test_what_every_call_is_tried_with_is_there() -> None:
    assert {fault.name for fault in envelopes.ENVELOPE_FAULTS} >= envelopes.EVERYWHERE
    assert {fault.name for fault in statements.FAULTS} >= statements.EVERYWHERE


def test_bundles_that_are_judged_side_by_side_have_names_of_their_own() -> None:
    labels = [tensors.label(name, fault.name) for name, faults in tensors.FAULTS.items() for fault in faults]
    labels += [tensors.label("numbers", name) for name in numbers.FAULTS]
    assert [label for label, count in Counter(labels).items() if count > 1] == []


def test_no_two_cases_share_a_name() -> None:
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []


def test_there_are_many_and_a_pattern_chooses_among_them() -> None:
    assert len(select(CASES, {*Need} - {Need.NO_FLEET})) > 1000
    assert {case.subject for case in select(CASES, set(), ["log/*"])} == {"log"}
    assert select(CASES, set(), ["nothing"]) == []
    assert all(Need.WORKER not in case.needs for case in select(CASES, {Need.FLEET, Need.STATISTICS}))


# How an answer is judged.

GOOD = WireAnswer("QUOTA", "Eight experts are in.", "Withdraw one.", "RESOURCE_EXHAUSTED")


@pytest.mark.parametrize(
    ("expected", "answer", "fault"),
    [
        (Code.QUOTA, GOOD, ""),
        (Code.QUOTA, replace(GOOD, status=""), ""),
        (None, None, ""),
        ("UNIMPLEMENTED", WireAnswer("", "Method not found!", "", "UNIMPLEMENTED"), ""),
        (Code.QUOTA, None, "It was taken; expected QUOTA."),
        ("NOT_FOUND", None, "It was taken; expected NOT_FOUND."),
        (None, GOOD, "Expected success; got RESOURCE_EXHAUSTED QUOTA: Eight experts are in.."),
        (Code.BUSY, GOOD, "Expected UNAVAILABLE BUSY; got RESOURCE_EXHAUSTED QUOTA: Eight experts are in.."),
        (Code.QUOTA, replace(GOOD, status="UNKNOWN"), "Expected RESOURCE_EXHAUSTED QUOTA; got UNKNOWN QUOTA: Eight"),
        (Code.QUOTA, replace(GOOD, hint=" "), "QUOTA comes without a hint."),
        (Code.QUOTA, replace(GOOD, message=""), "QUOTA comes without a sentence."),
        (Code.QUOTA, replace(GOOD, message="\x1b[2J."), "QUOTA comes with a sentence that echoes"),
        (Code.QUOTA, replace(GOOD, message="a\nb."), "QUOTA comes with a sentence that echoes"),
        (Code.QUOTA, replace(GOOD, hint="a\u202eb."), "QUOTA comes with a hint that echoes"),
        (Code.QUOTA, replace(GOOD, message="x" * 1001), "QUOTA comes with a sentence that echoes"),
        ("RESOURCE_EXHAUSTED", GOOD, "Expected RESOURCE_EXHAUSTED; got RESOURCE_EXHAUSTED QUOTA"),
    ],
)
def test_an_answer_is_held_against_what_is_owed(
    expected: Code | str | None, answer: WireAnswer | None, fault: str
) -> None:
    found = find_fault(expected, answer)
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


def raising(error: Exception) -> Case:
    def play(_: Stage) -> object:
        raise error

    return Case("x/y", play, Code.QUOTA)


def test_a_story_that_went_wrong_a_crash_and_a_dead_server_fail_a_case(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = Counters([])
    assert play(raising(AnsweredError(GOOD)), stage, nobody).fault == ""
    assert play(raising(UnmetError("Two receipts.")), stage, nobody).fault == "Two receipts."
    assert play(raising(KeyError("x")), stage, nobody).fault == "KeyError: 'x'"
    monkeypatch.setattr(stage, "envelope", b"another")
    fault = play(raising(AnsweredError(GOOD)), stage, nobody).fault
    assert fault == "The next honest call was not answered: The pool is another than before."


def test_a_refusal_that_is_not_counted_fails_a_case(
    stage: Stage, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.conformance.runner._COUNT_S", 0.2)
    counters = Counters(trial.counters)
    assert play(raising(AnsweredError(GOOD)), stage, counters).fault == "QUOTA was not counted."
