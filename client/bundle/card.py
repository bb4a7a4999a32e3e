"""The model card of a bundle."""

from client.runs.record import RunRecord
from protocol.adapters import Kind
from protocol.documents import Pool
from protocol.spec import Promise, Statistics

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
    "lora": "A LoRA expert", "rslora": "A rank-stabilised LoRA expert", "dora": "A DoRA expert",
    "ia3": "An (IA)3 expert", "bottleneck": "A bottleneck adapter",
}  # fmt: skip


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
    # It reads the environment on being imported, which `quiet_libraries` prepares.
    from huggingface_hub import ModelCard, ModelCardData  # noqa: PLC0415

    recipe, first = record.recipe, next(iter(record.modules.values()))
    steps = {"expert": record.steps["joint"]} if record.joint else record.steps
    how = f"steps of {recipe.batch_size}, learning rate {recipe.learning_rate}"
    base, pool_name, ia3 = pool.spec.base.name, pool.spec.name, first.kind == "ia3"
    tags = [first.kind, "greylag", "phatgoose"]
    card = ModelCard.from_template(
        ModelCardData(base_model=base, library_name="peft", license=license_id, tags=tags),
        template_str=_CARD,
        name=record.name,
        pool=pool_name,
        base=base,
        what=_WHAT[first.kind],
        modules=len(record.modules),
        size="" if ia3 else f", rank {_range(record, 'rank')}, alpha {_range(record, 'alpha')}",
        expert="an adapter that was there already" if record.adopted else f"{steps['expert']} {how}",
        gates="together with the expert" if record.joint else f"{steps['gates']} {how}",
        losses="not told" if record.privacy else record.told_losses(),
        privacy=_privacy(record.privacy),
        use=_OWN if first.kind == "bottleneck" else _PEFT,
        rows=record.rows,
        told=_told(statistics),
    )
    return str(card)


def _privacy(privacy: Promise | None) -> str:
    if privacy is None:
        return "none"
    return (
        f"epsilon {privacy.epsilon:g}, delta {privacy.delta:g} for each example, over expert and gates together "
        f"(DP-SGD, gradients clipped at {privacy.clip:g})"
    )


def _range(record: RunRecord, field: str) -> str:
    sizes = [getattr(module, field) for module in record.modules.values()]
    low, high = min(sizes), max(sizes)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
