"""A thousand hostile requests, and an honest user beside them."""

import gc
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from router.serving.engine import Engine
from tests.router.serving.http.conftest import asking, opened

REQUESTS, AT_ONCE, SPARE_MB = 1000, 8, 60
PATHS = ("/v1/completions", "/v1/chat/completions")
Attack = Callable[[random.Random, socket.socket], None]


def post(body: bytes, path: str = "/v1/completions", headers: str = "Content-Type: application/json\r\n") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def broken_json(draw: random.Random, line: socket.socket) -> None:
    whole = json.dumps({"model": "notes", "prompt": "a b", "max_tokens": 2}).encode()
    at = draw.randrange(len(whole))
    spoilt = draw.choice(
        (whole[:at], whole[:at] + draw.randbytes(3) + whole[at:], b"[" * 5000, b'{"a":' * 2000, b"NaN")
    )
    line.sendall(post(spoilt, draw.choice(PATHS)))


def wrong_types(draw: random.Random, line: socket.socket) -> None:
    odd: tuple[object, ...] = (
        None,
        True,
        -1,
        1e308,
        1 << 70,
        "",
        "x" * 5000,
        [],
        [[]],
        {},
        {"$ref": "#"},
        "\ud800",
        [None] * 50,
    )
    names = (
        "model",
        "prompt",
        "messages",
        "n",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "stream",
        "greylag",
    )
    body = {"model": "notes", "prompt": "a", "max_tokens": 1} | {draw.choice(names): draw.choice(odd) for _ in range(2)}
    line.sendall(post(json.dumps(body).encode(), draw.choice(PATHS)))


def huge_prompt(draw: random.Random, line: socket.socket) -> None:
    text = "a " * draw.choice((200, 20_000, 400_000))
    line.sendall(post(json.dumps({"model": "notes", "prompt": text, "max_tokens": 1}).encode()))


def many_words(draw: random.Random, line: socket.socket) -> None:
    body = {"model": "notes", "prompt": "a", "stop": ["x"] * 10_000, "n": draw.choice((1, 1000))}
    line.sendall(post(json.dumps(body).encode()))


def flood_of_headers(draw: random.Random, line: socket.socket) -> None:
    line.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n")
    for number in range(draw.choice((100, 5000))):
        line.sendall(f"X-{number}: {'y' * 100}\r\n".encode())
    line.sendall(b"\r\n")


def path_tricks(draw: random.Random, line: socket.socket) -> None:
    tricks = (
        "/../../etc/passwd",
        "/page/..%2f..%2fapp.py",
        "//",
        "/v1//models",
        "/page/%00",
        "/%2e%2e",
        "/v1/models/" + "x" * 9000,
    )
    method = draw.choice(("GET", "PUT", "DELETE", "TRACE", "CONNECT", "M" * 300))
    line.sendall(f"{method} {draw.choice(tricks)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


def bad_framing(draw: random.Random, line: socket.socket) -> None:
    heads = (
        "Content-Length: -5", "Content-Length: 99999999999", "Content-Length: 3\r\nContent-Length: 4",
        "Transfer-Encoding: chunked\r\nContent-Length: 3", "Transfer-Encoding: chunked", "Expect: 100-continue",
    )  # fmt: skip
    line.sendall(f"POST {PATHS[0]} HTTP/1.1\r\nHost: localhost\r\n{draw.choice(heads)}\r\n\r\nzz\r\nabc".encode())


def half_closed(draw: random.Random, line: socket.socket) -> None:
    body = {"model": "notes", "prompt": "a b", "max_tokens": 60, "stream": True}
    line.sendall(post(json.dumps(body).encode()))
    line.recv(draw.choice((1, 200)))
    line.shutdown(draw.choice((socket.SHUT_WR, socket.SHUT_RDWR)))


def garbage(draw: random.Random, line: socket.socket) -> None:
    line.sendall(draw.randbytes(draw.choice((1, 100, 5000))))
    line.shutdown(socket.SHUT_WR)


def left_hanging(draw: random.Random, line: socket.socket) -> None:
    line.sendall(post(b"{}" * 50)[: draw.randrange(1, 120)])
    line.shutdown(socket.SHUT_WR)


ATTACKS: tuple[Attack, ...] = (
    broken_json, wrong_types, huge_prompt, many_words, flood_of_headers, path_tricks, bad_framing, half_closed, garbage,
    left_hanging,
)  # fmt: skip


def play(port: int, number: int) -> str:
    """Play one attack; gives the status that came back, or a word."""
    draw = random.Random(number)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        try:
            ATTACKS[number % len(ATTACKS)](draw, line)
            first = b""
            with suppress(TimeoutError):
                line.settimeout(3)
                while len(first) < 12 and (more := line.recv(12 - len(first))):
                    first += more
        except OSError:
            return "hung up"
    return first[9:12].decode("latin-1") or "closed"


@pytest.mark.slow
def test_a_thousand_hostile_requests_change_nothing_for_an_honest_user(engine: Engine, tmp_path: Path) -> None:
    process, over, answers = psutil.Process(), threading.Event(), list[str]()
    with capture_logs(), opened(engine, tmp_path) as url, asking(url) as honest:
        port = int(url.rpartition(":")[2])

        def ask() -> str:
            return honest.completions.create(model="notes", prompt="a b c", max_tokens=8).choices[0].text

        def keep_asking() -> None:
            while not over.is_set():
                answers.append(ask())

        wanted = ask()
        with ThreadPoolExecutor(AT_ONCE) as attackers:  # what the first hundred leave behind is not counted
            list(attackers.map(lambda number: play(port, number), range(REQUESTS, REQUESTS + 100)))
        gc.collect()
        before = process.memory_info().rss
        asking_on = threading.Thread(target=keep_asking)
        asking_on.start()
        try:
            with ThreadPoolExecutor(AT_ONCE) as attackers:
                came = Counter(attackers.map(lambda number: play(port, number), range(REQUESTS)))
        finally:
            over.set()
            asking_on.join(60)
        gc.collect()
        grown_mb = (process.memory_info().rss - before) / (1 << 20)
    assert sum(came.values()) == REQUESTS
    assert not [status for status in came if status.startswith("5") and status != "503"], came
    assert came["400"] > REQUESTS / 10
    assert len(answers) > 3
    assert set(answers) == {wanted}
    assert grown_mb < SPARE_MB, came
