"""Loading: a header is parsed once, a tensor is converted once, whatever lies in the file."""

import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.signing import Identity
from router.base.linear import Linear, find_linear
from router.base.loading import load_base
from router.pool.expert import Expert, load_expert
from tests import factories


@pytest.fixture
def bundle(t5_base: Path, tmp_path: Path, identity: Identity) -> Bundle:
    pool: Pool = factories.make_pool(t5_base, identity)
    return factories.make_bundle(tmp_path / "b", pool, identity)


def linears_of(base: Path, bundle: Bundle, dtype: torch.dtype = torch.float32) -> dict[str, Linear]:
    model = load_base(str(base), device="cpu").model.to(dtype)
    return {path: find_linear(model, path) for path in bundle.spec.modules}


def same(one: Expert, other: Expert) -> bool:
    return all(
        torch.equal(getattr(part, name), getattr(other.modules[path], name))
        for path, part in one.modules.items()
        for name in ("a", "b", "gate")
    )


def test_a_header_is_parsed_once(bundle: Bundle, t5_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linears = linears_of(t5_base, bundle)
    monkeypatch.setattr("safetensors.torch.safe_open", lambda *_, **__: pytest.fail("parsed again"))
    expert = load_expert(bundle, linears, dtype=torch.float32)
    assert expert.modules.keys() == bundle.spec.modules.keys()


@pytest.mark.parametrize(("other", "code"), [(None, Code.MODULE_UNKNOWN), (nn.Linear(3, 5), Code.TENSOR_SHAPE)])
def test_an_expert_of_another_base_is_refused(bundle: Bundle, t5_base: Path, other: Linear | None, code: Code) -> None:
    linears = linears_of(t5_base, bundle)
    last = list(linears)[-1]
    del linears[last]
    linears |= {last: other} if other else {}
    with pytest.raises(Refused, match=re.escape(last)) as refused:
        load_expert(bundle, linears, dtype=torch.float32)
    assert refused.value.code is code


class Conversions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts tensors that are made of others in another dtype, by the number of their numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.made = dtype, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and found.dtype == self.dtype:
            self.made += found.numel()
        return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_tensor_is_converted_once(bundle: Bundle, t5_base: Path, dtype: torch.dtype) -> None:
    linears = linears_of(t5_base, bundle, dtype)
    with Conversions(dtype) as conversions:
        expert = load_expert(bundle, linears, dtype=dtype)
    assert conversions.made == sum(part.a.numel() + part.b.numel() for part in expert.modules.values())


@pytest.mark.parametrize("file", [ADAPTER_WEIGHTS, GATES])
@pytest.mark.parametrize("blanks", [1, 2, 4])
def test_a_header_of_any_length_will_do(bundle: Bundle, t5_base: Path, file: str, blanks: int) -> None:
    linears = linears_of(t5_base, bundle)
    before = load_expert(bundle, linears, dtype=torch.float32)
    content = (bundle.folder / file).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, tensors = content[8 : 8 + length], content[8 + length :]
    (bundle.folder / file).unlink()  # the tensors of before are still mapped
    (bundle.folder / file).write_bytes(struct.pack("<Q", length + blanks) + header + b" " * blanks + tensors)
    assert same(load_expert(bundle, linears, dtype=torch.float32), before)
