"""What is built for a package index works by itself, in an environment that knows no clone."""

import json
import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

import httpx
import pytest

from protocol.signing import Identity
from tests import factories
from tests.house.sources import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment of its own, with what this one has but for the project itself."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    site = folder / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "others.pth").write_text("\n".join(others) + "\n")  # whose own .pth files are not read from here
    subprocess.run(
        [*pip, "--python", folder / "venv" / "bin" / "python", "install", "--no-deps", "--ignore-installed", wheel],
        check=True,
    )
    return folder / "venv" / "bin"


@pytest.mark.slow
def test_a_wheel_goes_up_and_answers(installed: Path, tmp_path: Path) -> None:
    base, identity = factories.make_llama(tmp_path / "base"), Identity.generate()
    bundle = factories.make_bundle(tmp_path / "bundle", factories.make_pool(base, identity), identity, name="notes")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (place := tmp_path / "empty").mkdir()
    found = subprocess.run(
        [installed / "python", "-c", "import router; print(router.__file__)"],
        cwd=place, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(installed.parent)
    command: list[Path | str] = [
        installed / "greylag-router",
        "up",
        "--base",
        base,
        "--bundle",
        bundle.folder,
        "--http",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(
        [*command, "--json"], cwd=place, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["http"]
            assert "Greylag" in httpx.get(f"{url}/").text
            assert httpx.get(f"{url}/page/page.js").status_code == 200
            curl = ["curl", "-fsS", f"{url}/v1/completions", "-H", "Content-Type: application/json", "-d"]
            (model, *_) = httpx.get(f"{url}/v1/models").json()["data"]
            asked = {"model": model["id"], "prompt": "a b", "max_tokens": 3, "greylag": {"explain": "shares"}}
            said = json.loads(subprocess.check_output([*curl, json.dumps(asked)], text=True))
            assert said["choices"][0]["greylag"]["experts"] == [{"name": "notes", "share": 1.0}]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
