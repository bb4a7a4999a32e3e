"""How a demo ends early: everything is put away, and one sentence says why."""

import os
import select
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.demo import federation, processes
from deploy.demo.federation import Federation
from deploy.demo.world import WORDS
from deploy.federation.wiretap import make_certificate, tapped
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryServicer, add_QueryServicer_to_server
from tests.house.sources import ROOT


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", "error: interrupted\n"),
        ("raise RuntimeError('A server ended.')", "error: A server ended.\n"),
    ],
)
def test_a_demo_that_ends_early_says_why(tmp_path: Path, end: str, said: str) -> None:
    program = f"""
import os, signal
from deploy.demo.processes import perform

def play(folder):
    try:
        {end}
    finally:
        print("put away")

perform("demo", play)
"""
    command = [sys.executable, "-c", program, "--folder", str(tmp_path / "demo")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)  # noqa: PLW1510 - it is to fail
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "put away\n", said)


def test_what_a_killed_program_had_started_ends_with_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    child = f"{{ echo lives; exec sleep 60; }} > {pipe} & exec sleep 60"
    monkeypatch.setattr(processes, "program", lambda *_: ["sh", "-c", child])

    def hear() -> bytes:
        assert select.select([there], [], [], 10)[0]
        return os.read(there, 10)

    there = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with processes.running("client", log=tmp_path / "log") as process:
        assert hear() == b"lives\n"
        process.kill()
        process.wait(10)
    assert hear() == b""  # its end of the pipe is closed
    os.close(there)


class FewExperts(QueryServicer):
    """A router at release 1, which it never leaves."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)

    def Info(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service\'s name
        self.asked.release()
        return query_pb2.InfoReply(release=1, experts=["ada/e0"])


def test_a_router_gets_its_time_once_all_have_contributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federation, "SETTLE_S", 0.0)
    server, said = grpc.server(ThreadPoolExecutor(1)), list[str]()
    router = FewExperts()  # type: ignore[abstract] # nobody asks it
    add_QueryServicer_to_server(router, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    cast, trained = Federation(tmp_path, WORDS, "", address, (), lambda _, what: said.append(what)), threading.Event()
    try:
        with ThreadPoolExecutor(1) as pool:
            watcher = pool.submit(cast.watch, 2, trained)
            for _ in range(3):
                assert router.asked.acquire(timeout=10)
            assert not watcher.done()  # however long training takes
            trained.set()
            assert "did not follow" in str(watcher.exception(10))
    finally:
        server.stop(0).wait()
    assert said == ["took up release 1: 1 experts"]


def test_a_taken_port_is_told_in_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        wire = tapped(address, address, *make_certificate(tmp_path), tmp_path / "wire")
        with pytest.raises(RuntimeError, match=f"Nobody can listen on {address}"), wire:
            pass
