"""One command from nothing to an answer over HTTP."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from protocol.bundle import Bundle
from protocol.errors import Code, Refused
from router.cli import serve
from router.cli.main import app
from router.settings import load
from tests.router.catalog import Catalog

Visit = Callable[[str], Any]


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `up` until a visit, given the URL, is over; gives what the visit gave."""

    def visited(visit: Visit, *arguments: str) -> Any:
        seen: list[Future[Any]] = []

        def visiting(url: str) -> Any:
            try:
                return visit(url)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        with ThreadPoolExecutor(1) as visitor:
            monkeypatch.setattr(
                serve, "put", lambda url: seen.append(visitor.submit(visiting, url)) if "://" in url else None
            )
            done = CliRunner().invoke(app, ["up", "--http", "127.0.0.1:0", "--device", "cpu", *arguments])
        assert done.exit_code == 0, done.exception
        return seen[0].result()

    return visited


def answer(url: str, **extra: object) -> dict[str, Any]:
    asked = {"model": httpx.get(f"{url}/v1/models").json()["data"][0]["id"], "prompt": "a b", "max_tokens": 2}
    reply: dict[str, Any] = httpx.post(f"{url}/v1/completions", json=asked | extra, timeout=60).json()
    return reply


def test_a_pool_answers_and_goes_on_to_with_its_coordinator_gone(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, t5_base: Path, visited: Callable[..., Any]
) -> None:
    place = ("-w", str(tmp_path / "node"))
    catalog.publish(bundles[:2], number=1)
    first = visited(answer, *place, "--coordinator", address, "--base", str(t5_base))
    assert first["choices"][0]["greylag"]["release"] == 1
    assert load(tmp_path / "node").coordinator == address
    assert visited(lambda url: httpx.get(f"{url}/").status_code, *place) == 200, "the second time it is known"
    again = visited(answer, *place, "--coordinator", "127.0.0.1:1")
    assert again["choices"][0]["text"] == first["choices"][0]["text"]


def test_bundles_of_this_machine_answer_without_a_coordinator(
    bundles: list[Bundle], tmp_path: Path, t5_base: Path, visited: Callable[..., Any]
) -> None:
    given = [word for each in bundles[:2] for word in ("--bundle", str(each.folder))]
    found = visited(
        lambda url: (answer(url), httpx.get(f"{url}/page/facts").json()),
        "-w", str(tmp_path / "w"), "--base", str(t5_base), *given,
    )  # fmt: skip
    assert found[0]["usage"]["completion_tokens"] >= 1
    assert found[1]["experts"] == [each.spec.name for each in bundles[:2]]
    assert not (tmp_path / "w" / "router.toml").exists(), "there is nothing to come back to"


def test_what_does_not_go_together_or_is_no_bundle_is_refused(bundles: list[Bundle], tmp_path: Path) -> None:
    with_bundle = ["up", "-w", str(tmp_path / "w"), "--base", "x", "--bundle"]
    both = CliRunner().invoke(app, [*with_bundle, str(bundles[0].folder), "--coordinator", "127.0.0.1:1"])
    assert isinstance(both.exception, Refused)
    assert both.exception.code is Code.REQUEST_INVALID
    none = CliRunner().invoke(app, [*with_bundle, str(tmp_path)])
    assert isinstance(none.exception, Refused)
    assert "base" not in none.exception.message, "bundles are looked at before the base, which takes longer"
    assert not (tmp_path / "w").exists()
