"""The program as an operator types it: in this process where that is enough."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from coordinator.cli import main
from coordinator.fleet.records.fleet import Fleet
from coordinator.fleet.records.rounds import order_of
from coordinator.policy.lifecycle import State
from coordinator.registry.registry import Registry
from coordinator.registry.tables import ReleaseRow
from coordinator.workspace import create
from coordinator.workspace.create import BaseFacts, found
from coordinator.workspace.locks import exclusive
from coordinator.workspace.metrics import Metrics
from coordinator.workspace.paths import CoordinatorWorkspace
from deploy.demo.processes import free_port
from protocol.adapters import Shape
from protocol.bundle import Bundle
from protocol.documents import Enrolment, Pool, read_pool
from protocol.errors import Code, Refused, Unavailable
from protocol.fleet.campaign import Privacy
from protocol.release import ReleasedExpert, ReleaseSpec, sign_candidate, sign_release
from protocol.signing import Identity
from tests import factories
from tests.coordinator.cli.test_processes import BASE, make_workspace
from tests.coordinator.contributor import NOW
from tests.coordinator.registry.test_database import add_migration

SHAPES = {"m": Shape(d_in=8, d_out=8)}


@pytest.fixture
def founded(tmp_path: Path) -> tuple[CoordinatorWorkspace, Pool]:
    return make_workspace(tmp_path / "w", SHAPES)


@pytest.fixture
def workspace(founded: tuple[CoordinatorWorkspace, Pool]) -> CoordinatorWorkspace:
    return founded[0]


@pytest.fixture
def bundle(founded: tuple[CoordinatorWorkspace, Pool], tmp_path: Path, identity: Identity) -> Bundle:
    """A quarantined bundle."""
    workspace, pool = founded
    bundle = factories.make_bundle(tmp_path / "b", pool, identity)
    now = datetime.now(UTC)
    registry = Registry.open(f"sqlite:///{workspace.folder / 'registry.db'}")
    registry.contributors.enrol(
        Enrolment(pool=pool.digest, name="ada", key=identity.public.hex, created=NOW), b"", state="active", now=now
    )
    registry.bundles.keep(bundle.manifest, check=lambda _: None, sign=lambda _: b"", now=now)
    registry.bundles.move(bundle.digest, State.VERIFIED, State.QUARANTINED, actor="worker", now=now)
    registry.close()
    return bundle


class Program:
    """Runs `main` and keeps what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.out, self.err = "", ""

    def __call__(self, workspace: CoordinatorWorkspace | None, *arguments: str) -> int:
        place = ("-w", str(workspace.folder)) if workspace else ()
        self._monkeypatch.setattr(sys, "argv", ["greylag-coordinator", *arguments, *place])
        with pytest.raises(SystemExit) as ended:
            main.main()
        self.out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.err
        return int(ended.value.code or 0)

    def json(self, workspace: CoordinatorWorkspace, *arguments: str) -> Any:
        assert self(workspace, *arguments, "--json") == 0
        document = json.loads(self.out)
        assert document["schema"] == 1
        return document


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    yield Program(capsys, monkeypatch)
    structlog.reset_defaults()  # the verbs send log lines to a stderr that ends with the test


def refused(program: Program, code: Code) -> None:
    error, *rest = program.err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert rest[0].startswith("hint: ")
    assert error.endswith(f". [{code.name}]")
    assert program.out == ""


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; import coordinator.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    heavy = {"torch", "transformers", "peft", "datasets", "sqlalchemy", "grpc", "pydantic", "numpy"}
    assert heavy & set(loaded.stdout.split()) == set()


def test_init_makes_a_workspace_of_a_real_base(program: Program, tmp_path: Path, t5_base: Path) -> None:
    workspace = CoordinatorWorkspace(tmp_path / "pool")
    probe = tmp_path / "probe.txt"
    probe.write_text("reverse : a b\n\n copy : c \n")
    arguments = ["init", "--single", "--name", "birds", "--base", str(t5_base), "--rank", "5", "--gate-steps", "7"]
    arguments += ["--kind", "bottleneck", "--activation", "gelu"]
    arguments += ["--method", "nnls-gates", "--statistics", "means"]
    (rows := tmp_path / "given.jsonl").write_text('{"input": "copy : c", "target": "c"}\n')
    arguments += ["--admission", "reviewed", "--probe", str(probe), "--listen", "127.0.0.1:0", "--json"]
    arguments += ["--rows", str(rows), "--canaries", str(rows), "--max-norm", "20", "--max-rise", "0.5"]
    assert program(workspace, *arguments) == 0
    pool = read_pool(workspace.pool.read_bytes(), Identity.load(workspace.key).public)
    assert json.loads(program.out) == {
        "schema": 1, "name": "birds", "pool": pool.digest, "key": pool.spec.coordinator,
    }  # fmt: skip
    assert (pool.spec.recipe.rank, pool.spec.recipe.gate_steps) == (5, 7)
    assert (pool.spec.recipe.kind, pool.spec.recipe.activation) == ("bottleneck", "gelu")
    assert (pool.spec.policy.admission, pool.spec.architecture) == ("reviewed", "encoder-decoder")
    review = pool.spec.policy.review
    assert (review.max_norm, review.max_rise, review.unusual_norm, bool(review.canaries)) == (20, 0.5, 8, True)
    assert (pool.spec.routing.method, pool.spec.policy.statistics) == ("nnls-gates", ("means",))
    assert pool.spec.modules["encoder.block.0.layer.0.SelfAttention.q"].d_in == 32
    assert workspace.key.stat().st_mode & 0o777 == 0o600
    assert (workspace.folder / "probe.txt").read_text() == "reverse : a b\ncopy : c\n"
    assert sorted(path.name for path in workspace.folder.iterdir()) == [
        "canaries.jsonl", "coordinator.key", "coordinator.toml", "pool.dsse.json", "probe.txt", "registry.db",
        "roles", "rows.jsonl", "store",
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in workspace.roles.glob("*.key")} == {0o600}
    before = workspace.key.read_bytes()
    assert program(workspace, "init", "--single", "--name", "birds", "--base", str(t5_base)) == 73
    refused(program, Code.WORKSPACE_EXISTS)
    assert workspace.key.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--base", "/no/such/folder"], 66),
        (["--rank", "0"], 78),
        (["--name", "Not A Name"], 78),
        (["--kind", "prefix"], 78),
        (["--method", "nobody"], 64),
        (["--method", "merged", "--statistics", "rows"], 78),
        (["--method", "retrieval", "--statistics", "means"], 78),
        (["--probe", "{folder}/missing.txt"], 66),
        (["--probe", "{folder}/empty.txt"], 66),
        (["--listen", "nowhere"], 78),
        (["--layers", "upper"], 78),
        (["--layers", "1-0"], 78),
        (["--layers", ""], 78),
        (["--layers=-1"], 78),
    ],
)
def test_a_failed_init_leaves_nothing(
    program: Program, tmp_path: Path, t5_base: Path, arguments: list[str], status: int
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    workspace = CoordinatorWorkspace(tmp_path / "pool")
    given = [argument.format(folder=tmp_path) for argument in arguments]
    assert program(workspace, "init", "--single", "--name", "p", "--base", str(t5_base), *given) == status
    assert program.err.splitlines()[-2].startswith("error: ")
    assert ("Reading the base model" in program.err) is ("--base" in arguments)  # seconds that a slip should not cost
    assert not workspace.folder.exists()


def test_an_init_that_breaks_in_the_middle_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = CoordinatorWorkspace(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    rename = Path.rename

    def fail_at_the_end(path: Path, target: Path) -> Path:
        if path.name == "coordinator.toml":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_at_the_end)
    facts = BaseFacts("nowhere", BASE, "encoder-decoder", SHAPES)
    arguments: dict[str, Any] = {"choices": {}, "settings": {}}
    with pytest.raises(Unavailable) as broken:
        found(workspace, lambda: facts, name="p", now=datetime.now(UTC), **arguments)
    assert broken.value.code is Code.STORAGE_FULL
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_database_with_another_pool_is_refused(
    founded: tuple[CoordinatorWorkspace, Pool], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYLAG_COORDINATOR_DATABASE", f"sqlite:///{founded[0].folder / 'registry.db'}")
    with pytest.raises(Refused) as other:
        make_workspace(tmp_path / "second", SHAPES)
    assert other.value.code is Code.WORKSPACE_EXISTS
    assert not (tmp_path / "second").exists()


def test_experts(program: Program, workspace: CoordinatorWorkspace, bundle: Bundle) -> None:
    (listed,) = program.json(workspace, "experts", "ls")["experts"]
    assert (listed["digest"], listed["contributor"], listed["state"]) == (bundle.digest, "ada", "quarantined")
    assert program(workspace, "experts", "ls") == 0
    assert bundle.digest[:16] in program.out
    assert program(workspace, "experts", "yank", bundle.digest[:8], "--reason", "Bad.") == 64
    refused(program, Code.STATE_CHANGE)
    assert program(workspace, "experts", "accept", bundle.digest[:8]) == 0
    for reason in ("", " ", "Copied\ntext.", "x" * 501):
        assert program(workspace, "experts", "refuse", bundle.digest[:8], "--reason", reason) == 2
    cached = workspace.bundles / bundle.digest
    cached.mkdir(parents=True)  # as the worker leaves it
    assert program(workspace, "experts", "refuse", bundle.digest[:8], "--reason", "Copied text.") == 0
    assert not cached.exists()
    shown = program.json(workspace, "experts", "show", bundle.digest)
    assert shown["expert"]["code"] == "DECLINED"
    assert shown["expert"]["message"] == "Copied text."
    assert [event["step"] for event in shown["events"]][-2:] == ["accepted", "refused"]
    assert program(workspace, "experts", "show", bundle.digest) == 0
    assert "Copied text." in program.out
    assert program(workspace, "experts", "show", "00000000") == 66
    refused(program, Code.BUNDLE_UNKNOWN)


def test_releases(program: Program, founded: tuple[CoordinatorWorkspace, Pool], bundle: Bundle) -> None:
    workspace, pool = founded
    assert program(workspace, "releases", "show") == 66
    refused(program, Code.RELEASE_UNKNOWN)
    expert = ReleasedExpert(name="expert", contributor="ada", bundle=bundle.digest)
    spec = ReleaseSpec(
        pool=pool.digest, number=1, previous=None, experts=(expert,), routing=pool.spec.routing, created=NOW,
        expires="2126-11-22T12:00:00Z",
    )  # fmt: skip
    registry = Registry.open(f"sqlite:///{workspace.folder / 'registry.db'}")
    now = datetime.now(UTC)
    registry.bundles.move(bundle.digest, State.ACCEPTED, actor="operator", now=now)
    registry.releases.publish(sign_release(spec, Identity.load(workspace.key)), now=now)
    registry.close()
    (listed,) = program.json(workspace, "releases", "ls")["releases"]
    assert (listed["number"], listed["experts"]) == (1, 1)
    assert program.json(workspace, "releases", "show")["release"] == spec.model_dump(mode="json")
    for verb in (["releases", "ls"], ["releases", "show", "1"]):
        assert program(workspace, *verb) == 0
    assert bundle.digest in program.out
    registry = Registry.open(f"sqlite:///{workspace.folder / 'registry.db'}")
    with registry.writing() as session:
        session.add(ReleaseRow(number=2, digest="0" * 64, envelope=b"rotten"))
    registry.close()
    assert [row["number"] for row in program.json(workspace, "releases", "ls")["releases"]] == [1]
    assert "Release 2 cannot be read" in program.err


def test_contributors(program: Program, workspace: CoordinatorWorkspace, bundle: Bundle) -> None:
    assert program(workspace, "contributors", "revoke", "ada") == 0
    (listed,) = program.json(workspace, "contributors", "ls")["contributors"]
    assert (listed["name"], listed["state"]) == ("ada", "revoked")
    assert program(workspace, "contributors", "approve", bundle.spec.contributor) == 0
    assert program(workspace, "contributors", "ls") == 0
    assert "active" in program.out
    assert program(workspace, "contributors", "approve", "nobody") == 77
    refused(program, Code.KEY_UNKNOWN)


@pytest.mark.parametrize("process", ["serve", "worker"])
def test_a_second_process_is_refused(program: Program, workspace: CoordinatorWorkspace, process: str) -> None:
    with exclusive(workspace, process):
        assert program(workspace, process) == 75
    refused(program, Code.WORKSPACE_BUSY)


def test_no_workspace(program: Program, tmp_path: Path) -> None:
    for verb in (["serve"], ["worker"], ["experts", "ls"], ["fsck"], ["migrate"]):
        assert program(CoordinatorWorkspace(tmp_path), *verb) == 78
        refused(program, Code.WORKSPACE_MISSING)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_without_its_base(program: Program, workspace: CoordinatorWorkspace) -> None:
    assert program(workspace, "worker", "--once") == Code.BASE_UNREADABLE.fate.exit


def test_another_schema_names_the_command(
    program: Program, workspace: CoordinatorWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_migration(tmp_path, monkeypatch)
    assert program(workspace, "experts", "ls") == 78
    refused(program, Code.SCHEMA_MISMATCH)
    assert "greylag-coordinator migrate" in program.err
    assert program(workspace, "migrate") == 0
    assert program(workspace, "experts", "ls") == 0


def test_somebody_elses_pool_or_key(program: Program, workspace: CoordinatorWorkspace) -> None:
    workspace.key.unlink()
    assert program(workspace, "experts", "ls") == 66
    Identity.generate().save(workspace.key)
    assert program(workspace, "experts", "ls") == 77
    workspace.pool.unlink()
    assert program(workspace, "experts", "ls") == 78


def test_an_address_for_others_needs_tls(program: Program, workspace: CoordinatorWorkspace) -> None:
    assert program(workspace, "serve", "--listen", "0.0.0.0:0") == 78
    assert "TLS" in program.err


def test_the_default_probe_is_text() -> None:
    assert all(line.strip() for line in create.PROBE)


def test_what_an_operator_chooses_is_signed_into_the_pool(tmp_path: Path) -> None:
    facts = BaseFacts("nowhere", BASE, "encoder-decoder", SHAPES)
    choices = {"recipe": {"rank": 3}, "policy": {"max_rank": 5}, "routing": {"k": 4}}
    pool = found(
        CoordinatorWorkspace(tmp_path),
        lambda: facts,
        name="p",
        choices=choices,
        settings={},
        now=datetime.now(UTC),
    )
    assert (pool.spec.recipe.rank, pool.spec.policy.max_rank, pool.spec.routing.k) == (3, 5, 4)


def test_the_counters_are_there_for_prometheus() -> None:
    metrics = Metrics()
    metrics.refused(Code.NOT_FINITE)
    address = f"127.0.0.1:{free_port()}"
    with metrics.exposed(address):
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
            text = page.read().decode()
        with pytest.raises(Refused) as refused, metrics.exposed(address):
            pass
        assert refused.value.code is Code.SETTINGS_INVALID
    assert 'greylag_refusals_total{code="NOT_FINITE"} 1.0' in text
    assert 'greylag_refusals_total{code="QUOTA"} 0.0' in text
    with metrics.exposed(None), pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{address}/metrics", timeout=10)


def test_a_calibration_has_its_settings_and_its_budget(
    program: Program, founded: tuple[CoordinatorWorkspace, Pool]
) -> None:
    workspace, pool = founded
    experts = tuple(ReleasedExpert(name=f"e{at}", contributor="ada", bundle=f"{at:064x}") for at in range(2))
    spec = ReleaseSpec(
        pool=pool.digest, number=1, previous=None, experts=experts, routing=pool.spec.routing, created=NOW,
        expires="2126-11-22T12:00:00Z",
    )  # fmt: skip
    begin = ("campaign", "start", "calibrate")
    assert program(workspace, *begin) == 66
    refused(program, Code.RELEASE_UNKNOWN)
    registry = Registry.open(f"sqlite:///{workspace.folder / 'registry.db'}")
    Fleet(registry).candidates.propose(sign_candidate(spec, Identity.load(workspace.key)), now=datetime.now(UTC))
    assert program(workspace, *begin, "--budget", "1", "--noise", "1") == 77
    refused(program, Code.BUDGET_EXHAUSTED)
    assert program(workspace, *begin, "--budget", "8", "--strategy", "krum") == 78
    refused(program, Code.SETTINGS_INVALID)
    plan = ("--budget", "8", "--noise", "4", "--clip", "0.5", "--rounds", "2", "--steps", "7", "--round-minutes", "5")
    number = program.json(workspace, *begin, *plan)["campaign"]["number"]
    task = order_of(Fleet(registry).campaigns.find(number).envelope).calibrating
    registry.close()
    assert task is not None
    assert task.privacy == Privacy(clipping_norm=0.5, noise_multiplier=4, max_epsilon=8, delta=1e-5)
    assert (task.rounds, task.steps, task.round_minutes, task.strategy) == (2, 7, 5, "fedavg")
    shown = program.json(workspace, "campaign", "show")
    assert [(each["number"], each["calibration"]) for each in shown["rounds"]] == [(1, "")]
    assert shown["calibrating"] == task.model_dump(mode="json")
    assert program(workspace, "campaign", "show") == 0
    assert "epsilon 8 at delta 1e-05" in program.out
    assert "Nobody is asked as long as no `greylag-coordinator fleet` runs" in program.err
    with exclusive(workspace, "fleet"):
        assert program(workspace, "campaign", "show") == 0
    assert "Nobody is asked" not in program.err
