from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocol import statement
from protocol.adapters import LoraModule, Shape
from protocol.errors import Code, Refused
from protocol.files import strict_json
from protocol.spec import (
    BaseModelRef,
    ExpertSpec,
    Means,
    Policy,
    PoolSpec,
    Recipe,
    Routing,
    Statistics,
    recipe_flags,
)
from protocol.tensors import adapter_tensors
from tests.protocol.samples import BASE, expert, pool
from tests.protocol.strategies import changed_json, few, many

names = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", fullmatch=True)
paths = st.from_regex(r"[A-Za-z0-9_]{1,9}(\.[A-Za-z0-9_]{1,9}){0,4}", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
lines = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=50)
moments = st.datetimes().filter(lambda moment: moment.year >= 1000).map(lambda moment: f"{moment:%Y-%m-%dT%H:%M:%SZ}")


@st.composite
def loras(draw: st.DrawFn) -> LoraModule:
    d_in, d_out = draw(st.integers(1, 1 << 20)), draw(st.integers(1, 1 << 20))
    alpha = draw(st.floats(0, 4096, exclude_min=True))
    return LoraModule(d_in=d_in, d_out=d_out, rank=draw(st.integers(1, min(d_in, d_out, 1024))), alpha=alpha)


refs = st.builds(
    BaseModelRef,
    name=lines,
    config=digests,
    weights=digests,
    tokenizer=digests,
    tokenizer_settings=st.none() | digests,
)
experts = st.builds(
    ExpertSpec,
    name=names,
    pool=digests,
    base=refs,
    contributor=digests,
    modules=st.dictionaries(paths, loras(), min_size=1, max_size=4),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    license=lines,
    supersedes=st.none() | digests,
    created=moments,
    tool=lines,
)
widths = st.integers(1, 1 << 20)
pools = st.builds(
    PoolSpec,
    name=names,
    base=refs,
    architecture=st.sampled_from(["encoder-decoder", "decoder-only"]),
    modules=st.dictionaries(paths, st.builds(Shape, d_in=widths, d_out=widths), min_size=1, max_size=4),
    recipe=st.builds(Recipe, rank=st.integers(1, 1024), alpha=st.floats(0, 4096, exclude_min=True)),
    policy=st.builds(Policy, max_rank=st.integers(1, 1024)),
    routing=st.builds(Routing, k=st.integers(1, 64)),
    coordinator=digests,
    created=moments,
)


def read_again(document: Any) -> Any:
    raw = strict_json.dumps(document.model_dump(mode="json"))
    return statement.read(type(document), strict_json.loads(raw, what="It"), what="It")


@few
@given(experts)
def test_an_expert_spec_that_is_written_is_read(spec: ExpertSpec) -> None:
    assert read_again(spec) == spec


@few
@given(pools)
def test_a_pool_spec_that_is_written_is_read(spec: PoolSpec) -> None:
    assert read_again(spec) == spec


@many
@given(changed_json(strict_json.dumps(expert().model_dump(mode="json"))))
def test_a_changed_spec_is_refused_or_means_what_it_says(raw: bytes) -> None:
    try:
        spec = statement.read(ExpertSpec, strict_json.loads(raw, what="It"), what="It")
    except Refused as refused:
        assert refused.message.isprintable()  # noqa: PT017 - either outcome is right
    else:
        assert read_again(spec) == spec


def refused_expert(**changes: Any) -> str:
    value = expert().model_dump(mode="json") | changes
    with pytest.raises(Refused) as refused:
        statement.read(ExpertSpec, value, what="It")
    assert refused.value.code is Code.SPEC_INVALID
    return refused.value.message


def refused_module(**changes: Any) -> str:
    return refused_expert(modules={"q": {"kind": "lora", "d_in": 8, "d_out": 8, "rank": 2, "alpha": 1.0} | changes})


@pytest.mark.parametrize("rank", [0, -1, 10**6, 9, "8", True, 1.0, None])
def test_a_rank_is_a_small_whole_number(rank: Any) -> None:
    assert "rank" in refused_module(rank=rank)


def test_a_rank_is_no_larger_than_the_narrower_side() -> None:
    assert "rank 3 of q" in refused_module(d_in=2, rank=3)
    assert "rank 3 of q" in refused_module(d_out=2, rank=3)


@pytest.mark.parametrize("alpha", [0, -1, 1e30, "1", True, None])
def test_alpha_is_a_positive_number(alpha: Any) -> None:
    assert "alpha" in refused_module(alpha=alpha)


def test_alpha_is_finite() -> None:
    raw = strict_json.dumps(expert().model_dump(mode="json"))
    for literal in (b"NaN", b"Infinity", b"1e999"):
        with pytest.raises(Refused):
            strict_json.loads(raw.replace(b'"alpha":4.0', b'"alpha":' + literal), what="It")


@pytest.mark.parametrize("width", [0, -1, (1 << 20) + 1, "8", True, 8.0])
@pytest.mark.parametrize("field", ["d_in", "d_out"])
def test_a_width_is_a_whole_number(field: str, width: Any) -> None:
    assert field in refused_module(**{field: width})


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b", "a/b", "../a", "a b", "é", "a\n", "a" * 256])
def test_a_module_path_is_dotted_words(path: str) -> None:
    refused_expert(modules={path: {"d_in": 8, "d_out": 8, "rank": 2, "alpha": 1.0}})


def test_an_expert_touches_something() -> None:
    assert "modules" in refused_expert(modules={})


@pytest.mark.parametrize(
    "name", ["", "A", "a/b", "../a", "..", ".a", "a.", "-a", "a-", "a b", "é", "a\n", "a\x00", "a" * 65, None, 1]
)
def test_a_name_is_a_plain_word(name: Any) -> None:
    assert "name" in refused_expert(name=name)


@pytest.mark.parametrize("digest", ["", "A" * 64, "a" * 63, "a" * 65, "g" * 64, "a" * 64 + "\n", None, 1])
@pytest.mark.parametrize("field", ["pool", "contributor"])
def test_a_digest_is_64_hexadecimal_digits(field: str, digest: Any) -> None:
    assert field in refused_expert(**{field: digest})


@pytest.mark.parametrize(
    "value", ["", None, 1, "a" * 101, "mit\n", "\x1b[2Jmit", "mit\u202e", "a\u200bb", "a\u2028b", "a\u2029b"]
)
def test_a_license_is_one_line(value: Any) -> None:
    assert "license" in refused_expert(license=value)


@pytest.mark.parametrize("value", ["\x1b]0;title\x07", "a\nb", None, "a" * 101])
def test_a_tool_is_one_line(value: Any) -> None:
    assert "tool" in refused_expert(tool=value)


@pytest.mark.parametrize("value", ["\x1b[31mgpt", "", "a" * 201, "a\r"])
def test_a_base_name_is_one_line(value: Any) -> None:
    assert "base.name" in refused_expert(base=BASE.model_dump() | {"name": value})


@pytest.mark.parametrize(
    "moment",
    [
        "",
        "2026-11-22",
        "2026-11-22T12:00:00",
        "2026-11-22T12:00:00+00:00",
        "2026-11-22 12:00:00Z",
        "2026-13-22T12:00:00Z",
        "2026-02-30T12:00:00Z",
        "2026-11-22T24:00:00Z",
        "2026-11-22T23:59:60Z",
        "0000-01-01T00:00:00Z",
        "٢٠٢٦-11-22T12:00:00Z",
        "2026-11-22T12:00:00Z\n",
        None,
        0,
    ],
)
def test_a_timestamp_is_a_moment_that_exists(moment: Any) -> None:
    assert "created" in refused_expert(created=moment)


@pytest.mark.parametrize("value", ["float64", "int8", "F32", "", None, 1])
def test_a_dtype_is_one_of_three(value: Any) -> None:
    assert "dtype" in refused_expert(dtype=value)


MODULE = {"d_in": 8, "d_out": 6}
FACTORS = {"rank": 2, "alpha": 4.0}


@pytest.mark.parametrize(
    ("module", "scaling", "names"),
    [
        ({"kind": "lora", **FACTORS}, 2.0, {"lora_A.weight": (2, 8), "lora_B.weight": (6, 2)}),
        ({"kind": "rslora", **FACTORS}, 4 / 2**0.5, {"lora_A.weight": (2, 8), "lora_B.weight": (6, 2)}),
        (
            {"kind": "dora", **FACTORS},
            2.0,
            {"lora_A.weight": (2, 8), "lora_B.weight": (6, 2), "lora_magnitude_vector": (6,)},
        ),
        ({"kind": "ia3", "side": "output"}, None, {"ia3_l": (6, 1)}),
        ({"kind": "ia3", "side": "input"}, None, {"ia3_l": (1, 8)}),
        (
            {"kind": "bottleneck", "activation": "gelu", **FACTORS},
            2.0,
            {"adapter_down.weight": (2, 8), "adapter_up.weight": (6, 2)},
        ),
    ],
)
def test_the_kind_decides_which_tensors_there_are(
    module: dict[str, Any], scaling: float | None, names: dict[str, tuple[int, ...]]
) -> None:
    document = expert().model_dump(mode="json") | {"modules": {"encoder.q": MODULE | module}}
    spec = statement.read(ExpertSpec, document, what="It")
    read = spec.modules["encoder.q"]
    assert spec.kind == module["kind"]
    assert read.tensors == names
    assert getattr(read, "scaling", None) == scaling
    expected = {f"base_model.model.encoder.q.{name}" for name in names}
    assert set(adapter_tensors(spec)) == expected


@pytest.mark.parametrize(
    "module",
    [
        FACTORS,
        {"kind": "adalora", **FACTORS},
        {"kind": "lora"},
        {"kind": "lora", **FACTORS, "side": "input"},
        {"kind": "lora", **FACTORS, "bias": True},
        {"kind": "ia3"},
        {"kind": "ia3", "side": "both"},
        {"kind": "ia3", "side": "input", "rank": 0},
        {"kind": "bottleneck", **FACTORS},
        {"kind": "bottleneck", **FACTORS, "activation": "swish"},
        {"kind": "bottleneck", "rank": 7, "alpha": 1.0, "activation": "relu"},
    ],
)
def test_a_kind_keeps_to_its_fields(module: dict[str, Any]) -> None:
    assert "encoder.q" in refused_expert(modules={"encoder.q": MODULE | module})


def test_an_expert_is_of_one_kind() -> None:
    mixed = {"encoder.q": MODULE | {"kind": "lora"} | FACTORS, "v": MODULE | {"kind": "rslora"} | FACTORS}
    assert "one kind, not of lora and rslora" in refused_expert(modules=mixed)


@pytest.mark.parametrize("value", [0, 2, "1", True, 1.0, None])
def test_the_version_is_one(value: Any) -> None:
    assert "version" in refused_expert(version=value)


@pytest.mark.parametrize(
    "field", sorted(set(ExpertSpec.model_fields) - {"version", "supersedes", "statistics", "joint", "privacy"})
)
def test_a_field_without_default_is_needed(field: str) -> None:
    value = expert().model_dump(mode="json")
    del value[field]
    with pytest.raises(Refused, match=field):
        statement.read(ExpertSpec, value, what="It")


def test_an_unknown_field_is_refused() -> None:
    assert "auto_mapping" in refused_expert(auto_mapping={})


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("recipe", "rank", 0),
        ("recipe", "learning_rate", 0),
        ("recipe", "warmup_ratio", 1),
        ("recipe", "held_out", 0),
        ("recipe", "expert_steps", 0),
        ("recipe", "optimizer", "sgd"),
        ("recipe", "kind", "prefix"),
        ("recipe", "activation", "swish"),
        ("policy", "enrolment", "closed"),
        ("policy", "admission", "any"),
        ("policy", "max_rank", 1025),
        ("policy", "max_bundle_bytes", 0),
        ("policy", "release_days", 0),
        ("routing", "k", 0),
        ("routing", "k", 65),
        ("routing", "method", "../x"),
    ],
)
def test_a_pool_keeps_to_its_bounds(part: str, field: str, value: Any) -> None:
    document = pool().spec.model_dump(mode="json")
    document[part][field] = value
    with pytest.raises(Refused, match=f"{part}.{field}"):
        statement.read(PoolSpec, document, what="It")


def test_a_base_is_compared_by_content() -> None:
    assert BASE.differing_part(BASE.model_copy(update={"name": "another name"})) is None
    for field in ("config", "weights", "tokenizer"):
        assert BASE.differing_part(BASE.model_copy(update={field: "f" * 64})) == field


def test_settings_of_a_tokenizer_count_where_both_tell_them() -> None:
    told, otherwise = (BASE.model_copy(update={"tokenizer_settings": digit * 64}) for digit in "45")
    assert told.differing_part(otherwise) == "tokenizer_settings"
    assert told.differing_part(told) is None
    for one, other in ((BASE, told), (told, BASE)):
        assert one.differing_part(other) is None
    # Documents from before are written as they were.
    assert "tokenizer_settings" not in BASE.model_dump(mode="json")
    assert told.model_dump(mode="json")["tokenizer_settings"] == "4" * 64


def test_the_scale_is_alpha_over_rank() -> None:
    assert LoraModule(d_in=8, d_out=8, rank=4, alpha=2.0).scaling == 0.5


def test_means_are_told_of_modules_that_the_expert_has() -> None:
    told = Statistics(means=Means(modules=("v",)))
    assert expert(statistics=told).told == ("v",)
    assert expert(statistics=Statistics(means=Means())).told == tuple(expert().modules)
    with pytest.raises(ValidationError, match="the mean of w is told"):
        expert(statistics=Statistics(means=Means(modules=("w",))))


def test_a_door_has_a_flag_for_each_field_of_a_recipe() -> None:
    flags = recipe_flags(lambda **flag: flag, "Recipe", without=("kind", "rank"))
    names = [flag["param_decls"][0] for flag in flags]
    assert set(names) == Recipe.model_fields.keys() - {"kind", "rank"}
    first = next(flag for flag in flags if flag["param_decls"][0] == "expert_steps")
    assert first == {
        "param_decls": ["expert_steps", "--expert-steps"], "type": int, "help": "Optimiser steps for the expert.",
        "rich_help_panel": "Recipe",
    }  # fmt: skip
