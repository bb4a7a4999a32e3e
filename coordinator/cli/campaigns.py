"""The verbs of the federation: `campaign`, and what is decided about candidates."""

import json
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from coordinator.cli.options import (
    ActOption,
    DigestArgument,
    JsonOption,
    NumberArgument,
    ReasonOption,
    WorkspaceOption,
)
from coordinator.cli.output import fields, now, opened_workspace, show_rows, table
from protocol.programs import print_json, say

if TYPE_CHECKING:
    from coordinator.fleet.records.fleet import Fleet
    from coordinator.registry.tables import Campaign, CampaignAnswer, Candidate
    from protocol.documents import Pool

campaign = typer.Typer()
candidates = typer.Typer(help="Show and decide what may become the newest release.", no_args_is_help=True)


Kind = Literal["info", "train", "evaluate", "calibrate"]
"""What can be asked; `protocol.fleet.campaign`'s, whose import --help does without."""
_calibrate = partial(typer.Option, rich_help_panel="Of calibrate")


@campaign.command("start")
def campaign_start(
    kind: Annotated[Kind, typer.Argument(help="What is asked.")],
    *,
    open_for: Annotated[
        float, typer.Option(min=0, help="Minutes for which nodes that are away or come late are asked, too.")
    ] = 10.0,
    ends_after: Annotated[float, typer.Option(min=0, help="Minutes after which it ends, whoever is silent.")] = 1440.0,
    rounds: Annotated[int, _calibrate(help="How many rounds.", min=1, max=1000)] = 3,
    round_minutes: Annotated[float, _calibrate(help="Longest round; who answers later is late.", min=0.01)] = 10.0,
    strategy: Annotated[
        Literal["fedavg", "fedmedian", "krum"], _calibrate(help="How answers are put together.")
    ] = "fedavg",
    steps: Annotated[int, _calibrate(help="Steps that a node takes in a round.", min=1, max=100_000)] = 20,
    learning_rate: Annotated[float, _calibrate(help="Of each step.", min=1e-6, max=10)] = 0.05,
    budget: Annotated[
        float | None, _calibrate(help="Epsilon that all rounds ever may spend; turns clipping and noise on.", min=1e-6)
    ] = None,
    delta: Annotated[float, _calibrate(help="Of the budget.", min=1e-12, max=0.5)] = 1e-5,
    clip: Annotated[float, _calibrate(help="Longest change that a node may answer with (L2).", min=1e-6)] = 1.0,
    noise: Annotated[float, _calibrate(help="Deviation of the noise on the sum, in longest changes.", min=1e-6)] = 1.0,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Ask every contributor's daemon for info, to train, to evaluate the open candidate, or to calibrate routing.

    What is calibrated is the open candidate or, without one, the newest release. `fleet` does the asking;
    `campaign show` tells how far it is.

    Example: greylag-coordinator campaign start train --open-for 60
    """
    _quiet_flower(workspace)
    from coordinator.fleet.campaigns.start import CalibrationPlan, start
    from protocol.fleet.campaign import Privacy

    privacy = None
    if budget is not None:
        privacy = Privacy(clipping_norm=clip, noise_multiplier=noise, max_epsilon=budget, delta=delta)
    plan = CalibrationPlan(strategy, rounds, round_minutes, steps, learning_rate, privacy)
    late, end = timedelta(minutes=open_for), timedelta(minutes=ends_after)
    with opened_workspace(workspace) as open_:
        row = start(open_, kind, open_for=late, ends_after=end, now=now(), plan=plan)
    say(f"Campaign {row.number} ({row.kind}) runs until {row.expires}; see: greylag-coordinator campaign show")
    _check_driven(workspace)
    if as_json:
        print_json({"campaign": _facts(row)})


@campaign.command("ls")
def campaign_ls(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """List every campaign, oldest first.

    Example: greylag-coordinator campaign ls
    """
    with opened_workspace(workspace) as open_:
        rows = [_facts(row) for row in _fleet(open_).campaigns.all()]
    show_rows("campaigns", ("number", "kind", "state", "created", "conclusion"), rows, as_json=as_json)


@campaign.command("show")
def campaign_show(
    number: NumberArgument = 0, *, as_json: JsonOption = False, workspace: WorkspaceOption = Path()
) -> None:
    """Show one campaign, by default the newest, and what each node said.

    Example: greylag-coordinator campaign show 3
    """
    from coordinator.fleet.campaigns.conclusion import summary
    from coordinator.fleet.records.rounds import facts_of, order_of

    with opened_workspace(workspace) as open_:
        row = _fleet(open_).campaigns.find(number)
        answers = [_answer(answer, name) for answer, name in _fleet(open_).campaigns.answers(row.number)]
        said = row.conclusion or summary(_fleet(open_), row.number)
        rounds = [facts_of(each) for each in _fleet(open_).rounds.of(row.number)]
        task = order_of(row.envelope).calibrating
    if row.state == "running":
        _check_driven(workspace)
    if as_json:
        plan = task.model_dump(mode="json") if task else None
        print_json(
            {"campaign": _facts(row), "answers": answers, "calibrating": plan, "rounds": rounds, "summary": said}
        )
    else:
        private = task.privacy if task else None
        budget = {"budget": f"epsilon {private.max_epsilon:g} at delta {private.delta:g}"} if private else {}
        facts = _facts(row) | budget | {"conclusion" if row.conclusion else "so far": said}
        table(("field", "value"), [(name, value) for name, value in facts.items() if value != ""])
        shown = ("number", "ends", "answered", "late", "ended", "privacy", "calibration")
        if rounds:
            table(shown, ([str(each.get(column, "")) for column in shown] for each in rounds))
        for entry in answers:
            entry["facts"] = ", ".join(f"{name} {value}" for name, value in entry["facts"].items())
        shown = ("contributor", "state", "attempts", "at", "code", "meaning", "facts")
        show_rows("answers", shown, answers, as_json=False)


@campaign.command("log")
def campaign_log(
    number: NumberArgument = 0, *, as_json: JsonOption = False, workspace: WorkspaceOption = Path()
) -> None:
    """Show what the journal says of one campaign and its candidate.

    Example: greylag-coordinator campaign log 3
    """
    with opened_workspace(workspace) as open_:
        row = _fleet(open_).campaigns.find(number)
        events = open_.registry.events(str(row.number))
        events += open_.registry.events(row.candidate) if row.candidate else []
    shown = ("at", "kind", "step", "actor", "message")
    rows = [fields(event, *shown) for event in sorted(events, key=lambda event: event.number)]
    show_rows("events", shown, rows, as_json=as_json)


@campaign.command("stop")
def campaign_stop(number: NumberArgument = 0, *, workspace: WorkspaceOption = Path()) -> None:
    """End a campaign now; what was answered counts: votes are weighed, and rounds that are over make a candidate.

    Example: greylag-coordinator campaign stop 3
    """
    _quiet_flower(workspace)
    from coordinator.fleet.campaigns.conclusion import conclude

    with opened_workspace(workspace) as open_:
        row = _fleet(open_).campaigns.find(number)
        said = conclude(open_, row, now=now(), stopped=True) if row.state == "running" else row.conclusion
    say(f"Campaign {row.number} is over. {said}")


@candidates.command("ls")
def candidates_ls(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """List every candidate, oldest first, with the decision about it.

    Example: greylag-coordinator candidates ls
    """
    with opened_workspace(workspace) as open_:
        rows = [_verdict(row, open_.pool) for row in _fleet(open_).candidates.all()]
    show_rows("candidates", ("digest", "state", "experts", "by", "reason"), rows, as_json=as_json)


def _verdict(row: "Candidate", pool: "Pool") -> dict[str, Any]:
    from protocol.errors import Refused
    from protocol.fleet.campaign import read_decision
    from protocol.release import read_candidate

    told = {"digest": row.digest, "state": row.state, "experts": 0, "by": "", "reason": ""}
    try:
        told["experts"] = len(read_candidate(row.envelope, pool).spec.experts)
        if row.decision:
            decision = read_decision(row.decision, pool)
            told |= {"by": decision.by, "reason": decision.reason}
    except Refused as error:  # damaged; the others are shown all the same
        told["reason"] = error.message
    return told


@candidates.command("promote")
def candidates_promote(
    digest: DigestArgument, *, reason: ReasonOption, act: ActOption = None, workspace: WorkspaceOption = Path()
) -> None:
    """Make a candidate the newest release, whatever the rule said; the decision is signed and kept.

    Example: greylag-coordinator candidates promote 3f9a0c21 --reason "Two clinics need it now."
    """
    _decide(workspace, digest, reason, promoted=True, act=act)


@candidates.command("hold")
def candidates_hold(digest: DigestArgument, *, reason: ReasonOption, workspace: WorkspaceOption = Path()) -> None:
    """Hold a candidate back, whatever the rule would say; the decision is signed and kept.

    Example: greylag-coordinator candidates hold 3f9a0c21 --reason "It answers with insults."
    """
    _decide(workspace, digest, reason, promoted=False)


def _quiet_flower(folder: Path) -> None:
    """Must come before whatever else imports Flower."""
    from coordinator.fleet.flower.gateway import quiet_flower

    quiet_flower(folder.resolve() / "fleet" / "home")


def _check_driven(folder: Path) -> None:
    from coordinator.workspace.locks import is_at_work
    from coordinator.workspace.paths import CoordinatorWorkspace

    if not is_at_work(CoordinatorWorkspace(folder), "fleet"):
        say("Nobody is asked as long as no `greylag-coordinator fleet` runs in this workspace.")


def _decide(folder: Path, digest: str, reason: str, *, promoted: bool, act: Path | None = None) -> None:
    from coordinator.fleet.records.candidates import no_candidate, settle
    from coordinator.workspace.deciding import decided

    with opened_workspace(folder) as open_:
        found = [row.digest for row in _fleet(open_).candidates.all() if row.digest.startswith(digest)]
        if len(found) != 1 or len(digest) < 8:  # noqa: PLR2004 - digits that name one
            raise no_candidate(digest)
        about = _fleet(open_).candidates.newcomers(found[0])
        with decided(open_, "promote", found[0], act, about=about, now=now()) if promoted else nullcontext():
            settle(open_, found[0], promoted=promoted, by="operator", reason=reason, campaign=None, now=now())
    say(f"Candidate {found[0][:16]} is {'the newest release' if promoted else 'held back'}.")


def _fleet(open_: Any) -> "Fleet":
    from coordinator.fleet.records.fleet import Fleet

    return Fleet(open_.registry)


def _facts(row: "Campaign") -> dict[str, Any]:
    return fields(row, "number", "kind", "state", "candidate", "created", "open_until", "expires", "conclusion")


def _answer(answer: "CampaignAnswer", name: str) -> dict[str, Any]:
    from protocol.errors import Code

    meaning = Code[answer.code].fate.meaning if answer.code in Code.__members__ else ""
    told = {"contributor": name, "meaning": meaning, "facts": json.loads(answer.facts)}
    return fields(answer, "state", "attempts", "at", "code") | told
