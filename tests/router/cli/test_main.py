"""The verbs of greylag-router, in this process."""

import json
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from protocol.bundle import GATES
from protocol.documents import timestamp
from protocol.errors import Code, Refused
from protocol.signing import Identity
from router.cli.main import app
from router.follow.pull import pull
from router.follow.workspace import BUNDLES, FINGERPRINT
from router.settings import FILE, RouterSettings, load, save
from tests import factories
from tests.router.catalog import Catalog, set_clock
from tests.router.verbs import call


@pytest.fixture
def catalog(catalog: Catalog, tmp_path: Path, identity: Identity) -> Catalog:
    """With a release of one expert."""
    catalog.publish([factories.make_bundle(tmp_path / "bundle", catalog.pool, identity, name="reverse")], number=1)
    return catalog


def test_what_was_pulled_is_asked_from_anywhere(
    address: str, t5_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "node"
    monkeypatch.chdir(t5_base.parent)
    pulled = call("pull", "-w", node, "--coordinator", address, "--base", t5_base.name, "--json")
    assert [expert["name"] for expert in json.loads(pulled.stdout)["experts"]] == ["reverse"]
    assert "on first use" in pulled.stderr
    assert "on first use" not in call("pull", "-w", node).stderr
    monkeypatch.chdir(tmp_path)
    asked = call("ask", "-w", node, "--device", "cpu", "--max-new-tokens", 3, "--json", "--explain", "a b", "c")
    document = json.loads(asked.stdout)
    assert (document["schema"], len(document["answers"]), document["answers"][0]["release"]) == (1, 2, 1)
    assert document["answers"][0]["shares"] == {"ada/reverse": 1.0}
    assert asked.stderr == ""
    assert (node / FINGERPRINT).is_file()


def test_a_pull_for_another_base_says_so_at_once(address: str, llama_base: Path, t5_base: Path, tmp_path: Path) -> None:
    arguments = ["pull", "-w", str(tmp_path), "--coordinator", address, "--base"]
    refused = CliRunner().invoke(app, [*arguments, str(llama_base)]).exception
    assert isinstance(refused, Refused)
    assert refused.code is Code.BASE_MISMATCH
    assert not (tmp_path / FILE).exists()
    call(*arguments, t5_base)


@pytest.fixture
def node(catalog: Catalog, address: str, t5_base: Path, tmp_path: Path, identity: Identity) -> Path:
    """A workspace that has seen two releases."""
    call("pull", "-w", tmp_path / "node", "--coordinator", address, "--base", t5_base)
    more = factories.make_bundle(tmp_path / "more", catalog.pool, identity, name="copy", seed=1)
    catalog.publish([*catalog.bundles.values(), more], number=2)
    call("pull", "-w", tmp_path / "node")
    return tmp_path / "node"


def ask(node: Path, *arguments: object) -> list[dict[str, Any]]:
    said = call("ask", "-w", node, "--device", "cpu", "--max-new-tokens", 2, "--json", "--explain", *arguments)
    answers: list[dict[str, Any]] = json.loads(said.stdout)["answers"]
    return answers


def test_flags_choose_for_all_inputs(node: Path) -> None:
    answers = ask(node, "--deny", "reverse", "--k", 1, "--temperature", 2, "--method", "phatgoose", "a", "b")
    assert [answer["shares"]["ada/copy"] for answer in answers] == [1, 1]
    assert [answer["shares"]["ada/copy"] for answer in ask(node, "--allow", "ada/", "--method", "merged", "a")] == [0.5]


def test_a_file_of_requests_chooses_line_by_line(node: Path, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text(
        '{"input": "a", "release": 1}\n{"input": "b", "method": "base"}\n{"input": "c", "allow": ["copy"]}\n'
    )
    first, second, third = ask(node, "--requests", file, "--method", "merged")
    assert (first["release"], first["method"], first["shares"]["ada/reverse"]) == (1, "merged", 1)
    assert (second["release"], second["method"], sum(second["shares"].values())) == (2, "base", 0)
    assert (third["release"], third["method"], third["shares"]["ada/copy"]) == (2, "merged", 1)


def test_what_lies_on_disk_is_checked_when_asked(node: Path, tmp_path: Path) -> None:
    assert json.loads(call("check", "-w", node, "--json").stdout) == {
        "schema": 1, "held": 2, "read": 2, "damaged": []
    }  # fmt: skip
    first, second = sorted((node / BUNDLES).iterdir())
    gates = first / GATES
    gates.write_bytes(gates.read_bytes()[:-1] + b"?")
    result = CliRunner().invoke(app, ["check", "-w", str(node), "--json"])
    assert [each["digest"] for each in json.loads(result.stdout)["damaged"]] == [first.name]
    assert isinstance(result.exception, Refused)
    assert result.exception.code is Code.DIGEST_MISMATCH
    shutil.rmtree(second)
    with pytest.raises(Refused, match="1 of 1 are damaged") as refused:
        call("check", "-w", node, "--sample", 1)
    assert "newest release" in refused.value.hint
    call("pull", "-w", node)
    assert "Read 2 of 2; 0 are damaged." in call("check", "-w", node).stdout
    with pytest.raises(Refused) as refused:
        call("check", "-w", tmp_path / "nowhere")
    assert refused.value.code is Code.WORKSPACE_MISSING


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--release", "9", "a"], Code.RELEASE_UNKNOWN),
        (["--deny", "ada/", "a"], Code.EXPERTS_EXHAUSTED),
        (["--k", "0", "a"], Code.REQUEST_INVALID),
        ([], Code.REQUEST_INVALID),
        (["--requests", "-", "a"], Code.REQUEST_INVALID),
    ],
)
def test_what_cannot_be_chosen_is_refused(node: Path, arguments: list[str], code: Code) -> None:
    with pytest.raises(Refused) as refused:
        call("ask", "-w", node, "--device", "cpu", *arguments)
    assert refused.value.code is code


def test_an_expired_release_on_disk_is_said(
    catalog: Catalog, address: str, t5_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = list(catalog.bundles.values())
    earlier = datetime.now(UTC) - timedelta(hours=2)
    expires = timestamp(earlier + timedelta(hours=1))
    catalog.publish(held, number=2, expires=expires)
    set_clock(monkeypatch, earlier)
    pull(tmp_path / "node", address)
    (tmp_path / "node" / "router.toml").write_text(f'coordinator = "{address}"\nbase = "{t5_base}"\n')
    asked = call("ask", "-w", tmp_path / "node", "--device", "cpu", "--max-new-tokens", 3, "a b")
    assert f"Release 2 expired at {expires}" in asked.stderr
    assert "greylag-router pull" in asked.stderr


def test_a_missing_and_an_unknown_setting_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"setting coordinator is wrong: it is missing\.") as refused:
        load(tmp_path, base="b")
    assert refused.value.code is Code.SETTINGS_INVALID
    assert "--coordinator" in refused.value.hint
    (tmp_path / "router.toml").write_text('cordinator = "a:1"\n')
    with pytest.raises(Refused, match=r"setting cordinator is wrong: there is no such entry\."):
        load(tmp_path, base="b", coordinator="a:1")


def torch_woke(*arguments: object) -> tuple[str, bool]:
    """The error that a verb ends in, in a process of its own, and whether torch was imported on the way."""
    program = (
        "import sys; from router.cli.main import main\n"
        "try: main()\nfinally: sys.stdout.write(str('torch' in sys.modules))"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    return done.stderr, done.stdout == "True"


def test_what_can_be_refused_at_once_is_refused_before_torch_wakes(tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text('{"input": "a", "method": "nope"}')
    for asked in (("--method", "nope", "a"), ("--requests", tmp_path / "asked.jsonl")):
        said, woke = torch_woke("ask", "-w", tmp_path, *asked)
        assert ("METHOD_UNKNOWN" in said, woke) == (True, False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        said, woke = torch_woke(
            "serve", "-w", tmp_path, "--coordinator", "127.0.0.1:1", "--base", "x", "--listen", listen
        )
    assert ("Cannot listen" in said, woke) == (True, False)
    open_ = ("--listen", "127.0.0.1:0", "--http", "0.0.0.0:0")
    said, woke = torch_woke("serve", "-w", tmp_path, "--coordinator", "127.0.0.1:1", "--base", "x", *open_)
    assert ("would answer anybody" in said, woke) == (True, False)
    (tmp_path / "router.toml").write_text('coordinator = "127.0.0.1:1"\nbase = "x"\nmethods = ["nope"]\n')
    said, woke = torch_woke("serve", "-w", tmp_path)
    assert ("METHOD_UNKNOWN" in said, woke) == (True, False)


def test_methods_are_listed() -> None:
    assert "phatgoose" in call("methods").stdout
    assert "base" in json.loads(call("methods", "--json").stdout)["methods"]


def test_settings_name_models_from_wherever_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("encoder").mkdir()
    save(tmp_path / "node", RouterSettings(coordinator="a:1", base="hub/base", embedding="encoder"))
    found = load(tmp_path / "node")
    assert (found.base, found.embedding) == ("hub/base", str(tmp_path / "encoder"))
