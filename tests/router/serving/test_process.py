"""A router process over restarts."""

import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from openai import OpenAI

from protocol.bundle import Bundle
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryStub
from protocol.wire.grpc_client import connect
from router.follow.workspace import open_mirror
from router.query.client import ask
from router.serving.process import run
from router.settings import RouterSettings
from tests.router.catalog import Catalog


def test_the_last_good_release_answers_after_a_restart_too(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, t5_base: Path
) -> None:
    node = tmp_path / "node"
    settings = RouterSettings(
        coordinator=address, base=str(t5_base), device="cpu", listen="127.0.0.1:0", follow_interval_s=0.1
    )

    def visit(port: int) -> list[int]:
        """Ask, let a release come that cannot be taken up, and ask again."""
        router = f"127.0.0.1:{port}"
        try:
            before = ask(router, ["a b"], max_new_tokens=1).answers[0].release
            if len(catalog.releases) == 1:
                catalog.publish(bundles[:2], number=2, method="of-tomorrow")
            with connect(router) as channel:
                deadline = time.monotonic() + 20
                while not (info := QueryStub(channel).Info(query_pb2.InfoRequest(), timeout=10)).trouble:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            assert "[METHOD_UNKNOWN]" in info.trouble
            return [before, info.release, ask(router, ["a b"], max_new_tokens=1).answers[0].release]
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a clean end of what serves

    seen: list[Future[list[int]]] = []
    with ThreadPoolExecutor(1) as visitor:
        catalog.publish(bundles[:1], number=1)
        for _ in range(2):
            run(node, settings, lambda port, _: seen.append(visitor.submit(visit, port)))
    assert [each.result() for each in seen] == [[1, 1, 1]] * 2
    assert open_mirror(node).release.spec.number == 1  # which `ask` from this folder loads


def test_http_answers_beside_grpc_and_an_answer_that_runs_ends_before_the_router_does(
    catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path, t5_base: Path
) -> None:
    settings = RouterSettings(
        coordinator=address, base=str(t5_base), device="cpu", listen="127.0.0.1:0", http="127.0.0.1:0"
    )

    def visit(port: int, web: int | None) -> tuple[list[str], int, int]:
        with OpenAI(base_url=f"http://127.0.0.1:{web}/v1", api_key="none", max_retries=0) as client:
            try:
                names = [each.id for each in client.models.list()]
                parts = client.completions.create(model=names[0], prompt="a b", max_tokens=200, stream=True, n=4)
                begun = next(parts)
                release = ask(f"127.0.0.1:{port}", ["a b"], max_new_tokens=1).answers[0].release
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
            reasons = [choice.finish_reason for part in (begun, *parts) for choice in part.choices]
            return names, release, sum(reason is not None for reason in reasons)

    catalog.publish(bundles[:1], number=1)
    seen: list[Future[tuple[list[str], int, int]]] = []
    with ThreadPoolExecutor(1) as visitor:
        run(tmp_path / "node", settings, lambda *ports: seen.append(visitor.submit(visit, *ports)))
    names, release, ended = seen[0].result()
    assert names[:3] == ["test-pool", "test-pool@1", "test-pool/expert:ada/e0"]
    assert (release, ended) == (1, 4)
