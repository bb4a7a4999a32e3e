"""Bundles on their way: what leaves, what comes of it, and the way back to an earlier expert."""

import errno
import hashlib
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from client.submission import outbox, upload
from protocol.bundle import ADAPTER_WEIGHTS, CARD, FILES, GATES, open_bundle
from protocol.documents import Pool
from protocol.errors import Code
from protocol.signing import Identity
from protocol.v1.intake_pb2 import StatusReply
from tests import factories
from tests.client.conftest import PLANTED, Cli, Site, Trained
from tests.client.fake_coordinator import FakeCoordinator


def test_dry_run_says_in_ten_lines_what_leaves_and_sends_nothing(
    cli: Cli, trained: Trained, address: str, monkeypatch: pytest.MonkeyPatch, fake: FakeCoordinator
) -> None:
    monkeypatch.setenv("GREYLAG_CLIENT_COORDINATOR", address)
    bundle, root = trained.bundle, trained.site.workspace.root
    status, out, err = cli("submit", bundle.folder, "--dry-run", "-w", root)
    assert (status, err, fake.calls) == (0, "", [])
    assert len(out.splitlines()) <= 11
    assert f"to {address}: the bundle reverse, {bundle.digest[:12]}, in no other's place" in out
    assert f"5 files, {bundle.manifest.total_bytes:,} bytes" in out
    assert bundle.spec.contributor[:16] in out
    assert "the card tells: examples: 100 to 1,000" in out
    assert re.search(r"the card tells: loss on held-out examples: [0-9.]+ by the base alone", out)
    status, document, _ = cli("submit", bundle.folder, "--dry-run", "--json", "-w", root)
    leaving = json.loads(document)
    assert leaving["schema"] == 1
    assert {entry["name"] for entry in leaving["files"]} == set(FILES)
    assert {entry["sha256"] for entry in leaving["files"]} == {file.sha256 for file in bundle.manifest.files.values()}
    told = {(entry["name"], *entry["shape"]) for entry in leaving["tensors"]}
    for path, module in bundle.spec.modules.items():
        assert (f"base_model.model.{path}.lora_A.weight", module.rank, module.d_in) in told
        assert (f"{path}.gate", module.d_in) in told
    assert leaving["statement"]["predicate"]["spec"] == json.loads(bundle.spec.model_dump_json())
    assert leaving["enrolment"]["predicate"]["name"] == "anna"
    assert fake.calls == []


def test_what_is_sent_is_what_the_dry_run_shows(cli: Cli, packed: Site, fake: FakeCoordinator) -> None:
    leaving = json.loads(cli("submit", "--dry-run", "--json", "-w", packed.workspace.root)[1])
    assert cli("submit", "-w", packed.workspace.root)[0] == 0
    sent = {name: len(content) for (_, name), content in fake.files.items()}
    assert sent == {entry["name"]: entry["bytes"] for entry in leaving["files"]}
    assert packed.workspace.enrolment_file.read_bytes() in bytes(fake.heard)


def test_submit_keeps_the_receipt_and_status_the_verdict(cli: Cli, packed: Site, fake: FakeCoordinator) -> None:
    root = packed.workspace.root
    status, out, err = cli("submit", "-w", root)
    assert (status, out.split()[1:]) == (0, ["anna", "received"])
    assert "receipt number 1" in err
    (record,) = outbox.load(packed.workspace.outbox)
    assert record.receipt.encode() == fake.kept[record.digest]
    fake.states = [StatusReply(state="released", release=3)]
    status, out, _ = cli("status", "--json", "-w", root)
    document = json.loads(out)
    assert (status, document["schema"]) == (0, 1)
    assert (document["bundles"][0]["state"], document["bundles"][0]["release"]) == ("released", 3)
    assert "in release 3" in cli("status", "-w", root)[1]


def test_status_looks_at_the_pool_before_it_asks(
    cli: Cli, packed: Site, fake: FakeCoordinator, llama_base: Path
) -> None:
    assert cli("submit", "-w", packed.workspace.root)[0] == 0
    fake.calls.clear()
    packed.workspace.pool_file.write_bytes(factories.make_pool(llama_base, Identity.generate()).envelope)
    assert cli("status", "-w", packed.workspace.root)[0] == Code.UNTRUSTED.fate.exit
    packed.workspace.pool_file.unlink()
    assert cli("status", "-w", packed.workspace.root)[0] == Code.WORKSPACE_MISSING.fate.exit
    assert fake.calls == []


def test_a_refused_bundle_fails_with_its_own_status(cli: Cli, packed: Site, fake: FakeCoordinator) -> None:
    verdict = StatusReply(state="refused", code="NOT_FINITE", message="A NaN.", hint="\x1b[2J")
    fake.states = [StatusReply(state="verified"), verdict]
    status, out, err = cli("submit", "--wait", "-w", packed.workspace.root)
    assert status == Code.NOT_FINITE.fate.exit
    assert "refused: NOT_FINITE A NaN." in out
    assert "error: A NaN. [NOT_FINITE]\nhint: \\x1b[2J\n" in err
    assert cli("status", "-w", packed.workspace.root)[0] == 0


def test_submit_asks_for_a_bundle_and_for_one_only(cli: Cli, packed: Site) -> None:
    root, bundles = packed.workspace.root, packed.workspace.bundles
    factories.make_bundle(bundles / "bert", packed.pool, packed.contributor, name="bert")
    status, _, err = cli("submit", "-w", root)
    assert status == Code.NOT_TRAINED.fate.exit
    assert "anna, bert" in err
    assert cli("submit", "bert", "-w", root)[1].split()[1] == "bert"
    shutil.rmtree(bundles)
    status, _, err = cli("submit", "-w", root)
    assert status == Code.NOT_TRAINED.fate.exit
    assert "greylag-client train" in err


def test_submit_refuses_what_was_made_elsewhere(
    cli: Cli, packed: Site, tmp_path: Path, llama_pool: Pool, fake: FakeCoordinator
) -> None:
    strange = factories.make_bundle(tmp_path / "strange", packed.pool, Identity.generate())
    other = factories.make_bundle(tmp_path / "other", llama_pool, packed.contributor)
    for bundle, code in ((strange, Code.SIGNER_MISMATCH), (other, Code.WRONG_POOL)):
        assert cli("submit", bundle.folder, "-w", packed.workspace.root)[0] == code.fate.exit
    assert fake.calls == []


def test_contribute_trains_and_submits_and_no_example_is_heard(
    cli: Cli, site: Site, fake: FakeCoordinator, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYLAG_CLIENT_COORDINATOR", address)
    flags = ("--device", "cpu", "--expert-steps", 6, "--gate-steps", 2, "--eval-every", 3, "--progress", "jsonl")
    status, out, err = cli("contribute", "--data", site.data, "--wait", "-w", site.workspace.root, *flags)
    assert (status, out.split()[1:]) == (0, ["anna", "released"])
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert {event["phase"] for event in events} == {"expert", "gates", "upload"}
    assert all(event["event"] == "progress" and event["step"] <= event["of"] for event in events)
    assert PLANTED.encode() not in bytes(fake.heard)
    assert all(PLANTED.encode() not in content for content in fake.files.values())


def test_a_bundle_is_read_once_to_sign_it_and_never_again(
    cli: Cli, site: Site, fake: FakeCoordinator, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYLAG_CLIENT_COORDINATOR", address)
    read: list[str] = []
    digest = hashlib.file_digest

    def watch(file: Any, name: str) -> Any:
        read.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", watch)
    flags = ("--device", "cpu", "--expert-steps", 2, "--gate-steps", 1)
    assert cli("contribute", "--data", site.data, "-w", site.workspace.root, *flags)[0] == 0
    assert sorted(name for name in read if name in FILES) == sorted(FILES)


def test_two_files_count_as_one(cli: Cli, site: Site, tmp_path: Path) -> None:
    rows = site.data.read_text().splitlines(keepends=True)
    parts = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for path, part in zip(parts, (rows[:60], rows[60:]), strict=True):
        path.write_text("".join(part))
    flags = ("--device", "cpu", "--expert-steps", 2, "--gate-steps", 1, "-w", site.workspace.root)
    folder = Path(cli("train", "--data", site.data, "--name", "whole", *flags)[1].split()[1])
    apart = Path(cli("train", "--data", parts[0], "--data", parts[1], "--name", "apart", *flags)[1].split()[1])
    assert (folder / ADAPTER_WEIGHTS).read_bytes() == (apart / ADAPTER_WEIGHTS).read_bytes()
    gone = cli("train", "--data", parts[0], "--data", tmp_path, *flags)
    assert (gone[0], "is a folder" in gone[2]) == (Code.DATA_UNREADABLE.fate.exit, True)


def test_hints_can_be_typed_as_they_stand(cli: Cli, site: Site) -> None:
    root = site.workspace.root
    assert f"hint: Make one with: greylag-client train -w {root} --data FILE\n" in cli("submit", "-w", root)[2]
    _, _, err = cli("train", "--data", site.data, "--device=cpu", "--expert-steps=2", "--gate-steps=1", "-w", root)
    assert f"send it with: greylag-client submit -w {root} anna\n" in err


def test_a_wrong_port_fails_in_seconds(cli: Cli, packed: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREYLAG_CLIENT_COORDINATOR", "127.0.0.1:1")
    began = time.monotonic()
    assert cli("submit", "-w", packed.workspace.root)[0] == Code.UNREACHABLE.fate.exit
    assert time.monotonic() - began < 20


def test_waiting_where_nobody_works_is_said_and_fails(
    cli: Cli, packed: Site, fake: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "QUIET_S", 0.0)
    monkeypatch.setattr(upload, "POLL_S", 0.01)
    fake.states = [StatusReply(state="received")]
    for verb in ("submit", "status"):
        status, out, err = cli(verb, "--wait", "--give-up-after", 0.1, "-w", packed.workspace.root)
        assert status == Code.BUSY.fate.exit == 75
        assert out.split()[1:] == ["anna", "received"]
        assert "has decided yet. Waiting for up to 0.1 s." in err
        assert "nobody there has decided about it: it is received. [BUSY]" in err
        assert f"greylag-client status -w {packed.workspace.root} --wait" in err


def test_who_retrains_worse_is_told_and_goes_back(
    cli: Cli, site: Site, fake: FakeCoordinator, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYLAG_CLIENT_COORDINATOR", address)
    root, flags = site.workspace.root, ("--device", "cpu", "--gate-steps", 4, "--eval-every", 2)
    assert "Nothing was made here yet" in cli("history", "-w", root)[2]
    cli("contribute", "--data", site.data, "-w", root, *flags, "--expert-steps", 40)
    good = open_bundle(site.workspace.bundles / "anna")
    _, _, err = cli("contribute", "--data", site.data, "-w", root, *flags, "--expert-steps", 2)
    assert "it takes the place of one with" in err
    assert "greylag-client history" in err
    worse = open_bundle(site.workspace.bundles / "anna")
    listed = json.loads(cli("history", "--json", "-w", root)[1])["bundles"]
    assert [row["digest"] for row in listed] == [good.digest, worse.digest]
    assert listed[0]["loss"] < listed[1]["loss"]
    assert {row["state"] for row in listed} == {"received"}
    assert f"{good.digest[:12]} anna" in cli("history", "-w", root)[1]

    fake.states = [StatusReply(state="released", release=3)]
    status, out, err = cli("history", "--bring-back", good.digest[:12], "--wait", "-w", root)
    assert (status, out.split()[1:3]) == (0, ["anna", "released,"]), err
    back = open_bundle(site.workspace.bundles / "anna")
    assert back.spec.supersedes == worse.digest
    for name in (ADAPTER_WEIGHTS, GATES, CARD):
        assert back.manifest.files[name] == good.manifest.files[name]
    assert cli("history", "--bring-back", back.digest, "-w", root)[0] == 0  # again: nothing changes
    assert open_bundle(site.workspace.bundles / "anna").digest == back.digest
    listed = json.loads(cli("history", "--json", "-w", root)[1])["bundles"]
    assert [(row["digest"], row["release"]) for row in listed][-1] == (back.digest, 3)
    assert len(listed) == 3
    status, _, err = cli("history", "--bring-back", "x", "-w", root)
    assert (status, "0 bundles" in err) == (Code.BUNDLE_UNKNOWN.fate.exit, True)


def test_a_better_expert_supersedes_the_one_that_was_submitted(
    cli: Cli, site: Site, fake: FakeCoordinator, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYLAG_CLIENT_COORDINATOR", address)
    root, data = site.workspace.root, site.data
    flags = ("--device", "cpu", "--gate-steps", 1, "--expert-steps")
    cli("contribute", "--data", data, "-w", root, *flags, 2)
    (first,) = outbox.load(site.workspace.outbox)
    cli("contribute", "--data", data, "-w", root, *flags, 3)
    second = open_bundle(site.workspace.bundles / "anna")
    assert second.spec.supersedes == first.digest
    assert cli("train", "--data", data, "-w", root, *flags, 3)[1].split()[0] == second.digest  # nothing changed
    outbox.save(site.workspace.outbox, first.model_copy(update={"state": "superseded"}))  # as `status` hears
    assert cli("train", "--data", data, "-w", root, *flags, 3)[1].split()[0] == second.digest
    outbox.save(site.workspace.outbox, first)
    record = outbox.load(site.workspace.outbox)[-1]
    outbox.save(site.workspace.outbox, record.model_copy(update={"state": "refused"}))
    cli("train", "--data", data, "-w", root, *flags, 2)
    assert open_bundle(site.workspace.bundles / "anna").spec.supersedes == first.digest


def test_a_kill_between_two_renames_costs_no_bundle(cli: Cli, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    flags = ("train", "--data", site.data, "-w", site.workspace.root, "--device", "cpu", "--gate-steps", 1)
    first = cli(*flags, "--expert-steps", 2)[1].split()[0]
    folder = site.workspace.bundles / "anna"
    old = folder.rename(folder.with_name(".anna.old"))  # the kill
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        assert cli(*flags, "--expert-steps", 2)[0] == Code.STORAGE_FULL.fate.exit
    assert open_bundle(folder).digest == first
    old.mkdir()  # a kill later, before the old one was removed
    second = cli(*flags, "--expert-steps", 3)[1].split()[0]
    assert open_bundle(folder).digest == second != first
    assert not old.exists()
