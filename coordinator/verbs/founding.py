"""`init`: makes a workspace with its key, its signed pool and an empty registry."""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.verbs.output import JsonOption, WorkspaceOption, emit, say
from protocol.errors import Code, Refused


class Enrolment(StrEnum):
    """Who may submit."""

    OPEN = "open"
    APPROVED = "approved"


class Admission(StrEnum):
    """Who lets bundles in."""

    OPEN = "open"
    REVIEWED = "reviewed"


def init(  # noqa: PLR0913 - one parameter an option
    *,
    name: Annotated[str, typer.Option(help="The pool's name: a-z, 0-9, dot, dash, underscore.")],
    base: Annotated[str, typer.Option(help="Base model: a folder or a Hugging Face id.")],
    recipe: Annotated[Path | None, typer.Option(help="TOML file with fields of the training recipe.")] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA rank.")] = None,
    alpha: Annotated[float | None, typer.Option(help="LoRA alpha; the scale is alpha / rank.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of AdamW.")] = None,
    expert_steps: Annotated[int | None, typer.Option(help="Optimiser steps for an expert.")] = None,
    gate_steps: Annotated[int | None, typer.Option(help="Optimiser steps for its gates.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between two looks at held-out rows.")] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of rows held out.")] = None,
    max_input_tokens: Annotated[int | None, typer.Option(help="Longest input.")] = None,
    max_target_tokens: Annotated[int | None, typer.Option(help="Longest target.")] = None,
    enrolment: Annotated[Enrolment, typer.Option(help="open: any key may submit.")] = Enrolment.OPEN,
    admission: Annotated[Admission, typer.Option(help="open: what passes every check is let in.")] = Admission.OPEN,
    max_rank: Annotated[int | None, typer.Option(help="Largest rank that is taken.")] = None,
    max_bundle_bytes: Annotated[int | None, typer.Option(help="Largest bundle that is taken, in bytes.")] = None,
    max_experts: Annotated[int | None, typer.Option(help="Experts a contributor may hold.")] = None,
    release_days: Annotated[int | None, typer.Option(help="Days until a release expires.")] = None,
    listen: Annotated[str | None, typer.Option(help="host:port of serve.")] = None,
    probe: Annotated[Path | None, typer.Option(help="Public text to try experts on, one input a line.")] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Make a workspace: a key, a signed pool over a base model, an empty registry."""
    from coordinator.founding import check_absent, found, study_base  # noqa: PLC0415 - seconds of import
    from coordinator.settings import Workspace  # noqa: PLC0415
    from protocol.channel import check_address  # noqa: PLC0415

    place = Workspace(workspace)
    check_absent(place)
    flags = {
        "rank": rank, "alpha": alpha, "learning_rate": learning_rate, "expert_steps": expert_steps,
        "gate_steps": gate_steps, "batch_size": batch_size, "eval_every": eval_every, "held_out": held_out,
        "max_input_tokens": max_input_tokens, "max_target_tokens": max_target_tokens,
    }  # fmt: skip
    policy = {
        "enrolment": enrolment.value, "admission": admission.value, "max_rank": max_rank,
        "max_bundle_bytes": max_bundle_bytes, "max_experts_per_contributor": max_experts,
        "release_days": release_days,
    }  # fmt: skip
    fields = (_read_toml(recipe) if recipe else {}) | _given(flags)
    settings = {"listen": check_address(listen)} if listen else {}
    say(f"Reading the base model {base} ...")
    pool = found(
        place,
        study_base(base),
        name=name,
        recipe=fields,
        policy=_given(policy),
        settings=settings,
        probe=probe,
        now=datetime.now(UTC),
    )
    say(f"Pool {pool.spec.name} ({len(pool.spec.modules)} modules) is in {place.folder.resolve()}.")
    say(f"Its key is {pool.spec.coordinator}. Next: greylag-coordinator serve, greylag-coordinator worker")
    if as_json:
        emit({"name": pool.spec.name, "pool": pool.digest, "key": pool.spec.coordinator})


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _read_toml(path: Path) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415 - not for --help

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(
            Code.SETTINGS_INVALID, f"The recipe {path} cannot be read: {error}.", "Give a TOML file."
        ) from error
