"""Documents of every kind, small and the same on every run; no torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save_file

from protocol import tensors
from protocol.adapters import LoraModule, Shape
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, GATES
from protocol.documents import Pool, sign_pool
from protocol.release import ReleasedExpert, ReleaseSpec
from protocol.signing import Identity
from protocol.spec import BaseModelRef, ExpertSpec, PoolSpec, Routing

CREATED = "2026-11-22T12:00:00Z"
EXPIRES = "2026-12-22T12:00:00Z"
BASE = BaseModelRef(name="tiny", config="1" * 64, weights="2" * 64, tokenizer="3" * 64)
MODULES = {
    "encoder.q": LoraModule(d_in=8, d_out=6, rank=2, alpha=4.0),
    "v": LoraModule(d_in=3, d_out=5, rank=1, alpha=1),
}


def identity(seed: int) -> Identity:
    return Identity(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


COORDINATOR, CONTRIBUTOR, STRANGER = identity(1), identity(2), identity(3)


def pool(signer: Identity = COORDINATOR, **changes: Any) -> Pool:
    fields = {
        "name": "pool",
        "base": BASE,
        "architecture": "encoder-decoder",
        "modules": {path: Shape(d_in=module.d_in, d_out=module.d_out) for path, module in MODULES.items()},
        "coordinator": signer.public.hex,
        "created": CREATED,
    }
    return sign_pool(PoolSpec.model_validate(fields | changes), signer)


def expert(**changes: Any) -> ExpertSpec:
    fields = {
        "name": "expert",
        "pool": pool().digest,
        "base": BASE,
        "contributor": CONTRIBUTOR.public.hex,
        "modules": MODULES,
        "dtype": "float32",
        "license": "apache-2.0",
        "created": CREATED,
        "tool": "tests",
    }
    return ExpertSpec.model_validate(fields | changes)


def release(number: int = 1, **changes: Any) -> ReleaseSpec:
    fields = {
        "pool": pool().digest,
        "number": number,
        "previous": None,
        "experts": (ReleasedExpert(name="expert", contributor="alice", bundle="4" * 64),),
        "routing": Routing(),
        "created": CREATED,
        "expires": EXPIRES,
    }
    return ReleaseSpec.model_validate(fields | changes)


def arrays(expected: dict[str, tensors.TensorInfo], seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    kinds = {"F32": np.float32, "F16": np.float16}
    return {name: draw.normal(size=info.shape).astype(kinds[info.dtype]) for name, info in expected.items()}


def unsigned(folder: Path, spec: ExpertSpec | None = None) -> Path:
    """Write everything of a bundle but spec.json and the envelope."""
    spec = spec or expert()
    folder.mkdir(parents=True)
    save_file(arrays(tensors.adapter_tensors(spec)), folder / ADAPTER_WEIGHTS, {"format": "pt"})
    save_file(arrays(tensors.gate_tensors(spec)), folder / GATES, {"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA"}))
    (folder / CARD).write_text("# expert\n")
    return folder
