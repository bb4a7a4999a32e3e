"""The one adapter_config.json of an expert: held against how PEFT reads it, written down here as PEFT's source says."""

import json
import re
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import adapter_config
from protocol.adapters import BottleneckModule, DoraModule, Ia3Module, Kind, LoraModule, Module, RsLoraModule, Shape
from protocol.errors import Code, Refused
from protocol.spec import ExpertSpec, PoolSpec
from tests.protocol import samples

SHAPE: dict[str, Any] = {"d_in": 64, "d_out": 64}
LOW_RANK: dict[str, type] = {"lora": LoraModule, "rslora": RsLoraModule, "dora": DoraModule}


def made(modules: dict[str, Module], *others: str, **changes: Any) -> tuple[ExpertSpec, PoolSpec]:
    shapes = {path: Shape(**SHAPE) for path in (*modules, *others)}
    return samples.expert(modules=modules), samples.pool(modules=shapes, **changes).spec


def rendered(modules: dict[str, Module], *others: str, **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(adapter_config.render(*made(modules, *others, **changes)))
    return config


def by_peft(pattern: dict[str, Any], path: str, default: Any) -> Any:
    """peft/utils/other.py, get_pattern_key."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", path)), default)


PATHS = st.lists(st.sampled_from(["a", "b", "ab", "a_b"]), min_size=1, max_size=3).map(".".join)
SIZES = st.tuples(st.integers(1, 3), st.sampled_from([1.0, 2.5]))


@given(st.dictionaries(PATHS, SIZES, min_size=1), st.sampled_from(sorted(LOW_RANK)))
def test_peft_finds_each_modules_rank_and_alpha(sizes: dict[str, tuple[int, float]], kind: str) -> None:
    """Whatever the paths are: one may end another, and the dot between names fits any letter."""
    config = rendered({p: LOW_RANK[kind](rank=rank, alpha=alpha, **SHAPE) for p, (rank, alpha) in sizes.items()})
    for path, (rank, alpha) in sizes.items():
        assert by_peft(config["rank_pattern"], path, config["r"]) == rank
        assert by_peft(config["alpha_pattern"], path, config["lora_alpha"]) == alpha
    assert (config["use_dora"], config["use_rslora"]) == (kind == "dora", kind == "rslora")


@given(st.sets(PATHS, min_size=1), st.sets(PATHS))
def test_peft_touches_what_the_spec_names_or_there_is_no_such_file(chosen: set[str], others: set[str]) -> None:
    modules: dict[str, Module] = {path: LoraModule(rank=1, alpha=1, **SHAPE) for path in chosen}
    touched = {
        path for path in chosen | others for name in chosen if path == name or path.endswith(f".{name}")
    }  # peft/tuners/tuners_utils.py, check_target_module_exists
    if touched == chosen:
        assert rendered(modules, *others)["target_modules"] == sorted(chosen)
    else:
        with pytest.raises(Refused) as refused:
            rendered(modules, *others)
        assert refused.value.code is Code.CONFIG_MISMATCH


@given(st.dictionaries(PATHS, st.sampled_from(["input", "output"]), min_size=1))
def test_peft_scales_the_side_that_the_spec_says_or_there_is_no_such_file(sides: dict[str, Any]) -> None:
    modules: dict[str, Module] = {path: Ia3Module(side=side, **SHAPE) for path, side in sides.items()}
    inputs = [path for path, side in sides.items() if side == "input"]
    # peft/tuners/ia3/model.py, _check_target_module_feedforward
    as_peft = {path: "input" if any(path.endswith(end) for end in inputs) else "output" for path in sides}
    if as_peft == sides:
        assert rendered(modules)["feedforward_modules"] == sorted(inputs)
    else:
        with pytest.raises(Refused):
            rendered(modules)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_pool_and_nobody_else_says_which_base(kind: str) -> None:
    others: dict[str, Module] = {
        "ia3": Ia3Module(side="output", **SHAPE),
        "bottleneck": BottleneckModule(rank=2, alpha=1, activation="relu", **SHAPE),
    }
    module = others.get(kind) or LOW_RANK[kind](rank=2, alpha=1, **SHAPE)
    spec, pool = made({"q": module}, architecture="decoder-only")
    spec = spec.model_copy(update={"base": spec.base.model_copy(update={"name": "evil/base"})})
    config = json.loads(adapter_config.render(spec, pool))
    assert config["base_model_name_or_path"] == samples.BASE.name
    assert config.get("task_type") == (None if kind == "bottleneck" else "CAUSAL_LM")


def test_it_takes_no_part_in_the_order_of_a_spec() -> None:
    one = {path: LoraModule(rank=1, alpha=1, **SHAPE) for path in ("v", "q")}
    assert rendered(dict(one)) == rendered(dict(reversed(one.items())))
    assert adapter_config.render(*made(dict(one))) == adapter_config.render(*made(dict(reversed(one.items()))))
