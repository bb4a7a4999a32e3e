"""The verbs that say about finished bundles: submit, status, verify."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.options import GiveUpFlag, JsonFlag, ProgressFlag, WaitFlag, WorkspaceFlag, at_work, open_workspace
from client.cli.progress import Style, show
from client.progress import GIVE_UP_AFTER_S, Report
from protocol.errors import Code, Refused
from protocol.programs import print_json, say

if TYPE_CHECKING:
    from client.submission.outbox import Record
    from client.workspace.paths import ClientWorkspace
    from client.workspace.settings import ClientSettings
    from protocol.bundle import Bundle

BundleArgument = Annotated[Path | None, typer.Argument(help="Name or folder; default: the only one here.")]


def submit(
    bundle: BundleArgument = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would leave; send nothing.")] = False,
    wait: WaitFlag = False,
    give_up_after: GiveUpFlag = GIVE_UP_AFTER_S,
    progress: ProgressFlag = Style.AUTO,
    as_json: JsonFlag = False,
    workspace: WorkspaceFlag = Path(),
) -> None:
    """Send a bundle, given by its name or folder, to the coordinator. Run again to resume.

    Without a name, the only bundle of the workspace is sent.

    Example: greylag-client submit --dry-run
    """
    from client.submission import submit

    place, settings = open_workspace(workspace)
    if dry_run:
        chosen = submit.choose(place, bundle)
        pool = place.pool(settings.pool_key)
        enrolment = submit.enrolment_for(place, settings, chosen, pool, datetime.now(UTC), keep=False)
        _show_leaving(submit.leaving(chosen, enrolment), as_json=as_json)
        return
    with at_work(place), show(progress) as report:
        chosen = submit.choose(place, bundle)
        record = send_bundle(place, settings, chosen, report, wait=wait, give_up_after=give_up_after)
    show_records([record], as_json=as_json)
    check_verdict(record)


def status(
    *,
    wait: WaitFlag = False,
    give_up_after: GiveUpFlag = GIVE_UP_AFTER_S,
    as_json: JsonFlag = False,
    workspace: WorkspaceFlag = Path(),
) -> None:
    """Ask what became of everything that was submitted from here.

    Example: greylag-client status --wait
    """
    from client.submission import outbox, submit, upload

    place, settings = open_workspace(workspace)
    pool = place.pool(settings.pool_key)
    coordinator = upload.Coordinator(settings.coordinator, settings.ca, give_up_after, say)
    records = outbox.load(place.outbox)
    if not records:
        say("Nothing was submitted from here yet.")
    show_records([submit.refresh(place, record, pool, coordinator, wait=wait) for record in records], as_json=as_json)


def verify(bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")], *, as_json: JsonFlag = False) -> None:
    """Check the bundle in a folder offline: signature, every byte, spec and tensors.

    Example: greylag-client verify bundles/ada
    """
    from client.submission import submit

    facts = submit.facts(submit.verify(bundle))
    if as_json:
        print_json(facts)
    else:
        for name, value in facts.items():
            if name != "schema":
                typer.echo(f"{name:<12} {value}")


def send_bundle(
    place: "ClientWorkspace",
    settings: "ClientSettings",
    bundle: "Bundle",
    report: Report,
    *,
    wait: bool,
    give_up_after: float,
) -> "Record":
    """Submit a bundle and, if asked, wait for its verdict."""
    from client.submission import submit, upload

    pool = place.pool(settings.pool_key)
    coordinator = upload.Coordinator(settings.coordinator, settings.ca, give_up_after, say)
    enrolment = submit.enrolment_for(place, settings, bundle, pool, datetime.now(UTC), keep=True)
    record = submit.send(place, bundle, enrolment, pool, coordinator, report)
    say(f"The coordinator keeps {record.name}; receipt number {record.sequence}.")
    return submit.refresh(place, record, pool, coordinator, wait=True) if wait else record


def show_records(records: "list[Record]", *, as_json: bool) -> None:
    """Print what became of bundles."""
    if as_json:
        print_json({"bundles": [_public(record) for record in records]})
    else:
        for record in records:
            released = f", first in release {record.release}" if record.release else ""
            reason = f": {record.code} {record.message}" if record.code else ""
            typer.echo(f"{record.digest[:12]} {record.name} {record.state}{released}{reason}")


def check_verdict(record: "Record") -> None:
    """Fail with the verdict's own code if the bundle was refused.

    Raises:
        Refused: The verdict's code.
    """
    from client.submission.outbox import REFUSED

    if record.state == REFUSED:
        code = Code.__members__.get(record.code, Code.REQUEST_INVALID)
        raise Refused(code, record.message or "The bundle was refused.", record.hint)


def _public(record: "Record") -> dict[str, Any]:
    return record.model_dump(mode="json", exclude={"schema_version", "receipt"})


def _show_leaving(leaving: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(leaving)
        return
    typer.echo(f"bundle {leaving['digest']}")
    for file in leaving["files"]:
        typer.echo(f"file   {file['name']:<28} {file['bytes']:>12} bytes  sha256 {file['sha256']}")
    for tensor in leaving["tensors"]:
        typer.echo(f"tensor {tensor['name']} {tensor['dtype']} {tensor['shape']}")
    typer.echo("statement, signed by the contributor's key:")
    print_json(leaving["statement"])
    typer.echo("enrolment, signed by the contributor's key:")
    print_json(leaving["enrolment"])
