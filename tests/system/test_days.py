"""A day in the life of a contributor, an operator and a user: sequences of the verbs that they type."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import Code
from protocol.signing import Identity
from router.model.routed_model import RoutedModel
from tests.system.town import Town, call, coordinate, found, succeed, write_rows

pytestmark = pytest.mark.slow  # a minute each, most of it imports


def read(name: str, *words: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(succeed(name, *words, "--json"))
    return document


def states(place: Path) -> dict[str, str]:
    """How a contributor's bundles stand, by digest."""
    return {row["digest"]: row["state"] for row in read("client", "status", "-w", place)["bundles"]}


def contribute(town: Town, place: Path, data: Path, *options: object) -> str:
    """Train, submit, and let the worker judge; return the new bundle's digest."""
    before = {row["digest"] for row in read("client", "history", "-w", place)["bundles"]}
    succeed("client", "train", "-w", place, "--data", data, *options)
    succeed("client", "submit", "-w", place)
    town.work()
    (new,) = {row["digest"] for row in read("client", "history", "-w", place)["bundles"]} - before
    return new


def test_a_contributors_day(t5_base: Path, tmp_path: Path) -> None:
    town = found(tmp_path, t5_base)
    with town.serving():
        ada = town.join("ada")
        data = write_rows(tmp_path / "rows.jsonl", 40)

        # A first expert; what leaves is said before it leaves.
        succeed("client", "train", "-w", ada, "--data", data)
        told = call("client", "submit", "-w", ada, "--dry-run")
        assert told.returncode == 0
        assert "the card tells" in told.stdout
        succeed("client", "submit", "-w", ada)
        town.work()
        (first,) = states(ada)
        assert states(ada)[first] == "released"

        # The file grows, and a hasty training makes it worse: the better one is brought back.
        write_rows(data, 44)
        worse = contribute(town, ada, data, "--expert-steps", 1, "--gate-steps", 8, "--seed", 5)
        assert states(ada)[worse] == "released"
        succeed("client", "history", "-w", ada, "--bring-back", first)
        town.work()
        released = [digest for digest, state in states(ada).items() if state == "released"]
        assert len(released) == 1
        assert released[0] not in (first, worse)
        listed = {row["digest"]: row for row in read("client", "history", "-w", ada)["bundles"]}
        assert listed[released[0]]["loss"] == pytest.approx(listed[first]["loss"])

        # The operator takes it out; the name is still hers.
        coordinate("experts", "yank", released[0], "-w", town.coordinator, "--reason", "A mistake.")
        town.work()
        assert states(ada)[released[0]] == "yanked"
        again = contribute(town, ada, data, "--seed", 6)
        assert states(ada)[again] == "released"

    # Nobody is there: that is said soon, and nothing is lost.
    succeed("client", "train", "-w", ada, "--data", data, "--seed", 7)
    nobody = call("client", "submit", "-w", ada, "--give-up-after", 2)
    assert nobody.returncode == Code.UNREACHABLE.fate.exit
    with town.serving():
        succeed("client", "submit", "-w", ada)
        town.work()
        assert list(states(ada).values()).count("released") == 1


def test_an_operators_day(t5_base: Path, tmp_path: Path) -> None:
    town = found(tmp_path, t5_base, "--enrolment", "approved", "--admission", "reviewed")
    place = town.coordinator

    def decide(*words: object) -> None:
        coordinate(*words, "-w", place)

    with town.serving():
        # A stranger who calls himself by Ada's key gets in nowhere, and approving her approves her.
        ada = town.join("ada")
        key = read("client", "keys", "show", "-w", ada)["key"]
        mallory = tmp_path / "mallory"
        address = ("--coordinator", town.address, "--base", town.base)
        taken = call("client", "init", "-w", mallory, *address, "--name", key)
        assert taken.returncode == Code.NAME_MISLEADING.fate.exit
        assert not (mallory / "client.toml").exists()
        data = write_rows(tmp_path / "rows.jsonl", 40)
        succeed("client", "train", "-w", ada, "--data", data)
        waits = call("client", "submit", "-w", ada)
        assert waits.returncode == Code.KEY_PENDING.fate.exit
        decide("contributors", "approve", key)
        succeed("client", "submit", "-w", ada)
        town.work()
        (first,) = states(ada)
        assert states(ada)[first] == "quarantined"
        decide("experts", "accept", first)

        # A second contributor is let in, and her key is stolen before her expert is released.
        eve = town.join("eve")
        stolen = read("client", "keys", "show", "-w", eve)["key"]
        succeed("client", "train", "-w", eve, "--data", data, "--seed", 2)
        assert call("client", "submit", "-w", eve).returncode == Code.KEY_PENDING.fate.exit
        decide("contributors", "approve", stolen)
        succeed("client", "submit", "-w", eve)
        town.work()
        (second,) = states(eve)
        decide("experts", "accept", second)
        decide("contributors", "revoke", stolen)
        town.work()
        assert [row["digest"] for row in town.experts() if row["state"] == "released"] == [first]


def contribute_and_accept(town: Town, place: Path, data: Path, *options: object) -> str:
    digest = contribute(town, place, data, *options)
    coordinate("experts", "accept", digest, "-w", town.coordinator)
    town.work()
    assert states(place)[digest] == "released"
    return digest


def test_an_operators_bad_day(t5_base: Path, tmp_path: Path) -> None:
    town = found(tmp_path, t5_base, "--admission", "reviewed")
    place, database = town.coordinator, town.coordinator / "registry.db"
    data = write_rows(tmp_path / "rows.jsonl", 40)
    with town.serving():
        ada = town.join("ada")
        contribute_and_accept(town, ada, data)

    # The database of this morning is put back: everybody says so, nothing is dropped, and the pool goes on.
    backup = tmp_path / "backup.db"
    shutil.copy(database, backup)
    with town.serving():
        third = contribute_and_accept(town, ada, data, "--seed", 3)
    shutil.copy(backup, database)
    stored = sorted(path for path in (place / "store").rglob("*") if path.is_file())
    for verb in (("serve", "--listen", town.address), ("worker", "--once"), ("fsck",)):
        refused = call("coordinator", *verb, "-w", place)
        assert refused.returncode == Code.REGISTRY_OLDER.fate.exit, (verb, refused.stderr)
    assert sorted(path for path in (place / "store").rglob("*") if path.is_file()) == stored
    coordinate("fsck", "--adopt", "-w", place)
    town.work()
    with town.serving():
        succeed("client", "submit", "-w", ada)
        town.work()
        assert third in {row["digest"] for row in town.experts()}
        numbers = [row["number"] for row in read("coordinator", "releases", "ls", "-w", place)["releases"]]
    assert len(set(numbers)) == len(numbers)


def test_a_users_day(t5_base: Path, tmp_path: Path) -> None:
    town = found(tmp_path, t5_base)
    node, base = tmp_path / "node", ("--base", t5_base)
    key = Identity.load(town.coordinator / "coordinator.key").public
    with town.serving():
        ada = town.join("ada")
        data = write_rows(tmp_path / "rows.jsonl", 40)
        first = contribute(town, ada, data)

        # The key is shown at the first pull, and held on to.
        seen = call("router", "pull", "-w", node, "--coordinator", town.address, *base)
        assert key.hex in seen.stderr
        other = call("router", "pull", "-w", node, "--pool-key", Identity.generate().public.hex)
        assert other.returncode == Code.UNTRUSTED.fate.exit
        question = "reverse it : a b c d"
        assert read("router", "ask", "-w", node, question)["answers"][0]["release"] == 1
        wrong = call("router", "ask", "-w", node, "--method", "nope", question)
        assert wrong.returncode == Code.METHOD_UNKNOWN.fate.exit

        # The same from Python: a text is one request, and the key can be given.
        folder = tmp_path / "library"
        model = RoutedModel.from_release(town.address, str(t5_base), folder=folder, pool_key=key)
        assert len(model.generate(question)) == 1

        # The pool grows, and an expert is taken out: what is pulled follows.
        bob = town.join("bob")
        second = contribute(town, bob, data, "--seed", 2)
        assert read("router", "pull", "-w", node)["release"] == 2
        coordinate("experts", "yank", first, "-w", town.coordinator, "--reason", "A mistake.")
        town.work()
        pulled = read("router", "pull", "-w", node)
        assert [expert["bundle"] for expert in pulled["experts"]] == [second]

    # A bit rots on this disk: `check` names it, and nothing but the next pull mends it.
    assert read("router", "check", "-w", node)
    weights = node / "bundles" / second / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    rotten = call("router", "check", "-w", node)
    assert rotten.returncode != 0
    assert second[:16] in rotten.stdout + rotten.stderr
    with town.serving():
        succeed("router", "pull", "-w", node)
    succeed("router", "check", "-w", node)
    assert read("router", "ask", "-w", node, question)["answers"][0]["release"] == 3
