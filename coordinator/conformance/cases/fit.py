"""Bundles that are in form, and signed, but not for this pool, or not written as bundles are."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from coordinator.conformance.case import Case, Need, Play, Row, named
from coordinator.conformance.draft import FIRST, REMOVED, Draft, Place, another, dump, make_draft
from coordinator.conformance.stage import Stage
from protocol.adapters import LoraModule
from protocol.bundle import ADAPTER_CONFIG, ADAPTER_WEIGHTS, GATES, SPEC
from protocol.errors import Code
from protocol.tensors import MAX_HEADER_BYTES
from protocol.v1 import intake_pb2

SCHEMA = Code.ENVELOPE_SCHEMA


def _begin(envelope: Callable[[Stage, Draft], bytes], owner: str = "ada") -> Play:
    """Begin with what is made of an honest bundle of an enrolled contributor."""

    def play(stage: Stage) -> object:
        stage.member(owner)
        draft = stage.draft(owner, "misfit")
        return stage.wire.ask("Intake/Begin", intake_pb2.BeginRequest(envelope=envelope(stage, draft)))

    return play


def _respelt(change: Callable[[bytes], bytes]) -> Play:
    """Sign the same statement, spelt otherwise."""
    return _begin(lambda _, draft: draft.signer.sign(change(draft.source.payload)))


def _rewritten(change: Callable[[Any], bytes]) -> Play:
    """Write the same envelope otherwise."""
    return _begin(lambda _, draft: change(json.loads(draft.envelope)))


def _stated(path: tuple[Place, ...], value: Any) -> Play:
    """Say the same in other words."""
    return _begin(lambda _, draft: draft.source.signed(path, value))


def _two_signatures(draft: Draft) -> bytes:
    others = json.loads(another(draft.signer).sign(draft.source.payload))["signatures"]
    return dump(draft.source.envelope | {"signatures": draft.source.envelope["signatures"] + others})


def _other_spec(_: Stage, draft: Draft) -> bytes:
    return replace(draft, files={SPEC: json.dumps(draft.facts).encode()}).envelope


def _config(change: Callable[[dict[str, Any]], object]) -> Play:
    def envelope(_: Stage, draft: Draft) -> bytes:
        config = json.loads(draft.contents[ADAPTER_CONFIG])
        change(config)
        return replace(draft, files={ADAPTER_CONFIG: dump(config)}).envelope

    return _begin(envelope)


def _refitted(change: Callable[[Stage, dict[str, Any]], dict[str, Any]]) -> Play:
    """Pack the expert anew with other facts, all files and sizes as they follow from these."""

    def envelope(stage: Stage, draft: Draft) -> bytes:
        facts = change(stage, draft.facts)
        return make_draft(stage.pool, draft.signer, "misfit", stage.draw("misfit"), facts=facts).envelope

    return _begin(envelope)


def _base(part: str) -> Play:
    return _refitted(lambda _, facts: {"base": facts["base"] | {part: "0" * 64}})


def _module(**fields: Any) -> Play:
    """Declare the module of other widths."""
    return _refitted(lambda _, facts: {"modules": {path: m | fields for path, m in facts["modules"].items()}})


def _elsewhere(_: Stage, facts: dict[str, Any]) -> dict[str, Any]:
    return {"modules": {"no.such.module": next(iter(facts["modules"].values()))}}


def _swapped(_: Stage, facts: dict[str, Any]) -> dict[str, Any]:
    path, module = next(iter(facts["modules"].items()))
    return {"modules": {path: module | {"d_in": module["d_out"], "d_out": module["d_in"] + 1}}}


def _rank(stage: Stage, _: dict[str, Any]) -> dict[str, Any]:
    """Touch the widest module by one rank more than the pool takes."""
    path, shape = max(stage.pool.spec.modules.items(), key=lambda entry: (min(entry[1].d_in, entry[1].d_out), entry[0]))
    most = stage.pool.spec.policy.max_rank
    module = LoraModule(d_in=shape.d_in, d_out=shape.d_out, rank=most + 1, alpha=1.0)
    return {"modules": {path: module.model_dump(mode="json")}}


def _centroid(stage: Stage, facts: dict[str, Any]) -> dict[str, Any]:
    widths = {width for shape in stage.pool.spec.modules.values() for width in (shape.d_in, shape.d_out)}
    return {"statistics": facts["statistics"] | {"centroid": {"embedding": None, "width": max(widths) + 1}}}


def _told_nothing(_: Stage, __: dict[str, Any]) -> dict[str, Any]:
    return {"statistics": {"means": None, "centroid": None}}


def _sized(name: str, size: Callable[[Stage, int], int]) -> Play:
    """Declare another size of a file."""
    return _begin(lambda stage, draft: replace(draft, sizes={name: size(stage, len(draft.contents[name]))}).envelope)


def _endless(stage: Stage, _: int) -> int:
    return stage.pool.spec.policy.max_bundle_bytes + 1


def cases() -> list[Case]:
    """All of them."""
    spec = ("predicate", "spec")
    rows: list[Row] = [
        ("payload-with-a-space", _respelt(lambda raw: raw.replace(b'":', b'": ', 1)), SCHEMA),
        ("payload-with-a-line-break", _respelt(lambda raw: raw + b"\n"), SCHEMA),
        ("payload-indented", _respelt(lambda raw: json.dumps(json.loads(raw), indent=1).encode()), SCHEMA),
        ("payload-in-another-order", _respelt(
            lambda raw: dump({})[:-1] + raw[raw.index(b'"predicate"'):-1] + b"," + raw[1:raw.index(b',"predicate"')]
            + b"}"), SCHEMA),
        ("payload-with-an-escape", _respelt(lambda raw: raw.replace(b'"cc0-1.0"', b'"cc0\\u002d1.0"')), SCHEMA),
        ("subjects-in-another-order", _begin(
            lambda _, draft: draft.source.signed(("subject",), draft.source.document["subject"][::-1])), SCHEMA),
        ("default-left-out", _stated((*spec, "joint"), REMOVED), SCHEMA),
        ("version-left-out", _stated((*spec, "version"), REMOVED), SCHEMA),
        ("null-left-out", _stated((*spec, "supersedes"), REMOVED), SCHEMA),
        ("alpha-as-an-integer", _stated((*spec, "modules", FIRST, "alpha"), 1), SCHEMA),
        ("envelope-with-a-space", _rewritten(lambda value: dump(value) + b" "), SCHEMA),
        ("envelope-indented", _rewritten(lambda value: json.dumps(value, indent=1).encode()), SCHEMA),
        ("envelope-with-an-escape", _rewritten(
            lambda value: dump(value).replace(b"in-toto", b"in\\u002dtoto")), SCHEMA),
        ("envelope-with-a-second-signature", _begin(lambda _, draft: _two_signatures(draft)), SCHEMA),
        ("spec-file-in-other-words", _begin(_other_spec), Code.SPEC_INVALID),
        ("config-names-another-base", _config(
            lambda config: config.update(base_model_name_or_path="evil/base")), Code.CONFIG_MISMATCH),
        ("config-drops-out", _config(lambda config: config.update(lora_dropout=1.0)), Code.CONFIG_MISMATCH),
        ("config-of-another-task", _config(lambda config: config.update(task_type="SEQ_CLS")), Code.CONFIG_MISMATCH),
        ("config-with-more", _config(lambda config: config.update(auto_mapping={"x": "y"})), Code.CONFIG_MISMATCH),
        ("config-of-another-rank", _config(lambda config: config.update(r=4)), Code.CONFIG_MISMATCH),
        ("unknown-key", lambda stage: stage.begin(stage.draft("nobody", "x")), Code.KEY_UNKNOWN),
        ("another-pool", _refitted(lambda *_: {"pool": "0" * 64}), Code.WRONG_POOL),
        ("base-of-another-config", _base("config"), Code.BASE_MISMATCH),
        ("base-of-other-weights", _base("weights"), Code.BASE_MISMATCH),
        ("base-of-another-tokenizer", _base("tokenizer"), Code.BASE_MISMATCH),
        ("module-elsewhere", _refitted(_elsewhere), Code.MODULE_UNKNOWN),
        ("module-of-another-d_in", _module(d_in=7), Code.MODULE_UNKNOWN),
        ("module-of-another-d_out", _module(d_out=7), Code.MODULE_UNKNOWN),
        ("module-the-other-way-round", _refitted(_swapped), Code.MODULE_UNKNOWN),
        ("rank-above-the-pools", _refitted(_rank), Code.RANK_OUT_OF_BOUNDS),
        ("centroid-of-another-width", _refitted(_centroid), Code.TENSOR_SHAPE),
        ("weights-of-no-bytes", _sized(ADAPTER_WEIGHTS, lambda *_: 0), Code.SIZE_MISMATCH),
        ("weights-without-room-for-a-header", _sized(
            ADAPTER_WEIGHTS, lambda _, size: size // 2), Code.SIZE_MISMATCH),
        ("weights-with-room-for-more", _sized(
            ADAPTER_WEIGHTS, lambda _, size: size + MAX_HEADER_BYTES + 1), Code.SIZE_MISMATCH),
        ("gates-of-no-bytes", _sized(GATES, lambda *_: 0), Code.SIZE_MISMATCH),
        ("gates-with-room-for-more", _sized(
            GATES, lambda _, size: size + MAX_HEADER_BYTES + 1), Code.SIZE_MISMATCH),
        ("larger-than-the-pool-takes", _sized(ADAPTER_WEIGHTS, _endless), Code.TOO_LARGE),
    ]  # fmt: skip
    missing: list[Row] = [("statistics-not-told", _refitted(_told_nothing), Code.STATISTICS_MISSING)]
    return named("fit", rows) + named("fit", missing, Need.STATISTICS)
