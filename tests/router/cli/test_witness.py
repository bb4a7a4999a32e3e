"""`greylag-router witness`, and `pull` for whoever wants its word."""

import json
from pathlib import Path

import pytest

from protocol.bundle import Bundle
from protocol.errors import Code, GreylagError
from protocol.log.note import NoteKey
from router.settings import FILE, load
from tests.router.catalog import Catalog
from tests.router.verbs import call


def signed(folder: Path, address: str) -> tuple[str, int]:
    flags = ("--name", "w1.example.org", "--once", "--json")
    said = json.loads(call("witness", "-w", folder, "--coordinator", address, *flags).stdout)
    return said["key"], said["size"]


def refused(code: Code, *arguments: object) -> str:
    with pytest.raises(GreylagError) as error:
        call(*arguments)
    assert error.value.code is code
    return error.value.message


def test_who_wants_a_witness_waits_for_it(
    catalog: Catalog, address: str, bundles: list[Bundle], t5_base: Path, tmp_path: Path
) -> None:
    catalog.publish(bundles[:1], number=1)
    seen, node = tmp_path / "seen", tmp_path / "node"
    key, size = signed(seen, address)
    assert size == len(catalog.ledger.leaves)
    assert str(NoteKey.parse(key)) == key
    call("pull", "-w", node, "--coordinator", address, "--base", t5_base, "--witness", key)
    assert load(node).witnesses == (key,), "the next pull wants it, too"
    catalog.publish(bundles, number=2)
    assert "0 of 1 witnesses" in refused(Code.LOG_UNWITNESSED, "pull", "-w", node)
    assert signed(seen, address) == (key, len(catalog.ledger.leaves))
    assert "Release 2" in call("pull", "-w", node).stdout
    catalog.ledger.leaves.pop()
    refused(Code.LOG_ROLLBACK, "witness", "-w", seen, "--coordinator", address, "--name", "w1.example.org", "--once")


def test_keys_and_numbers_that_cannot_be_are_refused(
    catalog: Catalog, address: str, bundles: list[Bundle], t5_base: Path, tmp_path: Path
) -> None:
    catalog.publish(bundles[:1], number=1)
    key, _ = signed(tmp_path / "seen", address)
    pulling = ("pull", "-w", tmp_path / "node", "--coordinator", address, "--base", t5_base)
    refused(Code.KEY_TYPE, *pulling, "--witness", key[:-4])
    refused(Code.SETTINGS_INVALID, *pulling, "--witness", key, "--witnesses-needed", 2)
    refused(Code.SETTINGS_INVALID, "witness", "-w", tmp_path / "x", "--coordinator", address, "--name", "a b", "--once")
    assert not (tmp_path / "node" / FILE).exists()
    call(*pulling, "--witness", key, "--witnesses-needed", 0)
