"""The page at the door: what it is made of, and what it is told."""

import re
from pathlib import Path

import httpx
import pytest

from protocol.errors import Code
from router.query.limits import Allowance
from router.serving.engine import Engine
from router.serving.users.user_file import add_user, revoke_user
from tests.house.sources import ROOT
from tests.router.serving.http.conftest import POOL, opened

PARTS = ROOT / "router" / "serving" / "page"


def test_a_browser_finds_all_of_the_page_here(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path) as url:
        page = httpx.get(f"{url}/")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        needed = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert {Path(each).name for each in needed} == {each.name for each in PARTS.iterdir()} - {
            "index.html", "page.py", "__init__.py", "__pycache__"
        }  # fmt: skip
        for each in needed:
            part = httpx.get(f"{url}/{each}")
            assert part.status_code == 200
            assert "script-src 'self'" in part.headers["content-security-policy"]
        assert httpx.get(f"{url}/page/page.py").status_code == 404
        assert httpx.get(f"{url}/page/..%2fpage.py").status_code == 404


def test_nothing_on_it_comes_from_elsewhere_or_is_written_as_markup() -> None:
    for part in PARTS.glob("*.*"):
        text = part.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|@import|innerHTML|insertAdjacentHTML|eval\(|document\.write", text)


def test_it_is_told_what_may_be_asked(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path, Allowance(methods=("merged",), new_tokens=9)) as url:
        assert httpx.get(f"{url}/page/facts").json() == {
            "pool": POOL, "release": 8, "releases": [8, 7], "experts": ["ada/copy", "ada/say", "ada/rotate"],
            "method": "phatgoose", "methods": ["phatgoose", "merged"], "single": False, "new_tokens": 9, "chat": True,
            "keys": False, "trouble": "",
        }  # fmt: skip


@pytest.mark.parametrize("revoked", [False, True])
def test_the_page_comes_without_a_key_and_what_it_shows_does_not(
    engine: Engine, tmp_path: Path, *, revoked: bool
) -> None:
    key = add_user(tmp_path, "eve").key
    if revoked:
        revoke_user(tmp_path, "eve")
    with opened(engine, tmp_path) as url:
        assert httpx.get(f"{url}/").status_code == 200
        refused = httpx.get(f"{url}/page/facts")
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == Code.USER_KEY.name
        told = httpx.get(f"{url}/page/facts", headers={"authorization": f"Bearer {key}"})
        assert told.status_code == (401 if revoked else 200)
