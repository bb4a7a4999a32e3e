"""The verbs that keep a workspace in order: `fsck`, `migrate` and those of `keys`."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli.log import check_faults
from coordinator.cli.options import JsonOption, WorkspaceOption
from coordinator.cli.output import PROCESSES, now, opened_workspace, show_rows
from protocol.errors import Code, Refused
from protocol.programs import configure_logs, print_json, say

if TYPE_CHECKING:
    from coordinator.workspace.fsck import Findings

keys = typer.Typer(help="Show where keys are, and put them under a passphrase.", no_args_is_help=True)


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
    from coordinator.registry.row_check import check_rows
    from coordinator.storage.blobs import Store
    from coordinator.workspace.fsck import check_store

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


@keys.command("ls")
def keys_ls(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """List the keys at hand, where each is, and what it signs now; those of no use lie there for nothing.

    Example: greylag-coordinator keys ls
    """
    from coordinator.workspace.role_keys import uses
    from protocol.keys.passphrase import is_locked

    with opened_workspace(workspace) as open_:
        signs, placed = uses(open_.pool, open_.roles.root()), open_.keyring.placed()
        rows = [
            {
                "key": each.public.hex, "where": str(path) if path else open_.settings.signers.get(each.public.hex),
                "passphrase": path is not None and is_locked(path), "signs": signs.get(each.public, []),
            }
            for path, each in placed
        ]  # fmt: skip
    if as_json:
        print_json({"keys": rows})
    else:
        told: list[dict[str, Any]] = [
            row | {"key": str(row["key"])[:16], "signs": ", ".join(signs.get(each.public, []))}
            for row, (_, each) in zip(rows, placed, strict=True)
        ]
        show_rows("keys", ("key", "signs", "passphrase", "where"), told, as_json=False)


@keys.command("protect")
def keys_protect(*, workspace: WorkspaceOption = Path()) -> None:
    """Put every file of a key under one new passphrase, or under none; run again if it was interrupted.

    The old one comes from GREYLAG_KEY_PASSPHRASE and the new one from GREYLAG_NEW_KEY_PASSPHRASE, or you are asked.

    Example: greylag-coordinator keys protect -w pool
    """
    from coordinator.workspace.keyring import Keyring
    from coordinator.workspace.paths import CoordinatorWorkspace
    from coordinator.workspace.settings import load
    from protocol.keys.passphrase import lock

    load(place := CoordinatorWorkspace(workspace))
    files = Keyring(place).files()
    lock(files)
    say(f"{len(files)} keys are under the new passphrase: {', '.join(path.name for path in files)}.")
    say("Processes that run have read theirs; give the passphrase to those that start, in GREYLAG_KEY_PASSPHRASE.")
