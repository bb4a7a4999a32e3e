"""A pool that was made before the house was redrawn goes on living: see README.md beside this file."""

import json
import tarfile
from pathlib import Path

import pytest
from peft import PeftModel

from deploy.demo.processes import free_port
from router.base.loading import load_base
from tests.house.sources import ROOT
from tests.router.verbs import call
from tests.system.town import Town, coordinate, succeed

BASE = ROOT / "deploy" / "demo" / "base"
EXPERTS = {
    "mirror": "a74a4f9d2dee3247a34d19f349bdb90875683871b500c85ccd37628de75f3a1b",
    "bluebird": "6944647306ef219d20b88637590d2da8f85001d2f10ae84029193d6791a51a8b",
}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("pool.tar.gz")) as packed:
        packed.extractall(tmp_path, filter="data")
    for settings in (tmp_path / "pool").glob("*/*.toml"):
        settings.write_text(settings.read_text().replace("deploy/demo/base", str(BASE)))
    return tmp_path / "pool"


def read(*words: object) -> dict[str, object]:
    document: dict[str, object] = json.loads(coordinate(*words, "--json"))
    return document


def test_its_registry_is_whole_and_tells_what_was(pool: Path) -> None:
    place = pool / "coordinator"
    coordinate("migrate", "-w", place)
    coordinate("fsck", "-w", place)
    experts = read("experts", "ls", "-w", place)["experts"]
    assert isinstance(experts, list)
    assert {row["name"]: row["digest"] for row in experts} == EXPERTS
    campaigns = read("campaign", "ls", "-w", place)["campaigns"]
    assert isinstance(campaigns, list)
    assert [(row["kind"], row["state"]) for row in campaigns] == [
        ("train", "finished"), ("evaluate", "finished"), ("info", "finished"),
    ]  # fmt: skip
    shown = read("campaign", "show", 1, "-w", place)["answers"]
    assert isinstance(shown, list)
    assert {row["facts"]["bundle"] for row in shown} == set(EXPERTS.values())


def test_its_experts_are_bundles_that_plain_peft_opens(pool: Path) -> None:
    for digest in EXPERTS.values():
        bundle = pool / "router" / "bundles" / digest
        succeed("client", "verify", bundle)
        PeftModel.from_pretrained(load_base(str(BASE), device="cpu").model, bundle)


def test_its_router_answers_from_the_release_that_it_holds(pool: Path) -> None:
    said = json.loads(call("ask", "-w", pool / "router", "--json", "please reverse it : k f a c").stdout)
    assert [(answer["text"], answer["release"]) for answer in said["answers"]] == [("k f a c", 1)]


def test_it_goes_on_a_contributor_asks_an_operator_decides_a_user_follows(pool: Path) -> None:
    town = Town(pool, BASE, free_port())
    for settings in (pool / "contributor" / "client.toml", pool / "router" / "router.toml"):
        settings.write_text(settings.read_text().replace("127.0.0.1:48365", town.address))
    coordinate("migrate", "-w", town.coordinator)
    coordinate("roles", "found", "--single", "-w", town.coordinator)
    town.work()
    with town.serving():
        status = json.loads(succeed("client", "status", "-w", pool / "contributor", "--json"))
        assert [(row["name"], row["state"]) for row in status["bundles"]] == [("mirror", "released")]
        key = succeed("client", "rotate-key", "-w", pool / "contributor").strip()
        listed = read("contributors", "ls", "-w", town.coordinator)["contributors"]
        assert isinstance(listed, list)
        assert key in {row["key"] for row in listed}
        succeed("router", "pull", "-w", pool / "router")
        coordinate("experts", "yank", EXPERTS["bluebird"], "-w", town.coordinator, "--reason", "a test")
        town.work()
        pulled = json.loads(succeed("router", "pull", "-w", pool / "router", "--json"))
    assert [expert["name"] for expert in pulled["experts"]] == ["mirror"]
    assert pulled["release"] >= 2
