"""The whole road, with the programs that people type: private data in, routed answer out, nothing leaked."""

import json
from pathlib import Path

import pytest
from peft import PeftModel

from protocol.errors import Code
from router.base.loading import load_base
from tests.system.proxy import proxied
from tests.system.town import call, found, succeed, write_rows

SECRET = "zanzibar-harvest-4711"


# The commands of the README walk it over a T5 in any case.
@pytest.mark.parametrize("kind", ["llama_base", pytest.param("t5_base", marks=pytest.mark.slow)])
def test_from_private_data_to_a_routed_answer(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    town, names = found(tmp_path, request.getfixturevalue(kind)), ["ada", "bob"]
    with town.serving(), proxied(town.port) as wire:
        for name in names:
            place = town.join(name, through=wire.port)
            data = write_rows(tmp_path / f"{name}.jsonl", marker=SECRET)
            succeed("client", "train", "-w", place, "--data", data, "--seed", "1" if name == "ada" else "2")
            dry_run = succeed("client", "submit", "-w", place, "--dry-run", "--json")
            assert SECRET not in dry_run
            assert "lora_A" in dry_run
            before = len(wire.sent)
            succeed("client", "submit", "-w", place)
            assert len(wire.sent) > before
            town.work()
            status = json.loads(succeed("client", "status", "-w", place, "--json"))
            assert [row["state"] for row in status["bundles"]] == ["released"]

        node = tmp_path / "node"
        pulled = json.loads(
            succeed(
                "router", "pull", "-w", node, "--coordinator", f"127.0.0.1:{wire.port}", "--base", town.base, "--json"
            )
        )
        assert pulled["release"] == len(names)
        assert [expert["contributor"] for expert in pulled["experts"]] == names

    # From here on without any coordinator.
    said = json.loads(succeed("router", "ask", "-w", node, "--explain", "--json", "reverse it : a b c d"))
    (answer,) = said["answers"]
    assert answer["release"] == len(names)
    assert answer["experts"] == [f"{name}/{name}" for name in names]
    assert sum(answer["shares"].values()) == pytest.approx(1.0, abs=1e-5)

    # A bundle is a folder that plain PEFT opens.
    bundle = next((node / "bundles").glob("[0-9a-f]*"))
    PeftModel.from_pretrained(load_base(str(town.base), device="cpu").model, bundle)
    succeed("client", "verify", bundle)

    # Nothing of the data crossed the wire or reached the store.
    assert SECRET.encode() in (tmp_path / "ada.jsonl").read_bytes()
    assert SECRET.encode() not in bytes(wire.sent)
    assert b"lora_A" in bytes(wire.sent)
    leaked = [
        path
        for place in (town.coordinator, node, *(tmp_path / name / "bundles" for name in names))
        for path in place.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert leaked == []


@pytest.mark.slow
def test_who_retrained_worse_goes_back(t5_base: Path, tmp_path: Path) -> None:
    town = found(tmp_path, t5_base)
    with town.serving():
        place, data = town.join("ada"), write_rows(tmp_path / "ada.jsonl")
        for steps in (24, 2):
            succeed("client", "contribute", "-w", place, "--data", data, "--expert-steps", steps)
        town.work()
        good, worse = json.loads(succeed("client", "history", "-w", place, "--json"))["bundles"]
        succeed("client", "history", "-w", place, "--bring-back", good["digest"])
        town.work()
        status = json.loads(succeed("client", "status", "-w", place, "--json"))
        states = {row["digest"]: row["state"] for row in status["bundles"]}
        assert (states.pop(good["digest"]), states.pop(worse["digest"])) == ("superseded", "superseded")
        assert list(states.values()) == ["released"]


def test_two_coordinators_or_workers_in_one_workspace_are_refused(t5_base: Path, tmp_path: Path) -> None:
    town = found(tmp_path, t5_base)
    with town.serving():
        second = call("coordinator", "serve", "-w", town.coordinator, "--listen", "127.0.0.1:0")
    assert second.returncode == Code.WORKSPACE_BUSY.fate.exit
    assert second.stderr.startswith("error: ")
    assert "Traceback" not in second.stderr
