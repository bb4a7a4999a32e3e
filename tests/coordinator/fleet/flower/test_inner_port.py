"""Whoever reaches an inner port of SuperLink or SuperNode, as any process of the machine does, needs a secret."""

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from coordinator.fleet.flower.gateway import App, Guard, inside
from tests.stock import FLOWERS_OWN, SECRET, make_link

pytestmark = FLOWERS_OWN
HARMLESS = {"/health", "/docs", "/docs/oauth2-redirect", "/openapi.json"}


def calls(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """List methods and paths of routes, also of those that stand in groups."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from calls(route.original_router.routes)
        else:
            yield from ((method, route.path) for method in sorted(route.methods))


def statuses(app: App, flowers: Any) -> dict[str, set[int]]:
    """Try everything that Flower's app has, and return what comes back, by status or by path."""

    async def ask() -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        headers = {"content-type": "application/protobuf", "authorization": "Bearer x"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            for method, path in calls(flowers.routes):
                if path not in HARMLESS:
                    room = "/".join(path.split("/")[:3])
                    answer = await client.request(method, path, headers=headers)
                    found.setdefault(room, set()).add(answer.status_code)
        return found

    return asyncio.run(ask())


def test_superlinks_inner_port_answers_no_stranger(tmp_path: Path) -> None:
    app, _ = make_link(tmp_path)
    refused = {"/v1/control": {404}, "/v1/fleet": {404}, "/v1/runtime": {401}}
    assert statuses(Guard(app, inside(SECRET)), app) == refused


def test_supernodes_port_answers_no_stranger() -> None:
    app = create_app(NodeStateFactory(ObjectStoreFactory()), SECRET)
    assert statuses(app, app) == {"/v1/runtime": {401}}
