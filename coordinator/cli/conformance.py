"""`conformance`: plays every honest and hostile call against a running coordinator."""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.options import JsonOption
from protocol.programs import print_json, put, say

if TYPE_CHECKING:
    from coordinator.conformance.runner import Outcome

AddressOption = Annotated[str | None, typer.Option(help="The coordinator, host:port.")]
CaOption = Annotated[
    Path | None, typer.Option(help="CA certificate of the coordinator, PEM; default: the system's, none on loopback.")
]
OnlyOption = Annotated[list[str] | None, typer.Option(help="Pattern of names, such as 'envelope/*'; repeatable.")]
CountersOption = Annotated[
    list[str] | None, typer.Option(help="host:port of a process's counters, which must rise; repeatable.")
]
PatienceOption = Annotated[float, typer.Option(min=1, help="Seconds that a verdict may take.")]
TagOption = Annotated[
    str | None, typer.Option(help="Names, keys and weights follow from it; default: new ones for each run.")
]
ReportOption = Annotated[Path | None, typer.Option(help="File for what became of each case, JSON.")]


def conformance(
    *,
    address: AddressOption = None,
    ca: CaOption = None,
    only: OnlyOption = None,
    worker: Annotated[bool, typer.Option(help="Whether a worker runs, whose verdicts are waited for.")] = True,
    metrics: CountersOption = None,
    patience: PatienceOption = 300.0,
    tag: TagOption = None,
    report: ReportOption = None,
    names: Annotated[bool, typer.Option("--list", help="List the cases, and play none.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Play honest and hostile calls against a running coordinator, and hold each answer against what is owed.

    It enrols some twenty keys, has bundles released, and leaves a registry full of refusals: for a trial pool, of open
    enrolment and admission. It knows nothing of the coordinator but its address, and ends with status 1 when a case
    failed. With --list, neither a coordinator nor an address is needed.

    Example: greylag-coordinator conformance --address pool.example.org:7443 --ca cert.pem --only 'envelope/*'
    """
    from coordinator.conformance.case import Need
    from coordinator.conformance.catalogue import all_cases, select

    if names:
        for case in select(all_cases(), set(Need), only or ()):
            put(case.name)
        return
    if address is None:
        raise typer.BadParameter("it is needed", param_hint="--address")
    outcomes = _played(address, ca, only or (), metrics or (), worker=worker, patience_s=patience, tag=tag)
    failed = [each for each in outcomes if each.fault]
    for each in failed:
        say(f"FAILED {each.case.name}: {each.fault}")
    if report is not None:
        report.write_text(json.dumps(_report(outcomes), indent=1) + "\n")
    if as_json:
        print_json({"cases": len(outcomes), "passed": len(outcomes) - len(failed), "failed": len(failed)})
    else:
        put(f"{len(outcomes) - len(failed)} of {len(outcomes)} cases passed.")
    if failed:
        raise typer.Exit(1)


def _played(
    address: str, ca: Path | None, only: Sequence[str], metrics: Sequence[str], *, worker: bool, patience_s: float,
    tag: str | None,
) -> "list[Outcome]":  # fmt: skip
    from coordinator.conformance.catalogue import all_cases, select
    from coordinator.conformance.runner import Counters, needs_met, play_all
    from coordinator.conformance.stage import Stage
    from coordinator.conformance.wire import connected
    from protocol.wire.grpc_client import is_loopback

    tag = tag or secrets.token_hex(4)
    counters = Counters(metrics)
    with connected(address, ca) as wire:
        stage = Stage(wire, address, ca is not None or not is_loopback(address), tag, patience_s)
        everything = all_cases()
        there = needs_met(stage, worker=worker)
        chosen = select(everything, there, only)
        say(f"Pool {stage.pool.spec.name} at {address}: {len(chosen)} of {len(everything)} cases; --tag {tag}.")
        outcomes, subject = [], ""
        for each in play_all(chosen, stage, counters):
            if each.case.subject != subject:
                subject = each.case.subject
                say(f"  {subject} ...")
            outcomes.append(each)
            if each.fault:
                say(f"  FAILED {each.case.name}")
    return outcomes


def _report(outcomes: "Sequence[Outcome]") -> dict[str, object]:
    rows = [
        {
            "name": each.case.name,
            "expected": getattr(each.case.expects, "name", each.case.expects),
            "answer": each.answer,
            "fault": each.fault,
            "seconds": round(each.seconds, 3),
        }
        for each in outcomes
    ]
    return {"schema": 1, "cases": rows}
