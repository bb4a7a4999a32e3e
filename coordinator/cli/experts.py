"""The verbs that show and decide: experts and releases."""

import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli.options import ActOption, DigestArgument, JsonOption, NumberArgument, ReasonOption, WorkspaceOption
from coordinator.cli.output import fields, now, opened_workspace, show_rows, table
from protocol.errors import Code, Refused
from protocol.programs import print_json, say

if TYPE_CHECKING:
    from coordinator.registry.tables import BundleRow
    from coordinator.review.asking import Tried

experts = typer.Typer(help="Show and decide what becomes of bundles.", no_args_is_help=True)
releases = typer.Typer(help="Show signed releases.", no_args_is_help=True)


@experts.command("ls")
def experts_ls(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """List every bundle in order of arrival.

    Example: greylag-coordinator experts ls --json
    """
    with opened_workspace(workspace) as open_:
        names = {row.key: row.name for row in open_.registry.contributors.all()}
        rows = [_expert(row, names) for row in open_.registry.bundles.all()]
    shown = ("sequence", "digest", "contributor", "name", "state", "release", "code")
    show_rows("experts", shown, rows, as_json=as_json)


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
        told = [fields(event, "number", "at", "step", "actor", "code", "message") for event in events]
        print_json({"expert": facts, "events": told})
    else:
        table(("field", "value"), facts.items())
        table(("at", "step", "by", "why"), ((e.at, e.step, e.actor, e.message) for e in events))


@experts.command("try")
def experts_try(
    digest: DigestArgument,
    text: Annotated[list[str], typer.Argument(help="Inputs; - reads one a line from stdin.")],
    *,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Longest answer, in tokens.")] = 64,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Ask a checked bundle alone, and the release without and with it, before anybody lets it in; nothing is changed.

    Example: greylag-coordinator experts try 3f9a0c21 "Translate to French: good morning"
    """
    inputs = [line.rstrip("\n") for line in sys.stdin or ()] if text == ["-"] else text
    tried = _try_out(workspace, digest, inputs, max_new_tokens)
    if as_json:
        print_json({"answers": [each._asdict() for each in tried]})
        return
    for each in tried:
        said = [("base", each.base), ("alone", each.alone), ("release", each.without), ("with it", each.within)]
        table(("who", "says"), [("asked", each.input), *said, ("its share", f"{each.share:.0%}")])


def _try_out(workspace: Path, digest: str, inputs: list[str], max_new_tokens: int) -> "list[Tried]":
    from tempfile import TemporaryDirectory

    from coordinator.cli.processes import load_model
    from coordinator.review.asking import check_tried, opener, try_out
    from coordinator.review.bundle_cache import Cache
    from coordinator.storage.blobs import Store
    from protocol.release import ReleasedExpert, read_release
    from router.base.fingerprint import check_base
    from router.query.request import check_inputs

    check_inputs(inputs)
    with opened_workspace(workspace) as open_, TemporaryDirectory() as scratch:
        bundles = open_.registry.bundles
        check_tried(row := bundles.by_prefix(digest))
        names = {entry.key: entry.name for entry in open_.registry.contributors.all()}
        newest = open_.registry.releases.find()
        released = read_release(newest.envelope, open_.pool).spec.experts if newest else ()
        check_base(open_.settings.base, open_.pool.spec.base, open_.workspace.fingerprint)
        cache = Cache(Path(scratch), Store(open_.settings.store))
        opened = opener(open_.workspace.bundles, cache)
        new = ReleasedExpert(name=row.name, contributor=names[row.contributor], bundle=row.digest)
        return try_out(
            load_model(open_, cache), released, new, lambda held: opened(bundles.by_prefix(held)), inputs,
            max_new_tokens=max_new_tokens,
        )  # fmt: skip


@experts.command("accept")
def experts_accept(digest: DigestArgument, *, act: ActOption = None, workspace: WorkspaceOption = Path()) -> None:
    """Let a quarantined bundle in; the worker then tries and releases it.

    Example: greylag-coordinator experts accept 3f9a0c21
    """
    _decide(workspace, digest, "accepted", act=act)


@experts.command("refuse")
def experts_refuse(digest: DigestArgument, *, reason: ReasonOption, workspace: WorkspaceOption = Path()) -> None:
    """Refuse a bundle that is not released yet.

    Example: greylag-coordinator experts refuse 3f9a0c21 --reason "The card does not say what it is for."
    """
    _decide(workspace, digest, "refused", reason)


@experts.command("yank")
def experts_yank(
    digest: DigestArgument,
    *,
    reason: ReasonOption,
    keep_key: Annotated[bool, typer.Option("--keep-key", help="Its owner may submit on.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Take a released bundle out for good, with all copies of it, and let its key wait for your approval.

    Example: greylag-coordinator experts yank 3f9a0c21 --reason "Answers with insults."
    """
    _decide(workspace, digest, "yanked", reason, pause=not keep_key)


@experts.command("unblock")
def experts_unblock(digest: DigestArgument, *, act: ActOption = None, workspace: WorkspaceOption = Path()) -> None:
    """Let the weights of a refused or yanked bundle come again, in a new bundle.

    Example: greylag-coordinator experts unblock 3f9a0c21
    """
    from coordinator.workspace.deciding import decided

    with opened_workspace(workspace) as open_:
        row = open_.registry.bundles.by_prefix(digest)
        if row.state not in ("refused", "yanked"):
            what = f"Bundle {row.digest[:16]} is {row.state}, and keeps no weights out for good."
            raise Refused(Code.STATE_CHANGE, what, "List the bundles with: greylag-coordinator experts ls")
        with decided(open_, "unblock", row.digest, act, about=[row.contributor], now=now()):
            open_.registry.sketches.lift(row.digest, now=now())
    say(f"The weights of bundle {row.digest[:16]} ({row.name}) may come again, in a new bundle.")


@releases.command("ls")
def releases_ls(*, as_json: JsonOption = False, workspace: WorkspaceOption = Path()) -> None:
    """List every release, oldest first.

    Example: greylag-coordinator releases ls
    """
    from protocol.release import read_release

    with opened_workspace(workspace) as open_:
        rows = []
        for row in open_.registry.releases.all():
            try:
                spec = read_release(row.envelope, open_.pool).spec
            except Refused as error:  # one rotten row hides no other
                say(f"Release {row.number} cannot be read: {error.message}")
                continue
            rows.append(
                fields(spec, "number", "created", "expires") | {"digest": row.digest, "experts": len(spec.experts)}
            )
    show_rows("releases", ("number", "digest", "experts", "created", "expires"), rows, as_json=as_json)


@releases.command("show")
def releases_show(
    number: NumberArgument = 0, *, as_json: JsonOption = False, workspace: WorkspaceOption = Path()
) -> None:
    """Show one release, by default the newest, and its experts in order.

    Example: greylag-coordinator releases show 3
    """
    from protocol.release import read_release

    with opened_workspace(workspace) as open_:
        row = open_.registry.releases.find(number)
        if row is None:
            what = f"There is no release {number}." if number else "There is no release yet."
            raise Refused(Code.RELEASE_UNKNOWN, what, "See: greylag-coordinator releases ls")
        release = read_release(row.envelope, open_.pool)
    if as_json:
        print_json({"digest": release.digest, "release": release.spec.model_dump(mode="json")})
    else:
        table(("expert", "contributor", "bundle"), ((e.name, e.contributor, e.bundle) for e in release.spec.experts))


def _decide(
    folder: Path, digest: str, step: Any, reason: str | None = None, *, pause: bool = False, act: Path | None = None
) -> None:
    from coordinator.workspace.deciding import decided

    with opened_workspace(folder) as open_:
        row = open_.registry.bundles.by_prefix(digest)
        why = None if reason is None else Refused(Code.DECLINED, reason)
        let = step == "accepted"
        with decided(open_, "accept", row.digest, act, about=[row.contributor], now=now()) if let else nullcontext():
            open_.registry.bundles.move(row.digest, step, actor="operator", reason=why, now=now(), pause=pause)
        key = open_.registry.contributors.find(row.contributor)
    if step == "refused":
        # Of no use to the worker any more.
        shutil.rmtree(open_.workspace.bundles / row.digest, ignore_errors=True)
        for kept in open_.workspace.figures.glob(f"*/{row.digest}"):
            kept.unlink(missing_ok=True)
    say(f"Bundle {row.digest[:16]} ({row.name}) is {step}.")
    if pause and key and key.state == "pending":
        say(f"{key.name} submits no more until: greylag-coordinator contributors approve {key.name}")


def _expert(row: "BundleRow", names: dict[str, str]) -> dict[str, Any]:
    known = fields(row, "sequence", "digest", "name", "state", "release", "code")
    return known | {"contributor": names[row.contributor]}
