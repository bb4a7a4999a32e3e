"""The verbs that keep a workspace in order: `fsck` and `migrate`."""

from pathlib import Path

from coordinator.cli.output import JsonOption, WorkspaceOption, configure_logs
from protocol.errors import Code, Refused
from protocol.programs import print_json, say


def fsck(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """Verify every stored byte, and drop what no bundle needs. Stop serve first.

    Example: greylag-coordinator fsck -w pool
    """
    from dataclasses import asdict

    from coordinator.storage.blobs import Store
    from coordinator.workspace.context import opened
    from coordinator.workspace.fsck import check_store
    from coordinator.workspace.locks import exclusive
    from coordinator.workspace.paths import CoordinatorWorkspace
    from coordinator.workspace.settings import load

    configure_logs(as_json=False)
    place = CoordinatorWorkspace(workspace)
    settings = load(place)
    with exclusive(place, "serve"), opened(place, settings) as open_:
        findings = check_store(open_.registry, Store(settings.store))
    say(
        f"{findings.files} files are needed: {len(findings.missing)} missing, {len(findings.damaged)} damaged. "
        f"Dropped: {len(findings.orphans)} orphans, {findings.leftovers} incomplete files."
    )
    if as_json:
        print_json({"healthy": findings.healthy, **asdict(findings)})
    if not findings.healthy:
        first = (findings.missing + findings.damaged)[0]
        raise Refused(
            Code.DIGEST_MISMATCH,
            f"The store lost or changed {len(findings.missing) + len(findings.damaged)} files, such as {first[:16]}.",
            "Restore them from a copy of the store, or yank the bundles that need them.",
        )


def migrate(*, workspace: WorkspaceOption = Path()) -> None:
    """Bring an older registry to the schema of this version. Stop serve and worker first.

    Example: greylag-coordinator migrate -w pool
    """
    from coordinator.registry.registry import Registry
    from coordinator.workspace.locks import exclusive
    from coordinator.workspace.paths import CoordinatorWorkspace
    from coordinator.workspace.settings import load

    configure_logs(as_json=False)
    place = CoordinatorWorkspace(workspace)
    settings = load(place)
    with exclusive(place, "serve"), exclusive(place, "worker"):
        Registry.open(settings.database, migrate=True).close()
    say("The registry has the schema of this version.")
