"""Honest documents and bundles, in memory and as plain values, so that every part of them can be spoilt."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.conformance.weights import Tensors, draw_tensors, pack_tensors
from protocol import adapter_config
from protocol.adapters import LoraModule
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BUNDLE_TYPE, CARD, GATES, SPEC
from protocol.documents import Pool
from protocol.files import strict_json
from protocol.signing import Identity
from protocol.spec import Centroid, ExpertSpec, Means, PoolSpec, Statistics
from protocol.statement import STATEMENT_TYPE
from protocol.tensors import adapter_tensors, gate_tensors

CREATED = "2026-11-22T12:00:00Z"
FIRST = object()
"""In a path: the first entry of an object, whatever its name."""
REMOVED = object()
"""In place of a value: no entry at all."""
SPEC_PLACE = ("predicate", "spec")
"""Where a bundle's statement has its spec."""
_RANK = 2
Place = str | int | object


def dump(value: Any) -> bytes:
    """Write JSON as signed documents have it, but also what no JSON is: NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def changed(document: Any, path: tuple[Place, ...], value: Any) -> Any:
    """Return a copy of a document with another value at a path, or none."""
    whole = {"": copy.deepcopy(document)}
    holder, key = whole, ""
    for step in path:
        holder = holder[key]
        key = min(holder) if step is FIRST else step  # type: ignore[assignment] # of a list an index
    if value is REMOVED:
        del holder[key]
    else:
        holder[key] = value
    return whole[""]


def another(signer: Identity) -> Identity:
    """A key that is not the signer's, the same one each time."""
    return Identity(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(signer.public.raw).digest()))


def statement(predicate_type: str, subjects: Mapping[str, str], predicate: Any) -> dict[str, Any]:
    """Say something about subjects (name to sha256)."""
    subject = [{"name": name, "digest": {"sha256": subjects[name]}} for name in sorted(subjects)]
    return {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": predicate_type, "predicate": predicate}


@dataclass(frozen=True)
class Unsigned:
    """A document and who signs it: what a fault is planted in."""

    document: dict[str, Any]
    signer: Identity
    pool: Pool

    @cached_property
    def payload(self) -> bytes:
        """What is signed."""
        return dump(self.document)

    @cached_property
    def envelope(self) -> dict[str, Any]:
        """The honest envelope, as a value."""
        found: dict[str, Any] = json.loads(self.signer.sign(self.payload))
        return found

    def signed(self, path: tuple[Place, ...], value: Any) -> bytes:
        """Sign it with another value at a path.

        Where that is in a bundle's spec, the digest of spec.json follows: else it would be what is noticed.
        """
        document = changed(self.document, path, value)
        if path[: len(SPEC_PLACE)] == SPEC_PLACE and path != SPEC_PLACE:
            (entry,) = (each for each in document["subject"] if each["name"] == SPEC)
            entry["digest"]["sha256"] = hashlib.sha256(dump(document["predicate"]["spec"])).hexdigest()
        return self.signer.sign(dump(document))


@dataclass(frozen=True)
class Draft:
    """A bundle."""

    pool: Pool
    signer: Identity
    facts: dict[str, Any]
    tensors: Tensors
    gates: Tensors
    files: dict[str, bytes] = field(default_factory=dict)
    """Files that are other than what follows from the above."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that are told, where they are not the files' own."""

    @cached_property
    def contents(self) -> dict[str, bytes]:
        """The five files."""
        spec = ExpertSpec.model_validate_json(json.dumps(self.facts))
        honest: dict[str, Callable[[], bytes]] = {
            ADAPTER_CONFIG: lambda: adapter_config.render(spec, self.pool.spec),
            ADAPTER_WEIGHTS: lambda: pack_tensors(self.tensors),
            CARD: f"# {spec.name}\n".encode,
            GATES: lambda: pack_tensors(self.gates),
            SPEC: lambda: strict_json.dumps(spec.model_dump(mode="json")),
        }
        return {name: self.files[name] if name in self.files else make() for name, make in honest.items()}

    @cached_property
    def source(self) -> Unsigned:
        """Its statement."""
        subjects = {name: hashlib.sha256(content).hexdigest() for name, content in self.contents.items()}
        sizes = {name: len(content) for name, content in self.contents.items()} | self.sizes
        document = statement(BUNDLE_TYPE, subjects, {"spec": self.facts, "sizes": sizes})
        return Unsigned(document, self.signer, self.pool)

    @cached_property
    def envelope(self) -> bytes:
        """Signed."""
        return self.signer.sign(self.source.payload)

    @property
    def digest(self) -> str:
        """Its identity."""
        return hashlib.sha256(self.source.payload).hexdigest()


def make_draft(
    pool: Pool, signer: Identity, name: str, draw: np.random.Generator, *, facts: Mapping[str, Any] | None = None
) -> Draft:
    """Make an honest bundle with random weights, at one of the smallest modules of a pool.

    Args:
        pool: What it is for.
        signer: Its contributor.
        name: Its name.
        draw: Where the weights come from.
        facts: Fields of its spec that are other than usual.
    """
    areas = {path: shape.d_in * shape.d_out for path, shape in pool.spec.modules.items()}
    # Of the smallest the last: at a first layer all gates choose alike where texts are few.
    path = max(path for path, area in areas.items() if area == min(areas.values()))
    shape = pool.spec.modules[path]
    module = LoraModule(d_in=shape.d_in, d_out=shape.d_out, rank=_rank(pool.spec, shape.d_in, shape.d_out), alpha=1.0)
    usual = ExpertSpec(
        name=name, pool=pool.digest, base=pool.spec.base, contributor=signer.public.hex, modules={path: module},
        dtype="float32", statistics=_statistics(pool.spec), license="cc0-1.0", created=CREATED, tool="conformance",
    )  # fmt: skip
    spec = ExpertSpec.model_validate_json(json.dumps(usual.model_dump(mode="json") | dict(facts or {})))
    return Draft(
        pool, signer, spec.model_dump(mode="json"),
        draw_tensors(adapter_tensors(spec), draw), draw_tensors(gate_tensors(spec), draw),
    )  # fmt: skip


def _rank(pool: PoolSpec, d_in: int, d_out: int) -> int:
    return min(_RANK, d_in, d_out, pool.policy.max_rank)


def _statistics(pool: PoolSpec) -> Statistics:
    """Tell what a pool wants to be told."""
    asked, width = pool.policy.statistics, next(iter(pool.modules.values())).d_in
    return Statistics(
        means=Means() if "means" in asked else None, centroid=Centroid(width=width) if "centroid" in asked else None
    )
