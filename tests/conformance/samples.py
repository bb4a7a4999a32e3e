"""The suite's documents without a server: one pool, one contributor, the same bytes in every run."""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from coordinator.conformance.draft import CREATED, Draft, Unsigned, make_draft, statement
from protocol.adapters import Shape
from protocol.documents import ENROLMENT_TYPE
from protocol.signing import Identity
from tests.protocol import samples

POOL = samples.pool(modules={"block.0.q": Shape(d_in=8, d_out=8), "block.0.v": Shape(d_in=8, d_out=12)})
CONTRIBUTOR: Identity = samples.CONTRIBUTOR


def draft(name: str = "expert", **facts: Any) -> Draft:
    """An honest bundle."""
    return make_draft(POOL, CONTRIBUTOR, name, np.random.default_rng(7), facts=facts)


def of_kind(kind: str, **fields: Any) -> Draft:
    """An honest bundle of another kind, as far as its envelope tells."""
    plain = draft()
    path, module = next(iter(plain.facts["modules"].items()))
    return replace(plain, facts=plain.facts | {"modules": {path: module | {"kind": kind} | fields}})


def enrolment(**facts: Any) -> Unsigned:
    """An enrolment; a field that is given stands in place of the usual one."""
    usual = {"pool": POOL.digest, "name": "ada", "key": CONTRIBUTOR.public.hex, "created": CREATED}
    document = statement(ENROLMENT_TYPE, {"pool": POOL.digest}, usual | facts)
    return Unsigned(json.loads(json.dumps(document)), CONTRIBUTOR, POOL)
