"""One request's mixture as a plain LoRA, for engines that take one adapter.

A routed model weighs experts anew for every token and module. What is exported is its mean: at each module
the experts that the request's tokens were given, each at its mean weight, as one pair of factors,

    sum over z of w_z s_z B_z A_z = B A,   A the experts' A_z stacked, B their w_z s_z B_z side by side,

cut down to the rank asked for by a singular value decomposition, which loses least in the Frobenius norm
(Eckart and Young, 1936).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from protocol.adapter_config import TASKS
from protocol.bundle import ADAPTER_WEIGHTS
from protocol.errors import Code, Refused
from protocol.files.atomic import new_folder
from protocol.openssf.model_signature import ModelSigner, sign_model
from protocol.tensors import ADAPTER_PREFIX
from router.base.fingerprint import display_name
from router.base.loading import Base
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.query.answer import ModuleRoute
from router.query.attribution import expert_shares, mean_weights


@dataclass(frozen=True)
class MergedModule:
    """One LoRA module that stands for several."""

    a: Tensor
    """[r, d] float32."""
    b: Tensor
    """[o, r] float32; weights and scalings are in it."""
    kept: float
    """Share of the exact sum's squared Frobenius norm that is left at this rank."""
    norm: float
    """Squared Frobenius norm of the exact sum."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    modules: int
    rank: int
    kept: float
    """Share of the squared Frobenius norm of all modules together."""
    shares: dict[str, float]
    """Each expert's share of the request's routing weight, largest first."""


def export_lora(
    folder: Path,
    routes: Sequence[ModuleRoute],
    experts: Sequence[Expert],
    *,
    rank: int,
    base: Base,
    signer: ModelSigner | None = None,
) -> Exported:
    """Write a request's mean mixture as PEFT writes a LoRA; the folder appears whole or not at all.

    Routes count into the experts. The rank is that of every module of the export that is wide enough for it.
    With a signer, a `model.sig` over all files lies beside them.

    Raises:
        Refused: `WORKSPACE_EXISTS` if there is something in the folder, `KIND_UNSUPPORTED` if an expert that was
            chosen is no sum of B A, `REQUEST_INVALID` if no expert was chosen at all.
    """
    merged = {
        path: merge(_chosen(path, weights.tolist(), experts), rank)
        for path, weights in mean_weights(routes, len(experts)).items()
    }
    if not merged:
        hint = "Choose another method than base."
        raise Refused(Code.REQUEST_INVALID, "No expert was chosen for this request.", hint)
    rank = max(len(module.a) for module in merged.values())
    with new_folder(folder) as partial:
        _write(partial, merged, rank, base)
        if signer is not None:
            sign_model(partial, signer, name=folder.resolve().name)
    whole = sum(module.norm for module in merged.values())
    left = sum(module.kept * module.norm for module in merged.values())
    shares = expert_shares(routes, [expert.full_name for expert in experts])
    return Exported(len(merged), rank, left / whole if whole else 1.0, shares)


def merge(parts: Sequence[tuple[float, ExpertModule]], rank: int) -> MergedModule:
    """Add up weighted modules, A [r, d] and B [o, r] of any ranks, and keep the best approximation of a rank.

    Its rank is less where the sum has no more.
    """
    a = torch.cat([part.a.double() for _, part in parts])
    b = torch.cat([part.b.double() * (weight * part.scaling) for weight, part in parts], dim=1)
    # Through two thin factorisations, so that the [o, d] product is never made.
    left, left_small = torch.linalg.qr(b)
    right, right_small = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(left_small @ right_small.T)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    norm = s.square().sum().item()
    return MergedModule(
        (root.unsqueeze(1) * (v[:kept] @ right.T)).float().contiguous(),
        (left @ u[:, :kept] * root).float().contiguous(),
        s[:kept].square().sum().item() / norm if norm else 1.0,
        norm,
    )


def _chosen(path: str, weights: Sequence[float], experts: Sequence[Expert]) -> list[tuple[float, ExpertModule]]:
    chosen = []
    for expert, weight in zip(experts, weights, strict=True):
        if weight:
            part = expert.modules[path]
            if not part.plain:
                raise Refused(
                    Code.KIND_UNSUPPORTED,
                    f"At {path} expert {expert.full_name} is more than a product B A, so no LoRA equals it.",
                    "Leave it out with --deny, or serve the routed model itself.",
                )
            chosen.append((weight, part))
    return chosen


def _write(folder: Path, merged: Mapping[str, MergedModule], rank: int, base: Base) -> None:
    from peft import LoraConfig  # noqa: PLC0415 - ten seconds of import that only this needs

    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(merged), lora_dropout=0.0, bias="none",
        task_type=TASKS[base.architecture], base_model_name_or_path=display_name(base.source), inference_mode=True,
    )  # fmt: skip
    config.save_pretrained(str(folder))
    tensors = {}
    for path, module in merged.items():
        # One rank everywhere, filled up with zeros: engines need not know of patterns.
        missing = rank - len(module.a)
        tensors[f"{ADAPTER_PREFIX}{path}.lora_A.weight"] = torch.nn.functional.pad(module.a, (0, 0, 0, missing))
        tensors[f"{ADAPTER_PREFIX}{path}.lora_B.weight"] = torch.nn.functional.pad(module.b, (0, missing))
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
