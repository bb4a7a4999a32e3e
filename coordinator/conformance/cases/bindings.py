"""Bindings: a daemon's key and its contributor's, each of which signs the other."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from coordinator.conformance.answer import UnmetError
from coordinator.conformance.case import Case, Need, Row, named
from coordinator.conformance.draft import REMOVED, Unsigned
from coordinator.conformance.fault import describe, in_payload
from coordinator.conformance.stage import Stage
from protocol.documents import timestamp
from protocol.errors import Code
from protocol.fleet.node_key import MAX_APART_S, NodeKey, bind
from protocol.signing import Signed
from protocol.v1 import intake_pb2

SPEC = Code.SPEC_INVALID


def binding(stage: Stage, owner: str, node: NodeKey | None = None, pool: str = "", apart_s: float = 0.0) -> Unsigned:
    """A binding of a contributor's key, whom nobody need know, and a daemon's, for the pool unless for another."""
    created = timestamp(datetime.now(UTC) + timedelta(seconds=apart_s))
    signer = stage.identity(owner)
    raw = bind(pool or stage.pool.digest, signer, node or NodeKey.generate(), created)
    return Unsigned(json.loads(Signed.parse(raw).payload), signer, stage.pool)


def present(stage: Stage, source: Unsigned, path: tuple[str, ...] = (), value: Any = None) -> str:
    """Bring a binding, with another value at a path if there is one, and return where daemons are told to connect."""
    raw = in_payload(("predicate", *path), value)(source) if path else source.signer.sign(source.payload)
    fleet: str = stage.wire.ask("Intake/Bind", intake_pb2.BindRequest(envelope=raw)).fleet
    return fleet


def _public(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


KEYS: dict[str, Callable[[], str]] = {
    "rsa": lambda: _public(rsa.generate_private_key(65537, 1024)),  # noqa: S505 - short, for its text is at most 400
    "p-256": lambda: _public(ec.generate_private_key(ec.SECP256R1())),
    "p-521": lambda: _public(ec.generate_private_key(ec.SECP521R1())),
    "secp256k1": lambda: _public(ec.generate_private_key(ec.SECP256K1())),
    "ed25519": lambda: _public(ed25519.Ed25519PrivateKey.generate()),
    "private": lambda: _p384().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    "openssh": lambda: _p384().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
    "trailing-space": lambda: _public(_p384()) + " ",
    "without-newline": lambda: _public(_p384()).rstrip("\n"),
    "crlf": lambda: _public(_p384()).replace("\n", "\r\n"),
    "two": lambda: _public(_p384())[:200] + _public(_p384())[:199],
    "words": lambda: "let me in",
    "pem-of-nothing": lambda: "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
    "pem-of-zeros": lambda: "-----BEGIN PUBLIC KEY-----\n" + "A" * 160 + "\n-----END PUBLIC KEY-----\n",
}


def _attested(kind: str, evidence: str = "AAAA") -> dict[str, Any]:
    return {"kind": kind, "evidence": evidence}


FIELDS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("pool", (REMOVED, None, 7, "", "A" * 64)),
    ("contributor", (REMOVED, None, 7, "g" * 64)),
    ("node", (REMOVED, None, 7, "", "x" * 401, [])),
    ("proof", (REMOVED, None, 7, "", "zz", "0" * 15, "a" * 241, "AB" * 20)),
    ("created", (REMOVED, None, 7, "yesterday", "2026-02-30T12:00:00Z", "2026-11-22 12:00:00")),
    (
        "attestation",
        (
            7,
            "a report",
            {},
            {"kind": "x"},
            *(_attested(kind) for kind in ("x" * 201, "two\nlines")),
            *(_attested("x", evidence) for evidence in ("", "AAA", "AAB=", "A" * 10_244)),
            _attested("x") | {"more": 1},
        ),
    ),
    ("extra", (1,)),
)


def _proof(make: Callable[[str, Stage], str]) -> Callable[[Stage], object]:
    """Bring a binding with another proof than its own."""

    def play(stage: Stage) -> str:
        source = binding(stage, "nobody")
        own: str = source.document["predicate"]["proof"]
        return present(stage, source, ("proof",), make(own, stage))

    return play


def _for_another_pool(_: str, stage: Stage) -> str:
    return NodeKey.generate().prove("0" * 64, stage.identity("nobody").public)


def _bound_twice(stage: Stage) -> None:
    source = binding(stage, stage_member(stage, "nora"))
    first = present(stage, source)
    if not first or present(stage, source) != first:
        raise UnmetError("The same binding was answered otherwise the second time.")


def _last_node(stage: Stage) -> str:
    """A contributor has one daemon: the next one's key puts the last one's out of use."""
    last, following = (binding(stage, stage_member(stage, "nora")) for _ in range(2))
    present(stage, last)
    present(stage, following)
    return present(stage, last)


def _taken(stage: Stage) -> None:
    node = NodeKey.generate()
    present(stage, binding(stage, stage_member(stage, "nora"), node))
    present(stage, binding(stage, stage_member(stage, "bob"), node))


def stage_member(stage: Stage, name: str) -> str:
    """Have a contributor enrolled, and return the name."""
    stage.member(name)
    return name


def _with_field(stage: Stage, name: str, value: Any) -> str:
    return present(stage, binding(stage, "nobody"), (name,), value)


def _with_key(stage: Stage, make: Callable[[], Any]) -> str:
    return _with_field(stage, "node", make())


def _rows() -> list[Row]:
    rows: list[Row] = [
        (f"{name}-{describe(value)}", partial(_with_field, name=name, value=value), SPEC)
        for name, values in FIELDS
        for value in values
    ]  # fmt: skip
    rows += [
        (f"node-key-{name}", partial(_with_key, make=make), Code.NODE_KEY)
        for name, make in KEYS.items()
    ]  # fmt: skip
    late, bad = MAX_APART_S + 60, Code.BAD_SIGNATURE
    rows += [
        ("weak-contributor", lambda stage: present(stage, binding(stage, "nobody"), ("contributor",), "0" * 64),
         Code.WEAK_KEY),
        ("proof-of-another-node", _proof(lambda _, stage: NodeKey.generate().prove(
            stage.pool.digest, stage.identity("nobody").public)), bad),
        ("proof-for-another-pool", _proof(_for_another_pool), bad),
        ("proof-flipped", _proof(lambda own, _: own[:-1] + ("1" if own[-1] == "0" else "0")), bad),
        ("proof-cut", _proof(lambda own, _: own[:-8]), bad),
        ("proof-of-zeros", _proof(lambda own, _: "0" * len(own)), bad),
        ("another-pool", lambda stage: present(stage, binding(stage, "nobody", pool="0" * 64)), Code.WRONG_POOL),
        ("clock-behind", lambda stage: present(stage, binding(stage, "nobody", apart_s=-late)), Code.CLOCKS_APART),
        ("clock-ahead", lambda stage: present(stage, binding(stage, "nobody", apart_s=late)), Code.CLOCKS_APART),
        ("unknown-contributor", lambda stage: present(stage, binding(stage, "nobody")), Code.KEY_UNKNOWN),
        ("twice", _bound_twice, None),
        ("last-node-after-the-next", _last_node, Code.KEY_REVOKED),
        ("node-of-another", _taken, Code.NODE_TAKEN),
    ]  # fmt: skip
    return rows


def cases() -> list[Case]:
    """All of them."""
    off: list[Row] = [("fleet-off", lambda stage: present(stage, binding(stage, "nobody")), Code.FLEET_OFF)]
    return named("binding", _rows(), Need.FLEET) + named("binding", off, Need.NO_FLEET)
