"""`greylag-router serve` as a process: follows, answers, survives its coordinator, refuses clearly."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.demo.processes import first_document, running
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.v1 import query_pb2
from protocol.v1.query_pb2_grpc import QueryStub
from protocol.wire.grpc_client import connect
from router.query.client import ask
from router.query.request import RoutingChoice
from tests import factories
from tests.router.catalog import Catalog, serving
from tests.system.town import call


@pytest.fixture
def catalog(t5_base: Path, identity: Identity, tmp_path: Path) -> Catalog:
    catalog = Catalog(factories.make_pool(t5_base, identity), identity)
    bundles = [factories.make_bundle(tmp_path / f"b{n}", catalog.pool, identity, name=f"e{n}", seed=n) for n in (0, 1)]
    catalog.publish(bundles[:1], number=1)
    catalog.bundles[bundles[1].digest] = bundles[1]
    return catalog


@pytest.fixture
def coordinator(catalog: Catalog) -> Iterator[str]:
    with serving(catalog) as address:
        yield address


def wait_for(router: str, seen: Callable[[query_pb2.InfoReply], bool]) -> query_pb2.InfoReply:
    deadline = time.monotonic() + 30
    with connect(router) as channel:
        while not seen(info := QueryStub(channel).Info(query_pb2.InfoRequest(), timeout=10)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    return info


def wait_for_release(router: str, number: int) -> list[str]:
    return list(wait_for(router, lambda info: info.release == number).experts)


def test_a_running_router_follows_without_a_restart(
    catalog: Catalog, coordinator: str, t5_base: Path, tmp_path: Path
) -> None:
    node, log = tmp_path / "node", tmp_path / "router.log"
    arguments = ("serve", "-w", node, "--coordinator", coordinator, "--base", t5_base, "--listen", "127.0.0.1:0",
                 "--follow-interval-s", "0.2", "--json")  # fmt: skip
    with running("router", *arguments, log=log) as process:
        address = first_document(process, log)["address"]
        assert wait_for_release(address, 1) == ["ada/e0"]
        assert ask(address, ["a b"], max_new_tokens=2).answers[0].release == 1

        second = call("router", *arguments)
        assert second.returncode == Code.WORKSPACE_BUSY.fate.exit

        catalog.publish(list(catalog.bundles.values()), number=2)
        assert wait_for_release(address, 2) == ["ada/e0", "ada/e1"]
        answered = ask(address, ["a b", "c"], max_new_tokens=3, explain=True)
        assert answered.answers[0].release == 2
        assert answered.answers[0].routes

        # A release that does not verify changes nothing, and whoever asks is told.
        catalog.identity = Identity.generate()
        catalog.publish([], number=3)
        told = wait_for(address, lambda info: bool(info.trouble))
        assert "not taken up" in told.trouble
        assert "[BAD_SIGNATURE]" in told.trouble
        assert (told.release, list(told.experts)) == (2, ["ada/e0", "ada/e1"])

        for method, code in (("magic", Code.METHOD_UNKNOWN), ("expert:nobody", Code.EXPERT_UNKNOWN)):
            with pytest.raises(Refused) as refused:
                ask(address, ["a"], RoutingChoice(method))
            assert refused.value.code is code
        with pytest.raises(Refused) as refused:
            ask(address, ["a"] * 1000)
        assert refused.value.code is Code.REQUEST_INVALID

        said = call("router", "ask", "--server", address, "--json", "--explain", "a b", "c d")
        assert [len(answer["routes"]) for answer in json.loads(said.stdout)["answers"]] == [32, 32]
    assert process.returncode == 0  # SIGTERM is a clean end


@pytest.mark.parametrize("verb", ["serve", "serve with a release", "pull"])
def test_a_stop_signal_ends_it_in_seconds_while_a_file_drips(
    catalog: Catalog, coordinator: str, t5_base: Path, tmp_path: Path, verb: str
) -> None:
    node, log = tmp_path / "node", tmp_path / "router.log"
    asks = ("--coordinator", coordinator, "--base", t5_base)
    listens = ("--listen", "127.0.0.1:0", "--follow-interval-s", "0.1", "--json")
    follows = verb == "serve with a release"
    catalog.drips = not follows
    with running(
        "router", verb.partition(" ")[0], "-w", node, *asks, *(listens if "serve" in verb else ()), log=log
    ) as process:
        if follows:
            first_document(process, log)
            catalog.drips = True
            catalog.publish(list(catalog.bundles.values()), number=2)
        deadline, had = time.monotonic() + 60, len(catalog.fetched)
        while len(catalog.fetched) == (had if follows else 0):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        began = time.monotonic()
        process.terminate()
        process.wait(20)
        assert time.monotonic() - began < 10
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("ask", "-w", "{empty}", "hello"), Code.WORKSPACE_MISSING),
        (("pull", "-w", "{empty}"), Code.SETTINGS_INVALID),
        (("pull", "-w", "{empty}", "--coordinator", "nonsense", "--base", "x"), Code.SETTINGS_INVALID),
        (("pull", "-w", "{empty}", "--coordinator", "127.0.0.1:1", "--base", "x"), Code.UNREACHABLE),
        (("ask", "--server", "127.0.0.1:1", "hello"), Code.UNREACHABLE),
        (("serve", "-w", "{empty}", "--coordinator", "127.0.0.1:1", "--base", "{empty}/none"), Code.BASE_UNREADABLE),
    ],
)
def test_a_refusal_is_one_sentence_with_its_status(arguments: tuple[str, ...], code: Code, tmp_path: Path) -> None:
    done = call("router", *(word.format(empty=tmp_path) for word in arguments))
    assert done.returncode == code.fate.exit, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "router.toml").write_text('coordinator = "127.0.0.1:1"\nbase = "x"\ncordinator = "typo"\n')
    done = call("router", "pull", "-w", tmp_path)
    assert done.returncode == Code.SETTINGS_INVALID.fate.exit
    assert "cordinator" in done.stderr
    done = call("router", "pull", "-w", tmp_path, environment={"GREYLAG_ROUTER_BAES": "x"})
    assert done.returncode == Code.SETTINGS_INVALID.fate.exit
