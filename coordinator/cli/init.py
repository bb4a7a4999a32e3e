"""`init`: makes a workspace with its key, its signed pool and an empty registry."""

import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
import typer
from typer.core import TyperCommand, TyperOption

from coordinator.cli.options import JsonOption, WorkspaceOption
from coordinator.cli.output import now
from coordinator.cli.roles import one_machine, people, say_who_signs, take_founders
from protocol.errors import Code, Refused
from protocol.programs import print_json, say, with_flags_of

if TYPE_CHECKING:
    from coordinator.workspace.create import BaseFacts, Founding, Layers
    from router.methods.features.background import Kind


def _policy(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="Policy")


class InitVerb(TyperCommand):
    """The verb with a flag for each field of the recipe; they arrive in its `**recipe_flags`."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._own: list[click.Parameter] = vars(self).pop("params")

    @cached_property
    def params(self) -> list[click.Parameter]:  # type: ignore[override] # nobody puts another list there
        """Its flags."""
        from protocol.spec import recipe_flags  # pydantic: not before the verb, or its help, is asked for

        return [*self._own, *recipe_flags(TyperOption, _RECIPE)]


_RECIPE = "Recipe (default: the paper's)"
LayersOption = Annotated[
    str | None, typer.Option(help="Layers that experts touch, from 0: 15-29, 15- or 15; default: all.")
]
Enrolment = Literal["open", "approved", "invite"]
Admission = Literal["open", "reviewed"]
When = Literal["at-once", "evaluated"]
RowsOption = Annotated[Path | None, typer.Option(help="Public rows to try experts on, JSON Lines of input and target.")]
CanariesOption = Annotated[
    Path | None, typer.Option(help="Rows like them that stay here; the pool tells their digest alone.")
]
PublicTextOption = Annotated[
    Path | None, typer.Option(help="Public text like what is asked, one a line, that means are held against.")
]


def elsewhere(
    *,
    signer: Annotated[
        str | None, typer.Option(help="Who signs with the pool's key: 64 digits of its public half=URI.")
    ] = None,
) -> None:
    """The flag of a pool's key that lies behind a signer."""


@with_flags_of(one_machine, people, elsewhere)
def init(
    *,
    name: Annotated[str, typer.Option(help="The pool's name: a to z, digits, dots, dashes, underscores.")],
    base: Annotated[str, typer.Option(help="Base model: a folder or a Hugging Face id.")],
    enrolment: Annotated[Enrolment, _policy("Who may submit: any key, approved or invited ones.")] = "open",
    admission: Annotated[Admission, _policy("What is let in: all that passes, or what is accepted.")] = "open",
    max_rank: Annotated[int | None, _policy("Largest rank that is taken.")] = None,
    max_bundle_bytes: Annotated[int | None, _policy("Largest bundle that is taken, in bytes.")] = None,
    max_experts: Annotated[int | None, _policy("Experts that one contributor may hold.")] = None,
    promotion: Annotated[When, _policy("Release at once, or when contributors' data speak for it.")] = "at-once",
    method: Annotated[str | None, _policy("How releases route; default: phatgoose, with means an nnls method.")] = None,
    statistics: Annotated[list[str] | None, _policy("What bundles must tell: means, centroid; repeatable.")] = None,
    k: Annotated[int | None, _policy("Experts that answer a token, at every module.")] = None,
    max_norm: Annotated[float | None, _policy("Most that an expert may change a module, over the base's norm.")] = None,
    max_rise: Annotated[float | None, _policy("Most that it may raise the loss on your rows, in nats a token.")] = None,
    max_capture: Annotated[float | None, _policy("Most that one contributor takes, in fair shares.")] = None,
    settle_days: Annotated[int | None, _policy("Days for which newcomers count as one contributor there.")] = None,
    release_days: Annotated[int | None, _policy("Days until a release expires; it is renewed before.")] = None,
    listen: Annotated[str | None, typer.Option(help="Address of `serve`, host:port; default: loopback only.")] = None,
    database: Annotated[str | None, typer.Option(help="URL of the registry; default: SQLite here.")] = None,
    store: Annotated[str | None, typer.Option(help="Folder or URL of the bundles' bytes; default: here.")] = None,
    probe: Annotated[Path | None, typer.Option(help="Public text to try experts on, one input a line.")] = None,
    rows: RowsOption = None,
    canaries: CanariesOption = None,
    public_text: PublicTextOption = None,
    layers: LayersOption = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = Path(),
    **recipe_flags: Any,
) -> None:
    """Make a workspace: keys, under the passphrase in GREYLAG_KEY_PASSPHRASE if any, and a pool, signed for good.

    Example: greylag-coordinator init -w pool --single --name notes --base google/t5-v1_1-small --rank 8
    """
    from coordinator.workspace.create import TrialFiles, check_absent, found, read_layers
    from coordinator.workspace.paths import CoordinatorWorkspace
    from protocol.wire.grpc_client import check_address

    check_absent(place := CoordinatorWorkspace(workspace))
    if listen:
        check_address(listen)
    keys, method = _founding(recipe_flags), _checked_method(method, statistics or ())
    kinds = _kinds(method, statistics or (), public_text)
    touched = None if layers is None else read_layers(layers)
    policy = {
        "enrolment": enrolment, "admission": admission, "max_rank": max_rank, "promotion": {"when": promotion},
        "max_bundle_bytes": max_bundle_bytes, "max_experts_per_contributor": max_experts, "release_days": release_days,
        "max_capture": max_capture, "settle_days": settle_days, "statistics": tuple(statistics or ()),
        "review": _given({"max_norm": max_norm, "max_rise": max_rise}),
    }  # fmt: skip
    settings = {"listen": listen, "database": database, "store": store}
    given = {"recipe": _given(recipe_flags), "policy": _given(policy), "routing": _given({"method": method, "k": k})}
    trial = TrialFiles(probe, rows, canaries)
    study = partial(_study, base, kinds, public_text, touched)
    pool = found(place, study, name=name, trial=trial, settings=settings, choices=given, keys=keys, now=now())
    say(f"Pool {pool.spec.name} ({len(pool.spec.modules)} modules) is in {workspace.resolve()}.")
    say(f"Its key is {pool.spec.coordinator}. Next: greylag-coordinator serve, greylag-coordinator worker")
    say_who_signs(place)
    if as_json:
        print_json({"name": pool.spec.name, "pool": pool.digest, "key": pool.spec.coordinator})


def _founding(flags: dict[str, Any]) -> "Founding":
    """Take where keys are to be out of a verb's flags (`SETTINGS_INVALID` or a code of a key)."""
    from coordinator.workspace.create import Founding
    from protocol.keys.passphrase import PASSPHRASE_VARIABLE
    from protocol.signing import PublicKey

    signer = flags.pop("signer")
    public, _, uri = (signer or "").partition("=")
    behind = (PublicKey.from_hex(public), uri) if signer else None
    return Founding(take_founders(flags), behind, os.environ.get(PASSPHRASE_VARIABLE) or None)


def _study(base: str, kinds: tuple["Kind", ...], public_text: Path | None, layers: "Layers | None") -> "BaseFacts":
    from coordinator.workspace.create import study_base
    from router.base.progress import show_bars

    show_bars()
    say(f"Reading the base model {base} ...")
    return study_base(base, kinds, public_text, layers)


def _kinds(method: str | None, statistics: Sequence[str], public_text: Path | None) -> tuple["Kind", ...]:
    """List the statistics of public text that the pool's methods read, which are worked out now and for everybody."""
    if "means" in statistics:
        return ("pooled", "token") if method in ("nnls-token", "nnls-gates") else ("pooled",)
    if public_text:
        hint = "Add --statistics means, or leave it out."
        raise Refused(Code.SETTINGS_INVALID, "Only means are held against public text.", hint)
    return ()


def _checked_method(method: str | None, statistics: Sequence[str]) -> str | None:
    """Return how releases route, None for what the base decides; refuse what no router could run."""
    from router.methods import NEEDS, find_method

    if method is None:
        return None
    find_method(method)
    needed = NEEDS.get(method)
    if needed is not None and needed not in statistics:
        what = f"The method {method} routes only among experts that tell {needed} of their data."
        raise Refused(Code.SETTINGS_INVALID, what, f"Add --statistics {needed}, so that every bundle must tell them.")
    return method


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}
