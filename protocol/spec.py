"""What a pool asks for and what an expert is: facts only, no tensors.

`PoolSpec` is written and signed by the coordinator; `ExpertSpec` by the contributor. Together they
decide, without looking at a single weight, which tensors a bundle must hold.
"""

import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from protocol.adapters import Activation, Alpha, Kind, Module, Rank, Shape
from protocol.statement import SHA256, Strict

Flag = TypeVar("Flag")
POOL_TYPE = "https://greylag.org/pool/v1"
TIMESTAMP_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")


def _is_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        allowed = "lower-case letters, digits, dots, dashes and underscores"
        raise ValueError(f"a name is 1 to 64 {allowed}, and begins and ends with a letter or digit")
    return text


def _exists(text: str) -> str:
    datetime.strptime(text, TIMESTAMP_FORMAT).replace(tzinfo=UTC)
    return text


Sha256 = Annotated[str, StringConstraints(pattern=f"^{SHA256}$")]
KeyHex = Sha256
Name = Annotated[str, AfterValidator(_is_name)]
ModulePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=255)]
Timestamp = Annotated[
    str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"), AfterValidator(_exists)
]
Line = Annotated[str, StringConstraints(pattern=r"^[^\p{C}\p{Zl}\p{Zp}]*$")]
"""Text of one line for a terminal: no control characters or line separators, none that turn the reading direction."""
Version = Annotated[int, Field(ge=1, le=1)]
"""Of a document's schema. Not a Literal: that would take `true` and `1.0` too."""
Dtype = Literal["float32", "bfloat16", "float16"]
Architecture = Literal["encoder-decoder", "decoder-only"]


class BaseModelRef(Strict):
    """A base model by content: two refs with equal digests are the same model, whatever its name."""

    name: Annotated[Line, StringConstraints(min_length=1, max_length=200)]
    """Hugging Face id or folder name; informative."""
    config: Sha256
    weights: Sha256
    tokenizer: Sha256
    tokenizer_settings: Annotated[Sha256 | None, Field(exclude_if=lambda digest: digest is None)] = None
    """Special tokens, chat templates and the like; documents from before there was this do not tell."""

    def differing_part(self, other: "BaseModelRef") -> str | None:
        """Name the first part whose content differs, of those that both tell; None if the two are the same model."""
        for part in ("config", "weights", "tokenizer", "tokenizer_settings"):
            mine, theirs = getattr(self, part), getattr(other, part)
            if mine and theirs and mine != theirs:
                return part
        return None


class Recipe(Strict):
    """How an expert and its gates are trained; the defaults are the paper's.

    Source: arXiv 2402.05859, section 4.1 and its published code (rank 16, AdamW 5e-3, warm-up 6 %,
    1000 steps for the expert and 100 for the gates, LoRA scale 1 / r, which is `alpha = 1`), and section 4.2 (1000 rows
    for statistics, which of fewer than 50 would tell too much of single ones).
    """

    # The docstrings are also what the doors say of their flags.
    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Kind = "lora"
    """What an expert is: lora, rslora, dora, ia3 or bottleneck."""
    rank: Rank = 16
    """Rank r of every module; (IA)3 has none."""
    alpha: Alpha = 1.0
    """An expert is scaled by alpha / rank, for rslora by alpha / sqrt(rank)."""
    activation: Activation = "relu"
    """What stands inside a bottleneck adapter: relu or gelu."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-3
    """Peak learning rate of AdamW."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.06
    """Share of the steps over which the learning rate rises, 0 to 1."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight decay of AdamW."""
    expert_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Optimiser steps for the expert."""
    gate_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Optimiser steps for its gates."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Examples a step."""
    eval_every: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Steps between two looks at the held-out rows; the best checkpoint is kept."""
    patience: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Looks without a better loss after which a phase stops; 0 trains all the steps."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the contributor's rows held out, 0 to 1."""
    max_input_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Longest accepted input, in tokens."""
    max_target_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Longest accepted target, in tokens."""
    statistics_rows: Annotated[int, Field(ge=50, le=1_000_000)] = 1000
    """Rows that statistics of the data are told of, at most, spread over the file."""


def recipe_flags(option: Callable[..., Flag], panel: str, without: Collection[str] = ()) -> list[Flag]:
    """Have a door's library make a flag of each field of a recipe, shown in a panel of its help, but for some."""
    return [
        option(
            param_decls=[name, f"--{name.replace('_', '-')}"], type=type(field.default), help=field.description or "",
            rich_help_panel=panel,
        )
        for name, field in Recipe.model_fields.items()
        if name not in without
    ]  # fmt: skip


class Promotion(Strict):
    """When a list of experts becomes the newest release."""

    when: Literal["at-once", "evaluated"] = "at-once"
    """`evaluated`: it is a candidate first, and the contributors' held-out data decide."""
    min_nodes: Annotated[int, Field(ge=1)] = 2
    """Fewer answers than this decide nothing."""
    margin: Annotated[float, Field(ge=0)] = 0.05
    """A node that loses more than this, in nats a token, against the newest release counts as hurt."""
    max_hurt: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Largest share of the answering nodes that may be hurt; one of three or more always may, unless this is 0."""


class Review(Strict):
    """How far an expert may go before the coordinator turns it away, or asks a person.

    Norms are spectral, those of what an expert adds at a module over those of the base's weight there. By recipes from
    the paper's to rank 64, alpha 128 and a learning rate of 5e-3, experts were trained that have 0.01 to 42.
    """

    max_norm: Annotated[float, Field(gt=0)] = 64.0
    """An expert that changes a module by more is refused."""
    unusual_norm: Annotated[float, Field(ge=1)] = 8.0
    """One that changes a module by so many times what the median of the pool's others does waits for an operator ..."""
    deviations: Annotated[float, Field(ge=0)] = 6.0
    """... unless that is within so many median absolute deviations of the others' logarithms, scaled as a normal's."""
    headroom: Annotated[float, Field(ge=1)] = 8.0
    """What the largest number of a dtype is at least, over the largest that the model meets with the expert alone."""
    max_rise: Annotated[float, Field(ge=0)] = 1.0
    """Most that the loss on the operator's rows may rise by the expert in the pool, in nats a token ..."""
    max_rise_alone: Annotated[float, Field(ge=0)] = 4.0
    """... and over the base's, with the expert alone at weight one, who may know nothing of what is asked there."""
    canaries: Sha256 | None = None
    """Digest of rows that the operator keeps to himself, and that count as his public ones do."""


class Policy(Strict):
    """Who may contribute, how much, and who decides."""

    enrolment: Literal["open", "approved", "invite"] = "open"
    """`open`: any key may submit; `approved`: an operator approves each key that comes without an invite; `invite`: a
    new key needs one."""
    admission: Literal["open", "reviewed"] = "open"
    """`open`: a bundle that passes every check is accepted; `reviewed`: an operator accepts it."""
    max_rank: Rank = 64
    max_bundle_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    max_experts_per_contributor: Annotated[int, Field(ge=1)] = 8
    max_capture: Annotated[float, Field(ge=1, le=1000)] = 1.5
    """Most that one contributor's experts, or experts that choose alike, take of the probe together, in fair shares."""
    settle_days: Annotated[int, Field(ge=0, le=3650)] = 7
    """How long contributors count as one there from their first release on, where nobody looks at keys or bundles."""
    release_days: Annotated[int, Field(ge=1, le=3650)] = 30
    """How long a release may be taken for the newest one."""
    apps: tuple[Sha256, ...] = ()
    """Digests of the app bundles under which campaigns may run; none, no campaigns."""
    promotion: Promotion = Promotion()
    review: Review = Review()
    statistics: tuple[Literal["means", "centroid"], ...] = ()
    """What every bundle must tell about its data, for the pool's routing method; contributors agree or stay away."""


class Routing(Strict):
    """How a release routes unless a request says otherwise."""

    method: Name = "phatgoose"
    k: Annotated[int, Field(ge=1, le=64)] = 2
    """Experts a token, at every module."""


class StatisticsFile(Strict):
    """What public text looks like inside the base, by content; `router.methods.features.pool_statistics` reads it."""

    sha256: Sha256
    size: Annotated[int, Field(ge=1, le=1 << 30)]
    """In bytes."""


class PoolSpec(Strict):
    """One base model, one recipe, one policy."""

    version: Version = 1
    name: Name
    base: BaseModelRef
    architecture: Architecture
    modules: Annotated[dict[ModulePath, Shape], Field(min_length=1)]
    """The linear modules of the base that an expert may touch: all of them, or those of some layers."""
    recipe: Recipe = Recipe()
    policy: Policy = Policy()
    routing: Routing = Routing()
    statistics: StatisticsFile | None = None
    """Against which methods hold experts' means; None where every router works out its own."""
    coordinator: KeyHex
    """Public key that signs this document, releases and receipts."""
    created: Timestamp


class Centroid(Strict):
    """The mean of an expert's training inputs, as an embedding model sees them."""

    embedding: BaseModelRef | None = None
    """The embedding model; null for the pool's base model itself."""
    width: Annotated[int, Field(ge=1, le=1 << 16)]


class Noise(Strict):
    """How private shared means are: one row in another's place changes what is told little (differential privacy).

    Of the means alone: weights and gates have no such bound.
    """

    epsilon: Annotated[float, Field(gt=0, le=100)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    rows: Annotated[int, Field(ge=1)]
    """Rows that were averaged; taken for known."""


class Means(Strict):
    """Mean inputs of modules."""

    modules: Annotated[tuple[ModulePath, ...], Field(min_length=1)] | None = None
    """Whose; null for all of the expert's."""
    noise: Noise | None = None
    """What was added to them; null for nothing."""


class Statistics(Strict):
    """What a contributor chose to tell about the data, beside what weights and gates tell."""

    means: Means | None = None
    """Mean inputs of modules, for methods by means and by mixtures."""
    centroid: Centroid | None = None
    """Where the inputs lie, for the method retrieval."""


class Promise(Strict):
    """What a contributor promises to every example: differential privacy of everything that was trained on it."""

    epsilon: Annotated[float, Field(gt=0, le=1000)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    clip: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Norm to which the gradient of each example was clipped."""


class ExpertSpec(Strict):
    """What a bundle holds, as its contributor signs it."""

    version: Version = 1
    name: Name
    pool: Sha256
    """Digest of the pool's signed payload: a bundle is for one pool only."""
    base: BaseModelRef
    contributor: KeyHex
    modules: Annotated[dict[ModulePath, Module], Field(min_length=1)]
    """All of one kind, since one adapter_config.json speaks for all of them."""
    dtype: Dtype
    """Dtype of the adapter's tensors; gates and statistics are always float32."""
    joint: bool = False
    """Whether the gates were trained together with the expert, not after it as the method wants."""
    privacy: Promise | None = None
    """By opacus' accountant, over expert and gates together; None promises nothing."""
    statistics: Statistics = Statistics()
    license: Annotated[Line, StringConstraints(min_length=1, max_length=100)]
    supersedes: Sha256 | None = None
    """Digest of this contributor's earlier bundle that this one replaces."""
    created: Timestamp
    tool: Annotated[Line, StringConstraints(max_length=100)]

    @property
    def kind(self) -> Kind:
        """What the expert is."""
        return next(iter(self.modules.values())).kind

    @property
    def told(self) -> tuple[ModulePath, ...]:
        """Modules whose mean input is told."""
        means = self.statistics.means
        return () if means is None else tuple(self.modules) if means.modules is None else means.modules

    @model_validator(mode="after")
    def _adds_up(self) -> "ExpertSpec":
        if strange := set(self.told).difference(self.modules):
            raise ValueError(f"the mean of {min(strange)} is told, which the expert leaves alone")
        if len(kinds := {module.kind for module in self.modules.values()}) > 1:
            raise ValueError(f"an expert is of one kind, not of {' and '.join(sorted(kinds))}")
        for path, module in self.modules.items():
            if module.rank > min(module.d_in, module.d_out):
                raise ValueError(f"rank {module.rank} of {path} is larger than the module is wide")
        return self
