"""What the sandbox finds, and what happens to the sandbox."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from coordinator.admission import limited_process
from coordinator.admission.check import check_content
from coordinator.admission.limited_process import ProcessLimits
from coordinator.admission.numerics import check_adapter
from protocol.adapters import Kind
from protocol.bundle import ADAPTER_WEIGHTS, CARD, GATES, SPEC, Bundle, pack
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Centroid, Means, Statistics
from protocol.tensors import TensorInfo, adapter_tensors
from tests import factories
from tests.coordinator.conftest import set_config

GATE = "block.0.q.gate"
A = "base_model.model.block.0.q.lora_A.weight"
B = "base_model.model.block.0.q.lora_B.weight"


@pytest.fixture
def pool_file(tmp_path: Path, pool: Pool) -> Path:
    path = tmp_path / "pool.dsse.json"
    path.write_bytes(pool.envelope)
    return path


def edit(bundle: Bundle, identity: Identity, file: str, change: Any) -> None:
    tensors = load_file(bundle.folder / file)
    change(tensors)
    save_file(tensors, bundle.folder / file, {"format": "pt"})
    pack(bundle.folder, bundle.spec, identity)


def refusal(bundle: Bundle, pool_file: Path) -> Refused:
    with pytest.raises(Refused) as refused:
        check_content(bundle.folder, pool_file)
    return refused.value


def test_a_good_bundle_passes_in_the_sandbox(bundle: Bundle, pool_file: Path) -> None:
    limited_process.check(bundle.folder, pool_file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("file", "name"), [(ADAPTER_WEIGHTS, A), (ADAPTER_WEIGHTS, B), (GATES, GATE)])
def test_not_finite(bundle: Bundle, identity: Identity, pool_file: Path, value: float, file: str, name: str) -> None:
    edit(bundle, identity, file, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    refused = refusal(bundle, pool_file)
    assert refused.code is Code.NOT_FINITE
    assert name in refused.message


@pytest.mark.parametrize("value", [0.0, 0.7, -3e4])
def test_constant_gate(bundle: Bundle, identity: Identity, pool_file: Path, value: float) -> None:
    edit(bundle, identity, GATES, lambda tensors: tensors[GATE].fill_(value))
    refused = refusal(bundle, pool_file)
    assert refused.code is Code.CONSTANT_GATE
    assert GATE in refused.message


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_no_effect(bundle: Bundle, identity: Identity, pool_file: Path, half: str) -> None:
    def zero(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if half in name:
                tensor.zero_()

    edit(bundle, identity, ADAPTER_WEIGHTS, zero)
    assert refusal(bundle, pool_file).code is Code.NO_EFFECT


def test_one_module_may_be_without_effect(bundle: Bundle, identity: Identity, pool_file: Path) -> None:
    edit(bundle, identity, ADAPTER_WEIGHTS, lambda tensors: tensors[B].zero_())
    check_content(bundle.folder, pool_file)


def test_a_missing_tensor(bundle: Bundle, identity: Identity, pool_file: Path) -> None:
    edit(bundle, identity, ADAPTER_WEIGHTS, lambda tensors: tensors.pop(B))
    assert refusal(bundle, pool_file).code is Code.TENSOR_NAMES


def test_a_transposed_tensor(bundle: Bundle, identity: Identity, pool_file: Path) -> None:
    edit(bundle, identity, ADAPTER_WEIGHTS, lambda tensors: tensors.update({A: tensors[A].T.contiguous()}))
    assert refusal(bundle, pool_file).code is Code.TENSOR_SHAPE


def test_another_dtype(bundle: Bundle, identity: Identity, pool_file: Path) -> None:
    edit(bundle, identity, GATES, lambda tensors: tensors.update({GATE: tensors[GATE].half()}))
    assert refusal(bundle, pool_file).code is Code.TENSOR_DTYPE


def test_bytes_after_the_tensors(bundle: Bundle, identity: Identity, pool_file: Path) -> None:
    with (bundle.folder / GATES).open("ab") as file:
        file.write(b"MZ")
    pack_anyway(bundle, identity)
    assert refusal(bundle, pool_file).code is Code.TENSOR_HEADER


def pack_anyway(bundle: Bundle, identity: Identity) -> None:
    pack(bundle.folder, bundle.spec, identity)


def test_a_spec_that_is_not_the_signed_one(bundle: Bundle, pool_file: Path) -> None:
    spec = json.loads((bundle.folder / SPEC).read_text())
    (bundle.folder / SPEC).write_text(json.dumps(spec | {"license": "other"}))
    assert refusal(bundle, pool_file).code is Code.SPEC_INVALID


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 5},
        {"r": True},
        {"lora_alpha": 1e30},
        {"lora_dropout": "all of it"},
        {"rank_pattern": {"q": 2}},
        {"rank_pattern": {f"(a+)+$|{number}": 4 for number in range(1000)}},
        {"bias": "all"},
        {"use_dora": True},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}},
        {"base_model_name_or_path": "evil/base"},
        {"revision": "evil"},
        {"task_type": "SEQ_CLS"},
        {"megatron_core": "evil.core"},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": [0]},
        {"a_key_of_tomorrow": "x" * 200_000},
        {"target_modules": ["q"]},
        {"target_modules": "all-linear"},
        {"peft_version": "0.21.2"},
    ],
)
def test_a_config_that_is_not_the_derived_one(
    bundle: Bundle, identity: Identity, pool_file: Path, changes: dict[str, Any]
) -> None:
    refused = refusal(set_config(bundle, identity, **changes), pool_file)
    assert refused.code is Code.CONFIG_MISMATCH


@pytest.mark.parametrize("text", [b"\xff\xfe", b"# one\x1b]52;c;YQ==\x07", "# one\u202e".encode(), b"# one\r\n"])
def test_a_card_that_a_screen_would_obey(bundle: Bundle, identity: Identity, pool_file: Path, text: bytes) -> None:
    (bundle.folder / CARD).write_bytes(text)
    pack(bundle.folder, bundle.spec, identity)
    assert refusal(bundle, pool_file).code is Code.CARD_INVALID


KINDS: tuple[Kind, ...] = get_args(Kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_passes(tmp_path: Path, pool: Pool, identity: Identity, pool_file: Path, kind: Kind) -> None:
    check_content(factories.make_bundle(tmp_path / kind, pool, identity, kind=kind).folder, pool_file)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("dora", {"use_dora": False}),
        ("rslora", {"use_rslora": False}),
        ("ia3", {"peft_type": "LORA"}),
        ("ia3", {"feedforward_modules": ["block.0.q"]}),
        ("bottleneck", {"peft_type": "LORA"}),
    ],
)
def test_a_kind_that_plain_peft_would_read_otherwise(
    tmp_path: Path, pool: Pool, identity: Identity, pool_file: Path, kind: Kind, changes: dict[str, Any]
) -> None:
    bundle = factories.make_bundle(tmp_path / kind, pool, identity, kind=kind)
    assert refusal(set_config(bundle, identity, **changes), pool_file).code is Code.CONFIG_MISMATCH


@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_as_it_was_before_training_has_no_effect(
    tmp_path: Path, pool: Pool, identity: Identity, pool_file: Path, kind: Kind
) -> None:
    def untrain(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith(("lora_B.weight", "adapter_up.weight")):
                tensor.zero_()
            if name.endswith("ia3_l"):
                tensor.fill_(1.0)

    bundle = factories.make_bundle(tmp_path / kind, pool, identity, kind=kind)
    edit(bundle, identity, ADAPTER_WEIGHTS, untrain)
    assert refusal(bundle, pool_file).code is Code.NO_EFFECT


@pytest.mark.parametrize(("kind", "name"), [("dora", "lora_magnitude_vector"), ("ia3", "ia3_l")])
def test_a_vector_that_is_not_finite(
    tmp_path: Path, pool: Pool, identity: Identity, pool_file: Path, kind: Kind, name: str
) -> None:
    bundle = factories.make_bundle(tmp_path / kind, pool, identity, kind=kind)
    tensor = f"base_model.model.block.0.q.{name}"
    edit(bundle, identity, ADAPTER_WEIGHTS, lambda tensors: tensors[tensor].view(-1)[:1].fill_(torch.nan))
    refused = refusal(bundle, pool_file)
    assert refused.code is Code.NOT_FINITE
    assert tensor in refused.message


@pytest.mark.parametrize(
    ("kind", "name"),
    [("dora", "lora_magnitude_vector"), ("ia3", "ia3_l"), ("bottleneck", "adapter_down.weight")],
)
def test_a_tensor_of_a_kind_in_another_shape(
    tmp_path: Path, pool: Pool, identity: Identity, pool_file: Path, kind: Kind, name: str
) -> None:
    def flip(tensors: dict[str, torch.Tensor]) -> None:
        key = f"base_model.model.block.0.q.{name}"
        tensors[key] = tensors[key].T.contiguous() if tensors[key].dim() == 2 else tensors[key].unsqueeze(1)

    bundle = factories.make_bundle(tmp_path / kind, pool, identity, kind=kind)
    edit(bundle, identity, ADAPTER_WEIGHTS, flip)
    refused = refusal(bundle, pool_file)
    assert refused.code is Code.TENSOR_SHAPE
    assert name in refused.message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_decoded(tmp_path: Path, dtype: torch.dtype) -> None:
    code = {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    half = torch.ones(2, 3).to(dtype)
    path = tmp_path / "half.safetensors"
    for last, expected in ((1.0, None), (float("nan"), Code.NOT_FINITE), (float("inf"), Code.NOT_FINITE)):
        half[1, 2] = last
        path.write_bytes(half.view(torch.uint16).numpy().tobytes() * 2)
        tensors = {A: TensorInfo(code, (2, 3), 0), B: TensorInfo(code, (3, 2), 12)}
        if expected is None:
            check_adapter(path, tensors)
        else:
            with pytest.raises(Refused) as refused:
                check_adapter(path, tensors)
            assert refused.value.code is expected


def test_a_subnormal_bfloat16_is_something(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(np.array([1, 1], dtype="<u2").tobytes())
    check_adapter(path, {A: TensorInfo("BF16", (1, 1), 0), B: TensorInfo("BF16", (1, 1), 2)})


def test_a_refusal_crosses_the_sandbox(bundle: Bundle, identity: Identity, pool_file: Path) -> None:
    edit(bundle, identity, GATES, lambda tensors: tensors[GATE].fill_(float("nan")))
    inside = refusal(bundle, pool_file)
    with pytest.raises(Refused) as outside:
        limited_process.check(bundle.folder, pool_file)
    assert (outside.value.code, outside.value.message, outside.value.hint) == (inside.code, inside.message, inside.hint)


@pytest.mark.parametrize(
    "limits",
    [ProcessLimits(memory_bytes=64 << 20), ProcessLimits(cpu_s=0), ProcessLimits(wall_s=0.01)],
    ids=["memory", "cpu", "wall"],
)
def test_a_sandbox_that_hits_its_limits_is_no_verdict(bundle: Bundle, pool_file: Path, limits: ProcessLimits) -> None:
    with pytest.raises(limited_process.CheckFailedError):
        limited_process.check(bundle.folder, pool_file, limits)


def test_a_rotten_pool_is_not_the_bundles_fault(bundle: Bundle, pool_file: Path) -> None:
    pool_file.write_bytes(b"{}")
    with pytest.raises(limited_process.CheckFailedError):
        limited_process.check(bundle.folder, pool_file)


def test_a_sandbox_that_answers_nonsense_gave_no_verdict(
    bundle: Bundle, pool_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for output in (b"", b"[]", b'{"code": "NO_SUCH", "message": "", "hint": ""}'):
        done = subprocess.CompletedProcess([], 0, output, b"")
        monkeypatch.setattr(subprocess, "run", lambda *_, done=done, **__: done)
        with pytest.raises(limited_process.CheckFailedError):
            limited_process.check(bundle.folder, pool_file)


def test_the_sandbox_sees_nothing_of_the_servers_environment(
    bundle: Bundle, pool_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def run(*_: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
        seen.update(options)
        return subprocess.CompletedProcess([], 0, b'{"answer": ""}', b"")

    monkeypatch.setenv("GREYLAG_COORDINATOR_DATABASE", "postgresql://user:secret@host/db")
    monkeypatch.setattr(subprocess, "run", run)
    limited_process.check(bundle.folder, pool_file)
    assert not any("secret" in value for value in seen["env"].values())


def test_the_secret_is_in_no_list_of_processes(
    bundle: Bundle, pool_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = subprocess.run, []

    def noted(command: list[str], **options: Any) -> Any:
        seen.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", noted)
    sketch = limited_process.check(bundle.folder, pool_file, secret=b"k" * 32)
    assert sketch == limited_process.sketch(bundle.folder, pool_file, secret=b"k" * 32)
    assert sketch != limited_process.check(bundle.folder, pool_file, secret=b"l" * 32)
    assert limited_process.compare(bundle.folder, bundle.folder, pool_file) == pytest.approx(1)
    assert not any((b"k" * 32).hex() in word for command in seen for word in command)


def test_memory_does_not_grow_with_the_bundle(tmp_path: Path, pool: Pool, identity: Identity) -> None:
    small = factories.make_bundle(tmp_path / "b", pool, identity)
    spec = small.spec.model_copy(
        update={"modules": {"m": small.spec.modules["block.0.q"].model_copy(
            update={"d_in": 1 << 20, "d_out": 1 << 20, "rank": 32})}}
    )  # fmt: skip
    path = tmp_path / "large.safetensors"
    tensors, end = {}, 0
    for name, info in adapter_tensors(spec).items():
        tensors[name] = info._replace(offset=end)
        end += info.nbytes
    with path.open("wb") as file:
        for info in tensors.values():
            file.seek(info.offset)
            file.write(b"\0\0\x80\x3f")
        file.truncate(end)
    script = "import sys; from pathlib import Path; from coordinator.admission.numerics import check_adapter;"
    script += "from protocol.tensors import TensorInfo; check_adapter(Path(sys.argv[1]), eval(sys.argv[2]));"
    # Not ru_maxrss: a child inherits that of the process that forked it.
    script += "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), repr(tensors)], capture_output=True, check=True, timeout=60
    )
    assert end == 256 << 20
    assert int(done.stdout) << 10 < 120 << 20


def test_statistics_are_judged_like_gates(tmp_path: Path, pool: Pool, identity: Identity, pool_file: Path) -> None:
    told = Statistics(means=Means(), centroid=Centroid(width=8))
    bundle = factories.make_bundle(tmp_path / "told", pool, identity, statistics=told)
    check_content(bundle.folder, pool_file)
    mean = next(f"{path}.mean" for path in bundle.spec.modules)
    for name, value, code in (
        (mean, torch.nan, Code.NOT_FINITE), (mean, 1e5, Code.NOT_FINITE),
        (mean, 0.5, Code.CONSTANT_GATE), ("centroid", 0.0, Code.CONSTANT_GATE)
    ):  # fmt: skip
        bundle = factories.make_bundle(tmp_path / f"{name}{value}", pool, identity, statistics=told)
        edit(bundle, identity, GATES, partial(_fill, name=name, value=value))
        refused = refusal(bundle, pool_file)
        assert refused.code is code
        assert name in refused.message


def _fill(tensors: dict[str, torch.Tensor], name: str, value: float) -> None:
    tensors[name].fill_(value)


def test_statistics_that_nobody_declared(bundle: Bundle, identity: Identity, pool_file: Path) -> None:
    edit(bundle, identity, GATES, lambda tensors: tensors.update(centroid=torch.ones(4)))
    assert refusal(bundle, pool_file).code is Code.TENSOR_NAMES


def test_a_file_that_becomes_shorter_while_it_is_read_is_no_verdict(tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(np.ones(3, "<f4").tobytes())
    with pytest.raises(EOFError, match="became shorter"):
        check_adapter(path, {A: TensorInfo("F32", (2, 2), 0)})


def test_an_order_is_answered_whatever_it_asks_for(
    tmp_path: Path, pool: Pool, bundle: Bundle, identity: Identity, pool_file: Path
) -> None:
    """What the process does within its limits, which end with it and cannot be set here."""

    def answer(task: str, *folders: Path) -> dict[str, Any]:
        order = {"task": task, "folders": [str(each) for each in folders], "pool": str(pool_file), "secret": "6b"}
        return limited_process.carry_out(order)

    other = factories.make_bundle(tmp_path / "other", pool, identity, seed=1)
    assert answer("check", bundle.folder) == answer("sketch", bundle.folder)
    assert answer("compare", bundle.folder, bundle.folder)["answer"] == pytest.approx(1)
    assert answer("compare", bundle.folder, other.folder)["answer"] < 0.5
    edit(bundle, identity, GATES, lambda tensors: tensors[GATE].fill_(float("nan")))
    assert answer("check", bundle.folder)["code"] == "NOT_FINITE"
    assert "answer" in answer("sketch", bundle.folder), "an older version let it in, and it is judged no more"
