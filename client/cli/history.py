"""greylag-client history: the experts that were made here, and one of them again."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.cli.options import GiveUpFlag, JsonFlag, ProgressFlag, WaitFlag, WorkspaceFlag, at_work, open_workspace
from client.cli.progress import Style, show
from client.cli.submit import submit_bundle
from protocol.programs import print_json, put, say

if TYPE_CHECKING:
    from client.workspace.paths import ClientWorkspace


def history(
    *,
    bring_back: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="Submit this expert again, in the place of the last of its name."),
    ] = None,
    wait: WaitFlag = False,
    give_up_after: GiveUpFlag = None,
    progress: ProgressFlag = Style.AUTO,
    as_json: JsonFlag = False,
    workspace: WorkspaceFlag = Path(),
) -> None:
    """List the experts that were made or submitted here: digest, name, date, loss on held-out rows, state, release.

    States are those that `status` heard last.

    Example: greylag-client history --bring-back 4f1d02aa
    """
    place = open_workspace(workspace)
    if bring_back is None:
        _show(_listed(place), as_json=as_json)
        return
    from client import job

    with at_work(place), show(progress) as report:
        bundle = job.bring_back(place, bring_back, datetime.now(UTC))
        say(f"The expert {bundle.spec.name} of {bring_back} takes the place of the last one.")
        submit_bundle(place, bundle, report, wait=wait, give_up_after=give_up_after, as_json=as_json)


def _listed(place: "ClientWorkspace") -> list[dict[str, Any]]:
    """Lay side by side what was trained here and what was submitted, oldest first."""
    from client.job import made
    from client.submission import outbox

    # Receipts first: of bundles that were made within a second they tell the order.
    found: dict[str, dict[str, Any]] = {
        sent.digest: {
            "digest": sent.digest, "name": sent.name, "date": sent.received, "loss": None,
            "state": sent.state, "release": sent.release,
        }
        for sent in outbox.load(place.outbox)
    }  # fmt: skip
    for each, _, record in made(place):
        row = found.setdefault(each.digest, {"digest": each.digest, "state": "not submitted", "release": 0})
        row |= {"name": record.name, "date": each.spec.created, "loss": record.loss}
    return sorted(found.values(), key=lambda row: row["date"])


def _show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json({"bundles": rows})
        return
    if not rows:
        say("Nothing was made here yet.")
    for row in rows:
        loss = "loss unknown" if row["loss"] is None else f"loss {row['loss']:.3f}"
        released = f", first in release {row['release']}" if row["release"] else ""
        put(f"{row['digest'][:12]} {row['name']} {row['date'][:10]} {loss} {row['state']}{released}")
