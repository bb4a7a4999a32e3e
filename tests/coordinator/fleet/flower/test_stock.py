"""What a stranger can do to stock Flower, and what is left of it behind the guard."""

import hashlib
import io
import zipfile
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from coordinator.fleet.flower import client as flower
from coordinator.fleet.flower.gateway import App, Guard, inside, outside
from protocol.fleet.node_key import NodeKey
from tests.stock import FLOWERS_OWN, SECRET, evil_app, make_link, served

pytestmark = FLOWERS_OWN
EVIL = evil_app(b"client = open('/data').read") | {"private/train.jsonl": b'{"input": "a private row"}'}


@pytest.fixture
def link(tmp_path: Path) -> tuple[App, frozenset[str]]:
    return make_link(tmp_path)


def operator(port: int) -> ControlHttpClient:
    return ControlHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}", insecure=True, root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="stranger")],
    )  # fmt: skip


def executor(port: int) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}", insecure=True, root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="stranger")],
    )  # fmt: skip


def register(port: int) -> bool:
    try:
        return (
            operator(port).RegisterNode(RegisterNodeRequest(public_key=NodeKey.generate().public.encode())).node_id > 0
        )
    except httpx.HTTPStatusError:
        return False


def start(port: int, files: dict[str, bytes] = EVIL) -> bool:
    content, _ = build_fab_from_files(files)
    fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
    try:
        with closing(operator(port)) as client:
            return client.StartRun(StartRunRequest(fab=fab)).run_id > 0
    except httpx.HTTPStatusError:
        return False


def steal(port: int) -> bool:
    try:
        wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        with closing(executor(port)) as client:
            return bool(client.AcquireTask(wanted).token)
    except httpx.HTTPStatusError:
        return False


def test_a_stranger_owns_stock_flower_and_not_the_guarded_one(link: tuple[App, frozenset[str]]) -> None:
    app, fleet = link
    app.state.superexec_auth_secret = None  # type: ignore[attr-defined] # as stock Flower starts
    with served(app) as port:
        assert (register(port), start(port), steal(port)) == (True, True, True)
        assert start(port, EVIL | {"evil.py": b"changed = True"})  # under the same name and version
    app.state.superexec_auth_secret = SECRET  # type: ignore[attr-defined]
    for guarded in (Guard(app, outside(fleet)), Guard(app, inside(SECRET))):
        with served(guarded) as port:
            assert (register(port), start(port), steal(port)) == (False, False, False)


def test_the_operator_comes_in_through_the_inner_door(link: tuple[App, frozenset[str]]) -> None:
    node = NodeKey.generate()
    with served(Guard(link[0], inside(SECRET))) as port:
        superlink = flower.Superlink(port, SECRET)
        superlink.register(node.public, "ada")
        (found,) = superlink.nodes()
        assert (found.name, found.public_key.decode()) == ("ada", node.public)
        run = superlink.begin()
        assert flower.online(run) == {}
        flower.finish(run)
        superlink.unregister(found.node_id)
        assert [each.status for each in superlink.nodes()] == ["unregistered"]
        superlink.close()
        with pytest.raises(httpx.HTTPStatusError), closing(operator(port)) as client:
            client.ListNodes(ListNodesRequest())


def test_stock_flower_packs_data_into_an_app_bundle() -> None:
    content, _ = build_fab_from_files(EVIL)
    assert "private/train.jsonl" in zipfile.ZipFile(io.BytesIO(content)).namelist()
