"""The verbs that keep a workspace in order: `fsck` and `migrate`."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.log import check_faults
from coordinator.cli.options import JsonOption, WorkspaceOption
from coordinator.cli.output import PROCESSES, now, opened_workspace
from protocol.errors import Code, Refused
from protocol.programs import configure_logs, print_json, say

if TYPE_CHECKING:
    from coordinator.workspace.fsck import Findings


def fsck(
    *,
    delete: Annotated[
        float | None,
        typer.Option(min=0, help="Drop files that nothing needs and that lie there for more than so many days."),
    ] = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Go on from an older registry that was restored, after what was published.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Verify every stored byte, the log, every signed row, and that nothing of it is lost. Stop every process first.

    Example: greylag-coordinator fsck -w pool --delete 30
    """
    from dataclasses import asdict

    from coordinator.policy.switches import Switch
    from coordinator.registry.log_check import contradictions
    from coordinator.storage.blobs import Store
    from coordinator.workspace.fsck import check_store
    from coordinator.workspace.row_check import check_rows

    age = None if delete is None else timedelta(days=delete)
    with opened_workspace(workspace, *PROCESSES) as open_:
        yanked = open_.high_water.adopt(now=now()) if adopt else []
        if yanked:
            say(
                "Yanked, by the log, or because the adopted release holds neither them nor a successor of their name: "
                f"{', '.join(digest[:16] for digest in yanked)}. Whoever wants one in again submits a new one."
            )
        if delete is not None:
            open_.registry.switches.check(Switch.REGISTRY)
        store, told = Store(open_.settings.store), open_.pool.spec.statistics
        found = check_store(open_.registry, store, now=now(), delete=age, statistics=told)
        release, receipts = open_.high_water.lost_release(), open_.high_water.lost_receipts()
        faults, entries = contradictions(open_.registry), open_.checkpoints.lost()
        say(_in_words(found))
        if as_json:
            lost = {"lost_release": release.spec.number if release else None, "lost_receipts": receipts}
            healthy = found.healthy and not (release or receipts or entries or faults)
            log = {"lost_entries": entries, "log_faults": faults}
            print_json({"healthy": healthy, **asdict(found), **lost, **log, "yanked": yanked})
        if not found.healthy:
            first = (found.missing + found.damaged)[0]
            raise Refused(
                Code.DIGEST_MISMATCH,
                f"The store lost or changed {len(found.missing + found.damaged)} files, such as {first[:16]}.",
                "Restore them from a copy of the store, or refuse or yank the bundles that need them; the pool's own "
                "file also lies in every router's folder, under statistics/.",
            )
        check_faults(faults)
        check_rows(open_.registry, open_.pool)
        open_.high_water.check()


def _in_words(found: "Findings") -> str:
    old = len(found.orphans) - len(found.young) - len(found.dropped)
    return (
        f"{found.files} files are needed: {len(found.missing)} missing, {len(found.damaged)} damaged. "
        f"Nothing needs {len(found.orphans)} others: {len(found.young)} came after the newest bundle and stay; "
        f"{len(found.dropped)} were dropped; {old} stay until --delete DAYS drops them."
    )


def migrate(*, workspace: WorkspaceOption = Path()) -> None:
    """Bring an older registry to the schema of this version. Stop every process first.

    Example: greylag-coordinator migrate -w pool
    """
    from coordinator.registry.registry import Registry
    from coordinator.workspace.locks import exclusive
    from coordinator.workspace.paths import CoordinatorWorkspace
    from coordinator.workspace.settings import load

    configure_logs()
    place = CoordinatorWorkspace(workspace)
    settings = load(place)
    with exclusive(place, *PROCESSES):
        Registry.open(settings.database, older=True).close()
    say("The registry has the schema of this version.")
