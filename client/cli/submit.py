"""The verbs about finished bundles: submit, status, verify."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.options import GiveUpFlag, JsonFlag, ProgressFlag, WaitFlag, WorkspaceFlag, at_work, open_workspace
from client.cli.progress import Style, show
from client.progress import Report
from protocol.errors import Code
from protocol.programs import print_json, put, say

if TYPE_CHECKING:
    from client.submission.outbox import Record
    from client.workspace.paths import ClientWorkspace
    from protocol.bundle import Bundle

BundleArgument = Annotated[Path | None, typer.Argument(help="Name or folder; default: the only one here.")]


def submit(
    bundle: BundleArgument = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would leave; send nothing.")] = False,
    wait: WaitFlag = False,
    give_up_after: GiveUpFlag = None,
    progress: ProgressFlag = Style.AUTO,
    as_json: JsonFlag = False,
    workspace: WorkspaceFlag = Path(),
) -> None:
    """Send a bundle, given by its name or folder, to the coordinator. Run again to resume.

    Without a name, the only bundle of the workspace is sent.

    Example: greylag-client submit --dry-run
    """
    from client.submission import submit

    place = open_workspace(workspace)
    if dry_run:
        chosen = submit.choose(place, bundle)
        leaving = submit.leaving(chosen, submit.enrolment_for(place, chosen, datetime.now(UTC), keep=False))
        if as_json:
            print_json(leaving)
        else:
            _show_leaving(leaving, place.settings.coordinator)
        return
    with at_work(place), show(progress) as report:
        chosen = submit.choose(place, bundle)
        submit_bundle(place, chosen, report, wait=wait, give_up_after=give_up_after, as_json=as_json)


def status(
    *,
    wait: WaitFlag = False,
    give_up_after: GiveUpFlag = None,
    as_json: JsonFlag = False,
    workspace: WorkspaceFlag = Path(),
) -> None:
    """Ask what became of everything that was submitted from here.

    Example: greylag-client status --wait
    """
    from client.submission import outbox, submit, upload

    place = open_workspace(workspace)
    pool = place.pool  # one that cannot be trusted is told before its coordinator is asked
    coordinator = upload.Coordinator(place.settings.coordinator, place.settings.ca, give_up_after, say)
    records = [submit.refresh(place, record, coordinator, wait=wait) for record in outbox.load(place.outbox)]
    if not records:
        say("Nothing was submitted from here yet.")
    _show_records(records, as_json=as_json)
    for record in records if wait else ():
        submit.check_decided(record, pool)


def verify(
    bundle: Annotated[
        Path | None, typer.Argument(help="Folder of a bundle; default: the receipts of what was submitted from here.")
    ] = None,
    *,
    as_json: JsonFlag = False,
    workspace: WorkspaceFlag = Path(),
) -> None:
    """Check a bundle offline: signature, every byte, spec and tensors. Without one, ask the pool's log.

    Without a bundle: the log must hold everything that was submitted from here, and what the coordinator told of it,
    and must continue every checkpoint that was seen here.

    Example: greylag-client verify bundles/ada
    """
    from client.submission import submit

    if bundle is None:
        _verify_log(open_workspace(workspace), as_json=as_json)
        return
    facts = submit.facts(submit.verify(bundle))
    if as_json:
        print_json(facts)
    else:
        for name, value in facts.items():
            put(f"{name:<12} {value}")


def _verify_log(place: "ClientWorkspace", *, as_json: bool) -> None:
    from client.submission import log

    with at_work(place):
        found = log.verify(place)
    if as_json:
        bundles = [row._asdict() | {"fault": row.fault and row.fault.message} for row in found.bundles]
        print_json({"size": found.size, "bundles": bundles})
    else:
        for row in found.bundles:
            put(
                f"{row.digest[:12]} {row.name} {row.fault.message if row.fault else f'is entry {row.entry} of the log'}"
            )
    say(f"The pool's log has {found.size} entries, and continues what was seen before.")
    faults = [row.fault for row in found.bundles if row.fault]
    if faults:
        raise faults[0]


def submit_bundle(
    place: "ClientWorkspace",
    bundle: "Bundle",
    report: Report,
    *,
    wait: bool,
    give_up_after: float | None,
    as_json: bool = False,
) -> None:
    """Submit a bundle, wait for its verdict if asked, and print what became of it.

    Raises:
        Refused: What the coordinator refuses with; after waiting, the verdict's own code.
        Unavailable: `UNREACHABLE`, `BUSY` if nobody has decided, or `STORAGE_FULL`.
    """
    from client.submission import outbox, submit, upload

    coordinator = upload.Coordinator(place.settings.coordinator, place.settings.ca, give_up_after, say)
    enrolment = submit.enrolment_for(place, bundle, datetime.now(UTC), keep=True)
    record = submit.send(place, bundle, enrolment, coordinator, report)
    say(f"The coordinator keeps {record.name}; receipt number {record.sequence}.")
    if wait:
        record = submit.refresh(place, record, coordinator, wait=True)
    _show_records([record], as_json=as_json)
    if record.state == outbox.REFUSED:
        code = Code.__members__.get(record.code, Code.REQUEST_INVALID)
        raise code.family(code, record.message or "The bundle was refused.", record.hint)
    if wait:
        submit.check_decided(record, place.pool)


def _show_records(records: "list[Record]", *, as_json: bool) -> None:
    """Print what became of bundles."""
    if as_json:
        own = {"schema_version", "receipt", "logged"}
        print_json({"bundles": [record.model_dump(mode="json", exclude=own) for record in records]})
    else:
        for record in records:
            released = f", first in release {record.release}" if record.release else ""
            reason = f": {record.code} {record.message}" if record.code else ""
            put(f"{record.digest[:12]} {record.name} {record.state}{released}{reason}")


def _show_leaving(leaving: dict[str, Any], coordinator: str) -> None:
    """Say in ten lines what leaves, the table of the card among them, which others see first."""
    spec, enrolment = leaving["statement"]["predicate"]["spec"], leaving["enrolment"]["predicate"]
    files = leaving["files"]
    place = f"in the place of {spec['supersedes'][:12]}" if spec["supersedes"] else "in no other's place"
    for line in (
        f"to {coordinator}: the bundle {spec['name']}, {leaving['digest'][:12]}, {place}",
        f"{len(files)} files, {sum(file['bytes'] for file in files):,} bytes; --json lists them, and all tensors",
        f"signed by the key {enrolment['key'][:16]}, which enrols as {enrolment['name']}; license {spec['license']}",
        *(f"the card tells: {name}: {value}" for name, value in leaving["card"].items()),
    ):
        put(line)
