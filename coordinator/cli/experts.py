"""The verbs that show and decide: experts, releases, contributors."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli.output import JsonOption, ReasonOption, WorkspaceOption, opened_workspace, table
from protocol.errors import Code, Refused
from protocol.programs import print_json, say

if TYPE_CHECKING:
    from coordinator.registry.tables import BundleRow, Contributor, Event

experts = typer.Typer(help="Show and decide what becomes of bundles.", no_args_is_help=True)
releases = typer.Typer(help="Show signed releases.", no_args_is_help=True)
contributors = typer.Typer(help="Show, approve and revoke contributors' keys.", no_args_is_help=True)

DigestArgument = Annotated[str, typer.Argument(help="Eight or more digits of the bundle's digest.")]
WhoArgument = Annotated[str, typer.Argument(help="Name or key.")]


@experts.command("ls")
def experts_ls(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """List every bundle in order of arrival.

    Example: greylag-coordinator experts ls --json
    """
    with opened_workspace(workspace) as open_:
        names = {row.key: row.name for row in open_.registry.contributors.all()}
        rows = [_expert(row, names) for row in open_.registry.bundles.all()]
    if as_json:
        print_json({"experts": rows})
    else:
        shown = ("sequence", "digest", "contributor", "name", "state", "release", "code")
        table(shown, ([_short(row[column]) for column in shown] for row in rows))


@experts.command("show")
def experts_show(digest: DigestArgument, *, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """Show one bundle, its facts and its history; eight digits of its digest name it.

    Example: greylag-coordinator experts show 3f9a0c21
    """
    from protocol.bundle import read_manifest

    with opened_workspace(workspace) as open_:
        row = open_.registry.bundles.by_prefix(digest)
        events = open_.registry.events(row.digest)
        facts = _expert(row, {entry.key: entry.name for entry in open_.registry.contributors.all()})
    manifest = read_manifest(row.envelope)
    facts |= {
        "received": row.received, "message": row.message, "bytes": manifest.total_bytes,
        "modules": len(manifest.spec.modules), "license": manifest.spec.license, "supersedes": manifest.spec.supersedes,
    }  # fmt: skip
    if as_json:
        print_json({"expert": facts, "events": [_event(event) for event in events]})
    else:
        table(("field", "value"), facts.items())
        table(("at", "step", "by", "why"), ((e.at, e.step, e.actor, e.message) for e in events))


@experts.command("accept")
def experts_accept(digest: DigestArgument, *, workspace: WorkspaceOption = Path()) -> None:
    """Let a quarantined bundle in; the worker then tries and releases it.

    Example: greylag-coordinator experts accept 3f9a0c21
    """
    from coordinator.policy.lifecycle import State

    _decide(workspace, digest, State.ACCEPTED)


@experts.command("refuse")
def experts_refuse(digest: DigestArgument, *, reason: ReasonOption, workspace: WorkspaceOption = Path()) -> None:
    """Refuse a bundle that is not released yet.

    Example: greylag-coordinator experts refuse 3f9a0c21 --reason "The card does not say what it is for."
    """
    from coordinator.policy.lifecycle import State

    _decide(workspace, digest, State.REFUSED, reason)


@experts.command("yank")
def experts_yank(digest: DigestArgument, *, reason: ReasonOption, workspace: WorkspaceOption = Path()) -> None:
    """Take a released bundle out; the worker publishes a release without it.

    Example: greylag-coordinator experts yank 3f9a0c21 --reason "Answers with insults."
    """
    from coordinator.policy.lifecycle import State

    _decide(workspace, digest, State.YANKED, reason)


@releases.command("ls")
def releases_ls(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """List every release, oldest first.

    Example: greylag-coordinator releases ls
    """
    from protocol.release import read_release

    with opened_workspace(workspace) as open_:
        specs = [(row.digest, read_release(row.envelope, open_.pool).spec) for row in open_.registry.releases.all()]
    rows = [
        {"number": spec.number, "digest": digest, "experts": len(spec.experts), "created": spec.created,
         "expires": spec.expires}
        for digest, spec in specs
    ]  # fmt: skip
    if as_json:
        print_json({"releases": rows})
    else:
        shown = ("number", "digest", "experts", "created", "expires")
        table(shown, ([_short(row[column]) for column in shown] for row in rows))


@releases.command("show")
def releases_show(
    number: Annotated[int, typer.Argument(min=0, max=(1 << 31) - 1, help="0 for the newest.")] = 0,
    *,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Show one release, by default the newest, and its experts in order.

    Example: greylag-coordinator releases show 3
    """
    from protocol.release import read_release

    with opened_workspace(workspace) as open_:
        row = open_.registry.releases.find(number)
        if row is None:
            raise Refused(
                Code.RELEASE_UNKNOWN,
                f"There is no release {number}." if number else "There is no release yet.",
                "See: greylag-coordinator releases ls",
            )
        release = read_release(row.envelope, open_.pool)
    if as_json:
        print_json({"digest": release.digest, "release": release.spec.model_dump(mode="json")})
    else:
        table(("expert", "contributor", "bundle"), ((e.name, e.contributor, e.bundle) for e in release.spec.experts))


@contributors.command("ls")
def contributors_ls(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """List every key.

    Example: greylag-coordinator contributors ls
    """
    with opened_workspace(workspace) as open_:
        rows = [_contributor(row) for row in open_.registry.contributors.all()]
    if as_json:
        print_json({"contributors": rows})
    else:
        table(
            ("name", "state", "enrolled", "key"),
            ([row["name"], row["state"], row["enrolled"], row["key"]] for row in rows),
        )


@contributors.command("approve")
def contributors_approve(who: WhoArgument, *, workspace: WorkspaceOption = Path()) -> None:
    """Let a key, given in full or by its name, submit.

    Example: greylag-coordinator contributors approve ada
    """
    _set_contributor(workspace, who, "active")


@contributors.command("revoke")
def contributors_revoke(who: WhoArgument, *, workspace: WorkspaceOption = Path()) -> None:
    """Let a key submit no more; what was let in already stays until it is yanked (`experts yank`).

    Example: greylag-coordinator contributors revoke ada
    """
    _set_contributor(workspace, who, "revoked")


def _decide(folder: Path, digest: str, step: Any, reason: str | None = None) -> None:
    with opened_workspace(folder) as open_:
        row = open_.registry.bundles.by_prefix(digest)
        why = None if reason is None else Refused(Code.DECLINED, reason)
        open_.registry.bundles.move(row.digest, step, actor="operator", reason=why, now=datetime.now(UTC))
    say(f"Bundle {row.digest[:16]} ({row.name}) is {step}.")


def _set_contributor(folder: Path, who: str, state: str) -> None:
    with opened_workspace(folder) as open_:
        row = open_.registry.contributors.set_state(who, state, now=datetime.now(UTC))
    say(f"{row.name} is {state}.")


def _expert(row: "BundleRow", names: dict[str, str]) -> dict[str, Any]:
    return {
        "sequence": row.sequence, "digest": row.digest, "contributor": names[row.contributor], "name": row.name,
        "state": row.state, "release": row.release, "code": row.code,
    }  # fmt: skip


def _contributor(row: "Contributor") -> dict[str, str]:
    return {"name": row.name, "state": row.state, "enrolled": row.enrolled, "key": row.key}


def _event(event: "Event") -> dict[str, Any]:
    return {"number": event.number, "at": event.at, "step": event.step, "actor": event.actor, "code": event.code,
            "message": event.message}  # fmt: skip


def _short(value: Any) -> Any:
    return value[:16] if isinstance(value, str) and len(value) == 64 else value  # noqa: PLR2004 - a digest
