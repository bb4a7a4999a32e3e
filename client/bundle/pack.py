"""From a finished run to a signed bundle. Knows weights and facts, never an example."""

import shutil
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from client.runs.record import ADAPTER, LOSSES, RunRecord, read_record, read_statistics
from protocol import bundle
from protocol.adapters import Ia3Module, Kind, Module
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, GATES, Bundle
from protocol.compatibility import check_tensors
from protocol.errors import Code, Refused
from protocol.release import Pool, timestamp
from protocol.signing import Identity
from protocol.spec import ExpertSpec, Promise, Statistics

_CARD = """\
---
{{ card_data }}
---

# {{ name }}

{{ what }} with PHATGOOSE gates for the Greylag pool **{{ pool }}**. The data stayed with its
contributor.

| | |
|---|---|
| base model | {{ base }} |
| modules | {{ modules }}{{ size }} |
| expert | {{ expert }} |
| gates | {{ gates }} |
| examples | {{ rows }} |
| loss on held-out examples | {{ losses }} |
| told about the data | {{ told }} |
| differential privacy | {{ privacy }} |

{{ use }}
"""


_PEFT = "The adapter loads in plain PEFT: `PeftModel.from_pretrained(base_model, folder)`."
_OWN = "PEFT has no bottleneck adapters, so plain PEFT does not load this one; Greylag does."
_WHAT: dict[Kind, str] = {
    "lora": "A LoRA expert",
    "rslora": "A rank-stabilised LoRA expert",
    "dora": "A DoRA expert",
    "ia3": "An (IA)3 expert",
    "bottleneck": "A bottleneck adapter",
}


def pack_run(
    run: Path,
    shared: Path,
    bundles: Path,
    pool: Pool,
    identity: Identity,
    *,
    license_id: str,
    supersedes: str | None,
    now: datetime,
) -> Bundle:
    """Write and sign a bundle; it appears whole under its expert's name.

    Args:
        run: Folder of a finished run.
        shared: Folder with its gates and what is shared with them.
        bundles: Folder of all bundles.
        pool: The pool it is for.
        identity: Who signs.
        license_id: License of the expert.
        supersedes: Digest of this contributor's bundle of the same name that it replaces.
        now: Time of signing.

    Raises:
        Refused: `NOT_TRAINED`, `WRONG_POOL`, or a tensor's code if the run's files are damaged.
    """
    record = read_record(run)
    if record is None:
        raise Refused(Code.NOT_TRAINED, f"The run {run.name} is not finished.", "Run greylag-client train again.")
    if record.pool != pool.digest:
        raise Refused(Code.WRONG_POOL, "The expert was trained for another pool.", "Run greylag-client train again.")
    statistics = read_statistics(shared)
    spec = ExpertSpec(
        name=record.name,
        pool=pool.digest,
        base=pool.spec.base,
        contributor=identity.public.hex,
        modules=record.modules,
        dtype=record.dtype,
        joint=record.joint,
        privacy=record.privacy,
        statistics=statistics,
        license=license_id,
        supersedes=supersedes,
        created=timestamp(now),
        tool=f"greylag-client {tool_version()}",
    )
    partial = bundles / f".{record.name}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for source in (run / ADAPTER / ADAPTER_CONFIG, run / ADAPTER / ADAPTER_WEIGHTS, shared / GATES):
            shutil.copyfile(source, partial / source.name)
        (partial / CARD).write_text(render_card(record, pool, license_id, statistics), encoding="utf-8")
        check_tensors(bundle.pack(partial, spec, identity))
        _put(partial, bundles / record.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return bundle.open_bundle(bundles / record.name)


def _told(statistics: Statistics) -> str:
    told = []
    if means := statistics.means:
        whose = "every module" if means.modules is None else f"{len(means.modules)} modules"
        how = f", with noise (epsilon {means.noise.epsilon:g}, delta {means.noise.delta:g})" if means.noise else ""
        told.append(f"the mean input of {whose}{how}")
    if statistics.centroid:
        by = statistics.centroid.embedding.name if statistics.centroid.embedding else "the base model"
        told.append(f"the centroid of its inputs by {by}")
    return " and ".join(told) or "nothing"


def render_card(record: RunRecord, pool: Pool, license_id: str, statistics: Statistics) -> str:
    """Write the model card from facts alone."""
    recipe, first = record.recipe, next(iter(record.modules.values()))
    steps = {"expert": record.steps["joint"]} if record.joint else record.steps
    how = f"steps of {recipe.batch_size}, learning rate {recipe.learning_rate}"
    data = ModelCardData(
        base_model=pool.spec.base.name,
        library_name="peft",
        license=license_id,
        tags=[first.kind, "greylag", "phatgoose"],
    )
    card = ModelCard.from_template(
        data,
        template_str=_CARD,
        name=record.name,
        pool=pool.spec.name,
        base=pool.spec.base.name,
        what=_WHAT[first.kind],
        modules=len(record.modules),
        size=_size(record.modules.values()),
        expert="an adapter that was there already" if record.adopted else f"{steps['expert']} {how}",
        gates="together with the expert" if record.joint else f"{steps['gates']} {how}",
        losses="not told" if record.privacy else _losses(record),
        privacy=_privacy(record.privacy),
        use=_OWN if first.kind == "bottleneck" else _PEFT,
        rows=record.rows,
        told=_told(statistics),
    )
    return str(card)


def _losses(record: RunRecord) -> str:
    return ", ".join(f"{loss:.3f} {LOSSES[name]}" for name, loss in record.losses.items())


def _privacy(privacy: Promise | None) -> str:
    if privacy is None:
        return "none"
    return (
        f"epsilon {privacy.epsilon:g}, delta {privacy.delta:g} for each example, over expert and gates together "
        f"(DP-SGD, gradients clipped at {privacy.clip:g})"
    )


def _size(modules: Iterable[Module]) -> str:
    """Name the ranks and alphas of an expert; (IA)3 has none."""
    ranked = [module for module in modules if not isinstance(module, Ia3Module)]
    if not ranked:
        return ""
    return f", rank {_range([each.rank for each in ranked])}, alpha {_range([each.alpha for each in ranked])}"


def _range(sizes: Sequence[float]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _put(partial: Path, folder: Path) -> None:
    """Rename a finished folder into its place, over an older one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def tool_version() -> str:
    """Version of the installed package; 0 from a source tree that was never installed."""
    try:
        return version("greylag")
    except PackageNotFoundError:
        return "0"
