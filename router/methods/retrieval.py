"""Retrieval: one expert for the whole query, the one whose training inputs lie nearest.

Source: a baseline of arXiv 2402.05859, section 4.2, after arXiv 2302.03202: the query's sentence embedding against
those of 1000 examples of each expert, by cosine. Here an expert tells one vector, the mean of its inputs' embeddings,
and only if its contributor agreed: embeddings of single examples tell too much about them.
"""

import torch

from protocol.errors import Code
from protocol.spec import BaseModelRef
from router.base.batching import read_prompts
from router.layer.routed_linear import RoutingPlan
from router.methods.base_only import BaseOnly
from router.methods.context import MethodContext
from router.methods.features.embedder import Embedder
from router.methods.single_expert import SingleExpert


def nearest(asked: MethodContext) -> list[RoutingPlan]:
    """Plan each input for the expert nearest to it; of equals the first.

    Raises:
        Refused: `STATISTICS_MISSING`.
    """
    experts = asked.pool.experts
    embedder = asked.seen.embedder
    _check_centroids(asked, embedder)
    if not experts or not asked.inputs:
        return [RoutingPlan(asked.pool, BaseOnly())] * len(asked.inputs)
    cosines = (
        embedder.embed([prompt.text for prompt in read_prompts(asked.seen.mixtures.reader.base, asked.inputs)])
        @ torch.stack([expert.centroid for expert in experts if expert.centroid is not None]).T
    )
    # A stable sort, since argmax leaves open which of equals it takes.
    first = cosines.sort(dim=1, descending=True, stable=True).indices[:, 0].tolist()
    plans = {at: RoutingPlan(asked.pool, SingleExpert(experts[at])) for at in set(first)}
    return [plans[at] for at in first]


def _check_centroids(asked: MethodContext, embedder: Embedder) -> None:
    experts, ours, missing = asked.pool.experts, embedder.ref, Code.STATISTICS_MISSING
    asked.refuse_any(
        [expert for expert in experts if expert.centroid is None],
        missing,
        "retrieval needs a centroid of every expert; {n} tell none",
        "Deny these, or choose another method; contributors share one with: greylag-client train --share centroid",
    )
    named = f"the embedding model {ours.name}" if ours else "the base model"
    asked.refuse_any(
        [expert for expert in experts if _differ(expert.embedding, ours)],
        missing,
        f"Texts are embedded by {named} here; {{n}} experts tell where another model put theirs",
        "Deny these, or set the embedding model that they were trained with.",
    )
    asked.refuse_any(
        [expert for expert in experts if expert.centroid is not None and len(expert.centroid) != embedder.width],
        missing,
        f"{{n}} experts tell a centroid that is not {embedder.width} numbers wide, as those of {named} are",
        "Deny these, or choose another method.",
    )


def _differ(theirs: BaseModelRef | None, ours: BaseModelRef | None) -> bool:
    if theirs is None or ours is None:
        return theirs is not ours
    return theirs.differing_part(ours) is not None
