from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from protocol import statement
from protocol.documents import read_timestamp
from protocol.errors import Code, Refused
from protocol.fleet.node_key import BINDING_TYPE, Binding, NodeKey, bind, check_clock, read_binding
from protocol.signing import Identity

POOL, OTHER = "1" * 64, "2" * 64
NOW = "2026-11-22T12:00:00Z"


def signed(identity: Identity, document: Binding) -> bytes:
    return identity.sign(statement.build(BINDING_TYPE, {"pool": document.pool}, document))


def test_a_binding_is_read_as_it_was_made(identity: Identity) -> None:
    node = NodeKey.generate()
    found = read_binding(bind(POOL, identity, node, NOW))
    assert (found.pool, found.contributor, found.node) == (POOL, identity.public.hex, node.public)


def test_flower_reads_the_key_that_is_saved(tmp_path: Path) -> None:
    node = NodeKey.generate()
    node.save(tmp_path / "node.key")
    assert (tmp_path / "node.key").stat().st_mode & 0o777 == 0o600
    assert isinstance(load_ssh_private_key((tmp_path / "node.key").read_bytes(), None), ec.EllipticCurvePrivateKey)
    assert NodeKey.load(tmp_path / "node.key").public == node.public
    with pytest.raises(FileExistsError):
        node.save(tmp_path / "node.key")


def test_other_keys_are_no_node_keys(tmp_path: Path, identity: Identity) -> None:
    (tmp_path / "none").write_text("none")
    with pytest.raises(Refused) as refused:
        NodeKey.load(tmp_path / "none")
    assert refused.value.code is Code.KEY_UNREADABLE
    NodeKey(ec.generate_private_key(ec.SECP256R1())).save(tmp_path / "small")
    with pytest.raises(Refused) as refused:
        NodeKey.load(tmp_path / "small")
    assert refused.value.code is Code.NODE_KEY


def wrong_pool(document: Binding) -> Binding:
    return document.model_copy(update={"pool": OTHER})


def other_contributor(document: Binding) -> Binding:
    return document.model_copy(update={"contributor": Identity.generate().public.hex})


def other_node(document: Binding) -> Binding:
    return document.model_copy(update={"node": NodeKey.generate().public})


def no_proof(document: Binding) -> Binding:
    return document.model_copy(update={"proof": "00" * 96})


@pytest.mark.parametrize("change", [wrong_pool, other_contributor, other_node, no_proof])
def test_each_key_must_have_signed_the_other(identity: Identity, change: Callable[[Binding], Binding]) -> None:
    document = read_binding(bind(POOL, identity, NodeKey.generate(), NOW))
    with pytest.raises(Refused) as refused:
        read_binding(signed(identity, change(document)))
    assert refused.value.code is Code.BAD_SIGNATURE


def test_a_stranger_binds_nothing_with_a_copied_proof(identity: Identity) -> None:
    document = read_binding(bind(POOL, identity, NodeKey.generate(), NOW))
    stranger = Identity.generate()
    stolen = document.model_copy(update={"contributor": stranger.public.hex})
    with pytest.raises(Refused) as refused:
        read_binding(signed(stranger, stolen))
    assert refused.value.code is Code.BAD_SIGNATURE


@pytest.mark.parametrize("text", ["none", "Ed25519", "P-256", "padded"])
def test_a_node_key_has_one_kind_and_one_spelling(identity: Identity, text: str) -> None:
    node = NodeKey.generate()
    document = read_binding(bind(POOL, identity, node, NOW))
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    spelt = {
        "none": "none",
        "Ed25519": identity.public.openssh,
        "P-256": other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        "padded": node.public + "\n",
    }[text]
    with pytest.raises(Refused) as refused:
        read_binding(signed(identity, document.model_copy(update={"node": spelt})))
    assert refused.value.code is Code.NODE_KEY


@pytest.mark.parametrize(("apart_s", "taken"), [(-300, True), (300, True), (-301, False), (301, False)])
def test_clocks_that_are_apart_are_told_before_flower_turns_the_node_away(
    identity: Identity, apart_s: int, *, taken: bool
) -> None:
    binding = read_binding(bind(POOL, identity, NodeKey.generate(), NOW))
    now = read_timestamp(NOW) + timedelta(seconds=apart_s)
    if taken:
        check_clock(binding, now=now)
        return
    with pytest.raises(Refused, match=f"clock says {NOW}") as refused:
        check_clock(binding, now=now)
    assert refused.value.code is Code.CLOCKS_APART
