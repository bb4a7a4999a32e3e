"""Every kernel, as it would be launched, compiles for an H100 or H200; no GPU is needed for that."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from router.layer.choice import Choice
from router.pool.device_table import DeviceColumns, DeviceView

triton = pytest.importorskip("triton")
launch = pytest.importorskip("router.layer.kernels.launch")
from triton.backends.compiler import GPUTarget  # noqa: E402 - only where there is Triton
from triton.compiler import ASTSource  # noqa: E402

pytestmark = pytest.mark.skipif(launch._UP, reason="Triton interprets in this process")

KERNELS = (
    "moments",
    "route_few",
    "route_many",
    "write_topk",
    "select_shrink",
    "shrink",
    "expand",
    "shrink_tiles",
    "expand_tiles",
)
SHARED_BYTES = 227 * 1024
TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages")


class Job(NamedTuple):
    """One specialisation of one kernel."""

    name: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    options: tuple[tuple[str, int], ...]


class Launched:
    """Stands in for a kernel and notes how it would be specialised."""

    def __init__(self, name: str, jobs: set[Job]) -> None:
        self.name, self.jobs = name, jobs
        self.names: list[str] = getattr(launch, name).arg_names

    def __getitem__(self, grid: object) -> "Launched":
        return self

    def __call__(self, *arguments: Any, **named: Any) -> None:
        signature, constants, divisible = [], {}, []
        for at, (name, value) in enumerate(zip(self.names, arguments, strict=False)):
            if isinstance(value, torch.Tensor):
                signature.append((name, TYPES[value.dtype]))
                if value.data_ptr() % 16 == 0:
                    divisible.append(at)
            elif isinstance(value, float):
                signature.append((name, "fp32"))
            elif value == 1:
                # Triton takes it for a constant.
                signature.append((name, "constexpr"))
                constants[name] = value
            else:
                signature.append((name, "i32"))
                if value % 16 == 0:
                    divisible.append(at)
        for name, value in named.items():
            if name not in OPTIONS:
                signature.append((name, "constexpr"))
                constants[name] = value
        options = tuple((name, named[name]) for name in OPTIONS if name in named)
        self.jobs.add(
            Job(self.name, tuple(signature), tuple(sorted(constants.items())), tuple(divisible), options)
        )  # fmt: skip


def jobs(dtype: torch.dtype) -> set[Job]:
    """Launch everything at the widths and numbers of tokens that models of a dtype come with."""
    found: set[Job] = set()
    with pytest.MonkeyPatch.context() as patch:
        for name in KERNELS:
            patch.setattr(launch, name, Launched(name, found))
        for d in (512, 2048, 4096):
            for tokens in (1, 8, 16, 64, 512):
                launch_all(tokens, d, dtype, k=2, rank=16)
                launch_all(tokens, d, dtype, k=2, rank=16, biased=True)
        launch_all(1, 2048, dtype, k=launch.MOST, rank=128)
        launch_all(512, 2048, dtype, k=launch.MOST, rank=128)
    return found


def launch_all(tokens: int, d: int, dtype: torch.dtype, *, k: int, rank: int, biased: bool = False) -> None:
    capacity = 512
    seen = torch.ones(1, capacity, dtype=torch.uint8)
    view = DeviceView(
        DeviceColumns.zeros(1, capacity), torch.ones(1, dtype=torch.int32), seen, rank, dtype, identity=True,
        aligned=True, bias=torch.zeros(1, capacity) if biased else None, temperature=torch.ones(1) if biased else None,
    )  # fmt: skip
    u, y = torch.empty(tokens, d, dtype=dtype), torch.empty(tokens, d, dtype=dtype)
    experts, weights, hidden = launch.choose(view, u, k)
    choice = Choice(experts[0], weights[0])
    launch.add_rows(view, 0, u, choice._replace(hidden=None if hidden is None else hidden[0]), y)
    launch.add_rows(view, 0, u, choice, y)
    if tokens > launch.FEW:
        launch.add_tiles(view, 0, u, Choice(experts[0].zero_(), weights[0]), y)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
        yield


# GPUs mostly run bfloat16; that every kernel works in float32, too, is seen under the interpreter in any case.
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_compiles_for_sm_90_without_spilling(kernel: str, dtype: torch.dtype, tmp_path: Path) -> None:
    mine = sorted((job for job in jobs(dtype) if job.name == kernel), key=str)
    assert mine
    for job in mine:
        source = ASTSource(
            fn=getattr(launch, kernel), signature=dict(job.signature), constexprs=dict(job.constants),
            attrs={(at,): [["tt.divisibility", 16]] for at in job.divisible},
        )  # fmt: skip
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(job.options))
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        shown = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True)
        assert re.search(r"\bSTACK:0\b", shown.stdout), (job, shown.stdout)
        assert compiled.metadata.shared <= SHARED_BYTES, job
        # Through tables of addresses, too, rows are read 16 bytes at a time, not number by number.
        narrow = (
            r"cp\.async\.ca" if kernel == "expand" else r"cp\.async\.ca|ld\.global\.b16"
        )  # there y, a number a thread
        assert not re.search(narrow, compiled.asm["ptx"]), job
        if dict(job.signature).get("u") == "*bf16" and kernel.endswith(("many", "tiles")):
            assert re.search(r"wgmma|mma\.sync", compiled.asm["ptx"]), job
