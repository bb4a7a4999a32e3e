"""The program from the outside: every verb, its output and its ways to fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli.main import app as client_app
from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from coordinator.cli.main import app as coordinator_app
from protocol.bundle import ADAPTER_WEIGHTS
from protocol.documents import Pool
from protocol.errors import Code
from protocol.signing import Identity
from protocol.spec import Recipe
from tests import factories
from tests.client.conftest import Cli, Site, Trained


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_init_makes_a_workspace(cli: Cli, tmp_path: Path, address: str, t5_base: Path, t5_pool: Pool) -> None:
    root = tmp_path / "workspace"
    status, out, err = cli("init", "--coordinator", address, "--base", t5_base, "--name", "anna", "-w", root)
    assert status == 0
    assert files_of(root) == {"client.toml", "contributor.key", "pool.dsse.json", "enrolment.dsse.json", "base.json"}
    assert t5_pool.spec.coordinator in err  # shown, so that a person can compare it
    assert (root / "contributor.key").stat().st_mode & 0o077 == 0
    status, shown, _ = cli("keys", "show", "--json", "-w", root)
    assert (status, json.loads(shown)["key"]) == (0, out.strip())


def test_a_base_beside_is_found_from_anywhere(
    cli: Cli, tmp_path: Path, address: str, t5_base: Path, t5_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert t5_pool.spec.base.name == t5_base.name
    monkeypatch.chdir(t5_base.parent)
    assert cli("init", "--coordinator", address, "-w", tmp_path)[0] == 0
    assert ClientWorkspace(tmp_path).settings.base == str(t5_base)


def test_init_takes_a_key_that_is_there(cli: Cli, tmp_path: Path, address: str, t5_base: Path) -> None:
    _, key, _ = cli("keys", "new", "-w", tmp_path)
    status, out, _ = cli("init", "--coordinator", address, "--base", t5_base, "-w", tmp_path)
    assert (status, out) == (0, key)
    assert f'name = "contributor-{key[:8]}"' in (tmp_path / "client.toml").read_text()


def test_init_checks_a_pinned_key(cli: Cli, tmp_path: Path, address: str, t5_base: Path, t5_pool: Pool) -> None:
    flags = ("init", "--coordinator", address, "--base", t5_base, "-w", tmp_path)
    status, _, err = cli(*flags, "--pool-key", Identity.generate().public.hex)
    assert status == Code.UNTRUSTED.fate.exit
    assert "trusts" in err
    assert files_of(tmp_path) == set()
    assert cli(*flags, "--pool-key", t5_pool.spec.coordinator)[0] == 0


def test_init_refuses_another_base(cli: Cli, tmp_path: Path, address: str, llama_base: Path, t5_pool: Pool) -> None:
    status, out, err = cli("init", "--coordinator", address, "--base", llama_base, "-w", tmp_path)
    assert (status, out) == (Code.BASE_MISMATCH.fate.exit, "")
    assert t5_pool.spec.base.config[:12] in err  # expected, and found beside it
    assert "found" in err
    assert not (tmp_path / "client.toml").exists()
    assert not (tmp_path / "contributor.key").exists()


def test_init_refuses_a_base_that_cannot_be_read(cli: Cli, tmp_path: Path, address: str) -> None:
    status, _, err = cli("init", "--coordinator", address, "--base", "./gone", "-w", tmp_path)
    assert status == Code.BASE_UNREADABLE.fate.exit
    assert err.count("\n") == 2


def test_init_never_replaces_a_workspace(cli: Cli, site: Site, address: str) -> None:
    before = (site.workspace.settings_file).read_bytes()
    status, _, err = cli("init", "--coordinator", address, "--base", site.base, "-w", site.workspace.root)
    assert status == Code.WORKSPACE_EXISTS.fate.exit
    assert "is a workspace already" in err
    assert site.workspace.settings_file.read_bytes() == before


def test_init_leaves_nothing_when_a_setting_is_wrong(cli: Cli, tmp_path: Path, address: str, t5_base: Path) -> None:
    flags = ("init", "--coordinator", address, "--base", t5_base, "--name", "No Name!", "-w", tmp_path)
    assert cli(*flags)[0] == Code.SETTINGS_INVALID.fate.exit
    assert files_of(tmp_path) <= {"base.json"}


def test_init_says_that_nobody_answers(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli("init", "--coordinator", "127.0.0.1:1", "-w", tmp_path / "new")
    assert status == Code.UNREACHABLE.fate.exit
    assert "Nothing listens at 127.0.0.1:1" in err
    assert not (tmp_path / "new").exists()


def test_a_key_is_never_replaced(cli: Cli, site: Site) -> None:
    status, _, err = cli("keys", "new", "-w", site.workspace.root)
    assert status == Code.KEY_EXISTS.fate.exit
    assert "There is a key" in err


def test_a_passphrase_is_needed_and_must_fit(
    cli: Cli, tmp_path: Path, address: str, t5_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYLAG_KEY_PASSPHRASE", "right")
    assert cli("init", "--coordinator", address, "--base", t5_base, "-w", tmp_path)[0] == 0
    assert b"ENCRYPTED" in (tmp_path / "contributor.key").read_bytes()
    assert cli("keys", "show", "-w", tmp_path)[0] == 0
    for value in ("wrong", None):
        if value is None:
            monkeypatch.delenv("GREYLAG_KEY_PASSPHRASE")
        else:
            monkeypatch.setenv("GREYLAG_KEY_PASSPHRASE", value)
        status, _, err = cli("keys", "show", "-w", tmp_path)
        assert status == Code.PASSPHRASE.fate.exit
        assert "GREYLAG_KEY_PASSPHRASE" in err


def test_a_wrong_passphrase_stops_before_training(cli: Cli, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    key = site.workspace.root / "contributor.key"
    key.unlink()
    Identity.generate().save(key, "right")
    monkeypatch.setenv("GREYLAG_KEY_PASSPHRASE", "wrong")
    assert cli("train", "--data", site.data, "-w", site.workspace.root)[0] == Code.PASSPHRASE.fate.exit
    assert not site.workspace.runs.exists()


def test_verbs_outside_a_workspace_say_how_to_make_one(cli: Cli, tmp_path: Path) -> None:
    for verb in (("train", "--data", "x.jsonl"), ("submit",), ("status",), ("keys", "show")):
        status, out, err = cli(*verb, "-w", tmp_path)
        assert (status, out) == (Code.WORKSPACE_MISSING.fate.exit, "")
        assert "greylag-client init" in err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--data", "gone.jsonl"), Code.DATA_UNREADABLE, "There is no data file gone.jsonl"),
        (("--rank", "33"), Code.RANK_OUT_OF_BOUNDS, "Give --rank 32 or less"),
        (("--rank", "0"), Code.SETTINGS_INVALID, "--rank is wrong"),
        (("--learning-rate", "7"), Code.SETTINGS_INVALID, "--learning-rate is wrong"),
        (("--micro-batch", "5"), Code.SETTINGS_INVALID, "no divisor of the batch of 16"),
        (("--name", "No!"), Code.SETTINGS_INVALID, "no name for an expert"),
        (("--device", "cuda"), Code.SETTINGS_INVALID, "There is no CUDA device here"),
        (("--input-column", "nope"), Code.DATA_COLUMNS, "expected nope and target"),
    ],
)
def test_what_train_cannot_do_is_a_sentence(
    cli: Cli, site: Site, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], code: Code, words: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, out, err = cli("train", "--data", site.data, "-w", site.workspace.root, *flags)
    assert (status, out) == (code.fate.exit, "")
    assert words in err
    assert err.startswith("error: ")
    assert f" [{code.name}]\n" in err
    assert not site.workspace.bundles.exists()


def test_train_refuses_a_base_that_changed(
    cli: Cli, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = factories.make_t5(tmp_path / "other", seed=1)
    monkeypatch.setenv("GREYLAG_CLIENT_BASE", str(base))
    status, _, err = cli("train", "--data", site.data, "-w", site.workspace.root)
    assert status == Code.BASE_MISMATCH.fate.exit
    assert "weights" in err


def test_help_names_the_licence_that_is_given_by_default(cli: Cli) -> None:
    assert f"default: {ClientSettings.model_fields['license'].default}." in " ".join(cli("init", "-h")[1].split())


def test_verify_finds_a_flipped_byte(cli: Cli, packed: Site) -> None:
    folder = packed.workspace.bundles / "anna"
    status, out, _ = cli("verify", folder, "--json")
    facts = json.loads(out)
    assert (status, facts["schema"], facts["name"], facts["ranks"]) == (0, 1, "anna", [4])
    assert "contributor" in cli("verify", folder)[1]
    content = bytearray((folder / ADAPTER_WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / ADAPTER_WEIGHTS).write_bytes(content)
    status, out, err = cli("verify", folder)
    assert (status, out) == (Code.DIGEST_MISMATCH.fate.exit, "")
    assert ADAPTER_WEIGHTS in err


def test_a_bundle_that_was_trained_passes_verify(cli: Cli, trained: Trained) -> None:
    assert cli("verify", trained.bundle.folder)[0] == 0


def test_the_flags_of_the_recipe_are_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for app, verb, without in (
        (client_app, "train", set()), (client_app, "contribute", set()), (coordinator_app, "init", set()),
        (client_app, "gates", {"kind", "rank", "alpha", "activation", "expert_steps"}),
    ):  # fmt: skip
        shown = CliRunner().invoke(app, [verb, "-h"]).output
        for name, field in Recipe.model_fields.items():
            assert (f"--{name.replace('_', '-')} " in shown) == (name not in without)
            assert (str(field.description)[:40] in shown) == (name not in without)


def test_the_command_line_is_quick_to_load() -> None:
    heavy = {"torch", "transformers", "peft", "datasets", "grpc", "pydantic", "sqlalchemy"}
    script = f"import sys, client.cli.main; print(*({heavy!r} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout.strip(), found.stderr) == (0, "", "")
