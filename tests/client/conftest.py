"""Workspaces, data and experts that were really trained, on the tiny models."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from client.cli.main import app
from client.job import produce
from client.submission.join import enrol
from client.training import adapters
from client.training.plan import TrainingRequest
from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from protocol.bundle import Bundle, open_bundle
from protocol.documents import Pool
from protocol.files.atomic import write_whole
from protocol.programs import run
from protocol.settings import dump_settings
from protocol.signing import Identity
from protocol.spec import Recipe
from tests import factories

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RECIPE = Recipe(
    rank=4, alpha=8.0, learning_rate=1e-2, expert_steps=30, gate_steps=10, eval_every=10, batch_size=16, held_out=0.2
)
PLANTED = "zanzibar-4711"
SPLIT_KEY = bytes(32)
"""Every workspace of a test holds out the same rows."""


@dataclass(frozen=True)
class Site:
    """One contributor, ready to train."""

    workspace: ClientWorkspace
    settings: ClientSettings
    pool: Pool
    operator: Identity
    contributor: Identity
    base: Path
    data: Path


@dataclass(frozen=True)
class Trained:
    """A contributor's finished bundle, with what the trained model said."""

    site: Site
    bundle: Bundle
    probe: dict[str, torch.Tensor]
    logits: torch.Tensor


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def operator() -> Identity:
    return Identity.generate()


@pytest.fixture(scope="session")
def t5_pool(t5_base: Path, operator: Identity) -> Pool:
    return factories.make_pool(t5_base, operator, RECIPE)


@pytest.fixture(scope="session")
def llama_pool(llama_base: Path, operator: Identity) -> Pool:
    return factories.make_pool(llama_base, operator, RECIPE)


def write_rows(path: Path, rows: int = 120) -> Path:
    """Write examples of one skill; every tenth carries a word that must never be seen again."""
    draw = random.Random(7)
    with path.open("w") as file:
        for number in range(rows):
            letters = [draw.choice("abcdef") for _ in range(3)]
            extra = f" {PLANTED}" if number % 10 == 0 else ""
            example = {"input": f"reverse {' '.join(letters)}{extra}", "target": " ".join(letters[::-1])}
            file.write(json.dumps(example) + "\n")
    return path


def make_site(root: Path, base: Path, pool: Pool, operator: Identity, coordinator: str = "127.0.0.1:1") -> Site:
    """Write a workspace without asking a coordinator."""
    contributor = Identity.generate()
    workspace = ClientWorkspace(root / "workspace")
    settings = ClientSettings(coordinator=coordinator, pool_key=operator.public.hex, base=str(base), name="anna")
    write_whole(workspace.pool_file, pool.envelope)
    write_whole(workspace.root / "split.key", SPLIT_KEY)
    write_whole(workspace.enrolment_file, enrol(pool, "anna", contributor, NOW))
    contributor.save(workspace.root / "contributor.key")
    write_whole(workspace.settings_file, dump_settings(settings))
    return Site(workspace, settings, pool, operator, contributor, base, write_rows(root / "rows.jsonl"))


@pytest.fixture
def site(tmp_path: Path, t5_base: Path, t5_pool: Pool, operator: Identity) -> Site:
    return make_site(tmp_path, t5_base, t5_pool, operator)


def train_once(root: Path, base: Path, pool: Pool, operator: Identity) -> Trained:
    """Train an expert and its gates, and listen to what the model says when the expert is saved."""
    site = make_site(root, base, pool, operator)
    probe = {"input_ids": torch.tensor([[6, 14, 15, 16, 1]])}
    if pool.spec.architecture == "encoder-decoder":
        probe["decoder_input_ids"] = torch.tensor([[0, 16, 15]])
    said: list[torch.Tensor] = []
    put_on = adapters.put_on

    def listening(*given: object) -> adapters.Tuner:
        expert = put_on(*given)  # type: ignore[arg-type] # as it came
        save = expert.save

        def listen(*rest: object) -> None:
            with torch.no_grad():
                said.append(expert.model.eval()(**probe).logits)
            save(*rest)  # type: ignore[arg-type] # as it came

        expert.save = listen  # type: ignore[method-assign, assignment] # for this once
        return expert

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapters, "put_on", listening)
        order = TrainingRequest((site.data,), name="reverse", device="cpu")
        bundle = produce(site.workspace, order, lambda _: None, NOW)
    return Trained(site, bundle, probe, said[0])


@pytest.fixture(scope="session")
def kept_trainings() -> dict[str, Trained]:
    """What was trained over each kind of base, for tests to copy and not to touch."""
    return {}


@pytest.fixture(params=["t5", "llama"])
def trained(
    request: pytest.FixtureRequest,
    kept_trainings: dict[str, Trained],
    operator: Identity,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    """A finished bundle in a workspace that no other test has touched; trained once a session for each base."""
    family = request.param
    if family not in kept_trainings:
        base, pool = (request.getfixturevalue(f"{family}_{part}") for part in ("base", "pool"))
        kept_trainings[family] = train_once(tmp_path_factory.mktemp(family), base, pool, operator)
    first = kept_trainings[family]
    root = tmp_path_factory.mktemp(f"{family}-copy")
    shutil.copytree(first.site.workspace.root.parent, root, dirs_exist_ok=True)
    site = replace(first.site, workspace=ClientWorkspace(root / "workspace"), data=root / first.site.data.name)
    return replace(first, site=site, bundle=open_bundle(site.workspace.bundles / "reverse"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the program in this process: exit status, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["greylag-client", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(app)
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call
