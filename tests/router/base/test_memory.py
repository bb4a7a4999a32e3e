"""Memory within the limits of containers, of either version and one in another."""

from pathlib import Path

import pytest
import torch

from router.base import memory

CPU = torch.device("cpu")
V1, V2 = "5:cpu,memory:/a/b\n4:pids:/c\n0::/\n", "0::/a/b\n"
Limits = dict[str, tuple[str, int]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")
    return tmp_path


def write(folder: Path, version: int, limit: str, used: int) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    inactive = "inactive_file 7\ntotal_inactive_file 400\n" if version == 1 else "inactive_file 400\n"
    (folder / "memory.stat").write_text(f"anon 500\n{inactive}")


@pytest.mark.parametrize(("version", "own", "mount"), [(1, V1, "memory"), (2, V2, ""), (2, V2, "unified")])
@pytest.mark.parametrize(
    ("limits", "free"),
    [
        ({"a/b": ("3000", 1000)}, 2400),
        ({"a/b": ("3000", 4000)}, 0),
        ({"a/b": ("3000", 1000), "a": ("2000", 1500), "": ("9000", 0)}, 900),
        ({"a/b": ("3000", 1000), "a": ("9000", 8900), "": ("9000", 0)}, 500),
        ({"a/b": ("none", 1000), "a": ("2000", 1500)}, 900),
        # A container sees its own group as the root of all, whatever the host calls it.
        ({"": ("2000", 500)}, 1900),
        # Somebody else's.
        ({"a/c": ("1000", 0), "a/b": ("3000", 1000)}, 2400),
    ],
)
def test_the_tightest_group_on_the_way_counts(
    version: int, own: str, mount: str, limits: Limits, free: int, machine: Path
) -> None:
    (machine / "own").write_text(own)
    for name, (limit, used) in limits.items():
        unlimited = "9223372036854771712" if version == 1 else "max"
        write(machine / mount / name, version, unlimited if limit == "none" else limit, used)
    assert memory.free_bytes(CPU) == free


@pytest.mark.parametrize("own", [None, "", "0::/\n", V1, "5:memory:/../../x\n", "nonsense"])
def test_without_a_limit_there_is_the_machine(own: str | None, machine: Path) -> None:
    if own is not None:
        (machine / "own").write_text(own)
    assert 1 << 26 < memory.free_bytes(CPU) < 1 << 50
