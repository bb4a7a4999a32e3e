"""Plays cases one after the other, holds each answer against what is owed, and sees that the server lives on."""

import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from coordinator.conformance.answer import AnsweredError, UnmetError, WireAnswer, find_fault
from coordinator.conformance.case import Case, Need
from coordinator.conformance.cases.bindings import binding, present
from coordinator.conformance.stage import Stage
from protocol.errors import Code, GreylagError, Refused
from protocol.printable import printable
from protocol.v1 import catalog_pb2

_AT_ONCE = 4
"""Bundles that wait for a verdict at the same time; a pool lets a contributor hold more."""
_COUNTED = re.compile(r'^greylag_refusals_total\{code="([A-Z_]+)"\} ([0-9.e+]+)$', re.MULTILINE)
_COUNT_S = 3.0
"""How long after a verdict its counter may rise."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    case: Case
    fault: str
    """Why it failed; empty if it did not."""
    answer: str
    """What came, as text."""
    seconds: float


class Counters:
    """Reads how often processes have refused with each code.

    Args:
        addresses: `host:port` of each that answers GET /metrics.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._urls = [f"http://{address}/metrics" for address in addresses]
        self.read(Code.BAD_WIRE)

    def read(self, code: Code) -> float:
        """How often there was a refusal with a code (`SETTINGS_INVALID` if nobody tells)."""
        total = 0.0
        for url in self._urls:
            try:
                with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - of http:// alone
                    text = reply.read().decode()
            except (OSError, ValueError) as error:
                what = f"{url} does not tell counters: {error}."
                raise Refused(Code.SETTINGS_INVALID, what, "Start serve and worker with --metrics.") from error
            total += sum(float(count) for name, count in _COUNTED.findall(text) if name == code.name)
        return total

    def rose(self, code: Code, before: float) -> bool:
        """Tell whether there is one more refusal with a code than before, or will be in a moment."""
        end = time.monotonic() + _COUNT_S
        while self._urls and self.read(code) <= before:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True


def needs_met(stage: Stage, *, worker: bool) -> set[Need]:
    """Find out what a deployment has; whether somebody judges, the caller knows.

    Raises:
        Refused: `SETTINGS_INVALID` for a pool that cannot be played with by a stranger.
    """
    policy = stage.pool.spec.policy
    hint = "Found a trial pool of open enrolment and admission, such as: make conformance"
    if policy.enrolment != "open":
        raise Refused(Code.SETTINGS_INVALID, "The pool's operator approves each key.", hint)
    if worker and policy.admission != "open":
        raise Refused(Code.SETTINGS_INVALID, "The pool's operator lets each bundle in.", hint + ", or add --no-worker")
    found = {Need.STATISTICS} if policy.statistics else set()
    try:
        present(stage, binding(stage, "nobody"))
    except AnsweredError as error:
        found.add(Need.NO_FLEET if error.answer.code == Code.FLEET_OFF.name else Need.FLEET)
    return found | ({Need.WORKER} if worker else set())


def play_all(cases: Sequence[Case], stage: Stage, counters: Counters) -> Iterator[Outcome]:
    """Play cases, those that wait for verdicts several at a time, and yield what became of each.

    Args:
        cases: In order.
        stage: Where.
        counters: Of the server's and the worker's refusals.

    Raises:
        Unavailable: `BUSY` if not even an honest bundle is judged in time.
    """
    judged = [case for case in cases if Need.WORKER in case.needs]
    for case in cases:
        if case not in judged:
            yield play(case, stage, counters)
    if judged:
        stage.let_in()
    last = [case for case in judged if case.subject == "succession"]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(lambda case: play(case, stage, counters), (case for case in judged if case not in last))
    for case in last:
        yield play(case, stage, counters)


def play(case: Case, stage: Stage, counters: Counters) -> Outcome:
    """Play one case."""
    before = counters.read(case.expects) if isinstance(case.expects, Code) else 0.0
    began, answer = time.monotonic(), None
    fault = _fault_of(lambda: case.play(stage))
    if isinstance(fault, WireAnswer):
        answer, fault = fault, find_fault(case.expects, fault)
    elif not fault:
        fault = find_fault(case.expects, None)
    seconds = time.monotonic() - began
    if not fault and isinstance(case.expects, Code) and not counters.rose(case.expects, before):
        fault = f"{case.expects.name} was not counted."
    if not fault and (lives_on := _fault_of(lambda: _ask_honestly(stage))):
        fault = f"The next honest call was not answered: {lives_on}"
    return Outcome(case, fault, str(answer or "taken"), seconds)


def _fault_of(call: Callable[[], object]) -> WireAnswer | str:
    """Make a call, and return the refusal, or what broke; nothing if all went well."""
    try:
        call()
    except AnsweredError as error:
        return error.answer
    except UnmetError as error:
        return str(error)
    except GreylagError as error:
        return printable(str(error))
    except Exception as error:  # noqa: BLE001 - a case that breaks has failed, and the others go on
        return printable(f"{type(error).__name__}: {error}")
    return ""


def _ask_honestly(stage: Stage) -> None:
    if stage.wire.ask("Catalog/GetPool", catalog_pb2.GetPoolRequest()).envelope != stage.envelope:
        raise UnmetError("The pool is another than before.")
