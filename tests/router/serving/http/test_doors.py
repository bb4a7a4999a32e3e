"""Who gets in, who waits, and what becomes of those who leave; over a real socket, by the official client."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, AuthenticationError, OpenAI, RateLimitError
from structlog.testing import capture_logs
from uvicorn import Config
from uvicorn.server import ServerState

from protocol.errors import Code, Refused
from protocol.wire.grpc_server import Listen
from router.model.routed_model import RoutedModel
from router.serving.batches.opening import open_engine
from router.serving.engine import Engine
from router.serving.http import listening, server
from router.serving.http.requests import MAX_BODY
from router.serving.http.server import Connection
from router.serving.users.openness import Openness, check_door
from router.serving.users.user_file import FILE, add_user, revoke_user
from tests.protocol.serving import make_authority
from tests.router.serving.http.conftest import asking, opened

LONG: dict[str, Any] = {"model": "notes", "prompt": "a b", "max_tokens": 100}


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(url: str, key: str = "none") -> str:
    with asking(url, key) as client:
        return client.completions.create(model="notes", prompt="a b", max_tokens=1).choices[0].text


def test_keys_open_and_close_the_door_while_it_stands(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path) as url:
        assert ask(url)  # the client always sends a key, and nobody asks for one
        _, ada = add_user(tmp_path, "ada", requests="2/hour")
        _, bob = add_user(tmp_path, "bob")
        with pytest.raises(AuthenticationError) as refused:
            ask(url)
        assert refused.value.code == "USER_KEY"
        assert refused.value.response.headers["www-authenticate"] == "Bearer"
        for _ in range(2):
            assert ask(url, ada)
        with pytest.raises(RateLimitError) as late:
            ask(url, ada)
        assert late.value.code == "LIMIT_REACHED"
        assert int(late.value.response.headers["retry-after"]) >= 1
        assert ask(url, bob)
        revoke_user(tmp_path, "bob")
        with pytest.raises(AuthenticationError):
            ask(url, bob)
        with capture_logs() as logs:
            assert httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {ada}"}).status_code == 200
            # That of the request before may come late.
            eventually(lambda: 200 in [entry.get("status") for entry in logs])
        assert ada not in str(logs)
        for path, status in (("/metrics", 401), ("/v1/models", 401), ("/health", 200), ("/ready", 200)):
            assert httpx.get(url + path).status_code == status
        whoever = {"authorization": f"Bearer {ada}", "host": "router.example"}  # a key is worth more than a name
        assert httpx.get(f"{url}/v1/models", headers=whoever).status_code == 200
        (tmp_path / FILE).write_text("{")
        broken = httpx.get(f"{url}/v1/models", headers=whoever)
        assert (broken.status_code, broken.json()["error"]["code"]) == (503, "CLOSED")


def test_requests_have_an_id_and_are_counted(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path) as url, httpx.Client(base_url=url) as http:
        assert http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        made = [http.get("/none", headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("a b", "x" * 200)]
        assert len({*made, "a b", "x" * 200}) == 4
        assert http.post("/v1/completions", json=LONG | {"max_tokens": 3}).status_code == 200
        assert http.post("/v1/completions", json=LONG | {"model": "other"}).status_code == 404
        page = http.get("/metrics").text
        for line in (
            'greylag_router_requests_total{path="/v1/completions",status="200"} 1.0',
            'greylag_router_requests_total{path="other",status="404"} 2.0',
            'greylag_router_refusals_total{code="POOL_UNKNOWN"} 1.0',
            'greylag_router_tokens_total{of="output"} 3.0',
            "greylag_router_first_token_seconds_count 1.0",
            "greylag_router_release 8.0",
            "greylag_router_experts 3.0",
            "greylag_router_running 0.0",
        ):
            assert line in page.splitlines()
        ready = http.get("/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ok", "release": 8, "trouble": ""})


@contextmanager
def narrow(model: RoutedModel, folder: Path) -> Iterator[tuple[Engine, str]]:
    """Open a door to an engine that answers one at a time while one more waits."""
    engine = open_engine(model, waiting=1, memory_share=0.01, seats=1)
    engine.start()
    try:
        with opened(engine, folder) as url:
            yield engine, url
    finally:
        engine.stop()


def stream(client: OpenAI) -> Any:
    return client.completions.create(**LONG, stream=True)


@pytest.fixture
def steps() -> list[float]:
    """When `slow` was run."""
    return []


@pytest.fixture
def slow(model: RoutedModel, steps: list[float], monkeypatch: pytest.MonkeyPatch) -> RoutedModel:
    """A model that takes its time, and ends by itself after hundred steps."""
    forward = model.base.model.forward

    def slowly(*given: Any, **more: Any) -> Any:
        steps.append(time.monotonic())
        time.sleep(0.05)
        return forward(*given, **more)

    monkeypatch.setattr(model.base.model, "forward", slowly)
    monkeypatch.setattr(model.base.model.generation_config, "min_new_tokens", 100)
    return model


def test_who_comes_when_many_wait_is_told_when_to_come_back(
    slow: RoutedModel, steps: list[float], tmp_path: Path
) -> None:
    with narrow(slow, tmp_path) as (engine, url), asking(url) as client:
        first = stream(client)
        next(first)
        with pytest.raises(RateLimitError):  # of three answers one might wait, and is not left to
            client.completions.create(**LONG, n=3)
        eventually(lambda: engine.load.waiting == 0)
        assert engine.load.running == 1
        assert len(steps) < 80  # which is still the first
        waiting = threading.Thread(target=ask, args=(url,))
        waiting.start()
        eventually(lambda: engine.load.waiting == 1)
        with pytest.raises(RateLimitError) as busy:
            ask(url)
        assert busy.value.code == "BUSY"
        assert busy.value.response.headers["retry-after"] == "2"
        first.close()
        waiting.join(20)
        assert not waiting.is_alive()
        assert ask(url)


def test_one_user_leaves_half_of_the_places_to_others(slow: RoutedModel, tmp_path: Path) -> None:
    _, ada = add_user(tmp_path, "ada")
    _, bob = add_user(tmp_path, "bob")
    engine = open_engine(slow, waiting=16, memory_share=0.01, seats=32)
    engine.start()
    with opened(engine, tmp_path) as url, asking(url, ada) as client:
        many = client.completions.create(**LONG, n=16, stream=True)
        next(many)
        with pytest.raises(RateLimitError) as refused:
            ask(url, ada)
        assert refused.value.code == "BUSY"
        assert ask(url, bob)
        many.close()
        eventually(lambda: engine.load.running == 0)
        assert ask(url, ada)
    engine.stop()


def test_keys_and_answers_go_over_tls(engine: Engine, tmp_path: Path) -> None:
    authority = make_authority(tmp_path / "tls")
    with opened(engine, tmp_path, listen=authority.listen()) as url:
        trusting = ssl.create_default_context(cafile=authority.ca)
        secure = url.replace("http", "https", 1)
        assert httpx.get(f"{secure}/ready", verify=trusting).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/ready")


@pytest.mark.parametrize("streaming", [True, False])
def test_the_requests_of_clients_that_are_gone_leave_the_batch(
    slow: RoutedModel, steps: list[float], tmp_path: Path, *, streaming: bool
) -> None:
    with narrow(slow, tmp_path) as (engine, url):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as line:
            line.sendall(post(LONG | {"stream": streaming}))
            eventually(lambda: engine.load.running == 1)
            if streaming:
                assert b"data: " in line.recv(1 << 16) + line.recv(1 << 16)
        eventually(lambda: engine.load.running == 0)
        assert len(steps) < 80  # so it did not come to its end
        assert ask(url)
        page = httpx.get(f"{url}/metrics").text
        assert f'path="/v1/completions",status="{200 if streaming else 499}"' in page


def post(fields: dict[str, Any]) -> bytes:
    """Write a request as it goes over the line."""
    return httpx_bytes(httpx.Request("POST", "http://localhost/v1/completions", json=fields))


def closing(request: bytes) -> bytes:
    """Have the other side hang up after its answer."""
    return request.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)


def httpx_bytes(request: httpx.Request) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"{request.method} {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + request.content


def test_an_answer_that_the_engine_ends_early_ends_its_stream_with_a_refusal(slow: RoutedModel, tmp_path: Path) -> None:
    engine = open_engine(slow, waiting=4, memory_share=0.01)
    engine.start()
    heard: list[Any] = []

    def listen(client: OpenAI) -> None:
        try:
            heard.extend(stream(client))
        except APIError as error:
            heard.append(error.body)

    with opened(engine, tmp_path) as url, asking(url) as client:
        listener = threading.Thread(target=listen, args=(client,))
        listener.start()
        eventually(lambda: bool(heard) or engine.load.running == 1)
        door = threading.Thread(target=engine.stop, args=(0.2,))
        door.start()
        eventually(lambda: not engine.load.running)
        listener.join(20)
        door.join(20)
        assert httpx.post(f"{url}/v1/completions", json=LONG).status_code == 429
    assert heard[-1]["code"] == "BUSY"
    assert "stops" in heard[-1]["message"]


def test_a_door_that_closes_lets_answers_come_to_their_end(slow: RoutedModel, tmp_path: Path) -> None:
    engine = open_engine(slow, waiting=4, memory_share=0.01)
    engine.start()
    with opened(engine, tmp_path) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        told: list[str] = []
        parts = client.completions.create(**LONG | {"max_tokens": 12}, stream=True)
        listener = threading.Thread(target=lambda: told.extend(part.choices[0].text for part in parts))
        listener.start()
        eventually(lambda: bool(told))
    listener.join(20)
    assert len(told) >= 12
    client.close()
    engine.stop()


def raw(url: str, *sent: bytes, wait_s: float = 0.0) -> bytes:
    """Send pieces, and read until the other side hangs up."""
    with socket.socket() as line:
        line.settimeout(10)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        line.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        for piece in sent:
            line.sendall(piece)
            time.sleep(wait_s)
        told = b""
        while got := receive(line):
            told += got
        return told


def receive(line: socket.socket) -> bytes:
    try:
        return line.recv(1 << 16)
    except ConnectionResetError:
        return b""


def test_nobody_is_waited_for_without_end(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.3)
    monkeypatch.setattr(listening, "BODY_S", 0.3)
    whole = post(LONG | {"max_tokens": 1})
    with opened(engine, tmp_path) as url:
        assert raw(url) == b""  # who says nothing
        assert raw(url, b"GET / HT") == b""  # nor goes on
        late = raw(url, closing(whole)[:-10])  # nor ends its body
        assert late.startswith(b"HTTP/1.1 400")
        assert b"took longer than" in late
        after = raw(url, whole, b"GET / HT", wait_s=0.2)  # nor what follows an answer
        assert after.count(b"HTTP/1.1") == 1
        assert after.startswith(b"HTTP/1.1 200")
        assert raw(url, b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * (17 << 10)).startswith(b"HTTP/1.1 400")
        assert raw(url, b"\x16\x03\x01 no http\r\n\r\n").startswith(b"HTTP/1.1 400")
        assert ask(url)


def test_a_body_that_is_too_long_is_refused_and_not_hung_up_on(engine: Engine, tmp_path: Path) -> None:
    with opened(engine, tmp_path) as url:
        told = raw(url, closing(post(LONG | {"prompt": "a" * 7 * MAX_BODY})))  # who reads only once all is sent
        assert told.startswith(b"HTTP/1.1 413")
        assert b"MESSAGE_TOO_LARGE" in told


def test_a_client_that_takes_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TAKE_S", 0.2)

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        gone = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200})
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})

    async def silent() -> None:
        state = ServerState()
        config = Config(endless, ws="none", lifespan="off", log_config=None, log_level="critical")
        config.load()
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
        with socket.create_connection(listening.sockets[0].getsockname()) as line:
            line.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            async with asyncio.timeout(20):
                while not state.tasks:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.01)
                await asyncio.gather(*state.tasks)
        listening.close()
        assert not state.connections

    asyncio.run(silent())


@pytest.mark.parametrize(
    ("openness", "keys", "missing"),
    [
        (Openness(), False, "--http-without-keys"),
        (Openness(without_tls=True), False, "--http-without-keys"),
        (Openness(without_keys=True), False, "--tls-cert"),
        (Openness(), True, "--tls-cert"),
        (Openness(without_tls=True), True, None),
        (Openness(without_tls=True, without_keys=True), False, None),
    ],
)
def test_a_door_stands_open_to_others_only_by_a_word(openness: Openness, *, keys: bool, missing: str | None) -> None:
    check_door(Listen("127.0.0.1:0"), Openness(), keys=False)
    if missing is None:
        check_door(Listen("0.0.0.0:0"), openness, keys=keys)
        return
    with pytest.raises(Refused) as refused:
        check_door(Listen("0.0.0.0:0"), openness, keys=keys)
    assert refused.value.code is Code.SETTINGS_INVALID
    assert missing in refused.value.hint
