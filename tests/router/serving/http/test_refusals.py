"""What is not answered: every refusal in OpenAI's shape, and nothing that a stranger sends is a fault of ours."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import BadRequestError, NotFoundError, OpenAI, PermissionDeniedError

from protocol.errors import Code
from router.base.loading import load_base
from router.model.routed_model import RoutedModel
from router.query.limits import Allowance
from router.serving.batches.opening import open_engine
from router.serving.engine import Engine
from router.serving.http.requests import MAX_ANSWERS
from tests.router.serving.http.conftest import asking, opened

JSON = {"content-type": "application/json"}
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
PLAIN: dict[str, Any] = {"model": "notes", "prompt": "a", "max_tokens": 1}
SAID = [{"role": "user", "content": "a"}]


def refused(answer: httpx.Response) -> tuple[int, str]:
    """Read a refusal; it looks as OpenAI's do."""
    (error,) = answer.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return answer.status_code, error["code"]


@pytest.mark.parametrize(
    ("path", "fields", "code", "param"),
    [
        (TEXT, {"model": "other"}, Code.POOL_UNKNOWN, None),
        (TEXT, {"model": "notes/what:ever"}, Code.POOL_UNKNOWN, None),
        (TEXT, {"model": "notes@9"}, Code.RELEASE_UNKNOWN, None),
        (TEXT, {"model": "notes/expert:ada/none"}, Code.EXPERT_UNKNOWN, None),
        (TEXT, {"model": "notes/method:magic"}, Code.METHOD_UNKNOWN, None),
        (TEXT, {"model": "notes/method:spectr"}, Code.METHOD_CLOSED, None),
        (TEXT, {"model": "notes/method:base", "greylag": {"method": "phatgoose"}}, Code.REQUEST_INVALID, None),
        (TEXT, {"model": 3}, Code.REQUEST_INVALID, "model"),
        (TEXT, {"greylag": {"metod": "base"}}, Code.REQUEST_INVALID, "greylag.metod"),
        (TEXT, {"greylag": {"k": 9}}, Code.REQUEST_INVALID, None),
        (TEXT, {"greylag": {"k": "2"}}, Code.REQUEST_INVALID, "greylag.k"),
        (TEXT, {"greylag": {"deny": ["ada/"]}}, Code.EXPERTS_EXHAUSTED, None),
        (TEXT, {"greylag": {"temperature": 0}}, Code.REQUEST_INVALID, None),
        (TEXT, {"prompt": ""}, Code.REQUEST_INVALID, None),
        (TEXT, {"prompt": []}, Code.REQUEST_INVALID, None),
        (TEXT, {"prompt": ["a"] * (MAX_ANSWERS + 1)}, Code.REQUEST_INVALID, None),
        (TEXT, {"prompt": ["a"] * MAX_ANSWERS, "n": 2}, Code.REQUEST_INVALID, None),
        (TEXT, {"prompt": [1 << 40]}, Code.REQUEST_INVALID, None),
        (TEXT, {"prompt": [-1]}, Code.REQUEST_INVALID, "prompt.str"),
        (TEXT, {"prompt": "a " * 500}, Code.DATA_TOO_LONG, None),
        (TEXT, {"max_tokens": 0}, Code.REQUEST_INVALID, None),
        (TEXT, {"max_tokens": 5000}, Code.REQUEST_INVALID, None),
        (TEXT, {"max_tokens": 1.5}, Code.REQUEST_INVALID, "max_tokens"),
        (TEXT, {"temperature": 3}, Code.REQUEST_INVALID, None),
        (TEXT, {"top_p": 0}, Code.REQUEST_INVALID, None),
        (TEXT, {"n": 0}, Code.REQUEST_INVALID, "n"),
        (TEXT, {"stop": ["a"] * 10_000}, Code.REQUEST_INVALID, None),
        (TEXT, {"stop": ["a" * 1000]}, Code.REQUEST_INVALID, None),
        (TEXT, {"logprobs": 6}, Code.REQUEST_INVALID, "logprobs"),
        (TEXT, {"echo": True}, Code.REQUEST_INVALID, "echo"),
        (CHAT, {"messages": []}, Code.REQUEST_INVALID, None),
        (CHAT, {"messages": [{"role": "tool", "content": "a"}]}, Code.REQUEST_INVALID, "messages.0.role"),
        (CHAT, {"messages": [*SAID, {"role": "assistant", "content": "b"}]}, Code.REQUEST_INVALID, None),
        (CHAT, {"messages": [*SAID, {"role": "system", "content": "b"}]}, Code.REQUEST_INVALID, None),  # the template's
        (CHAT, {"messages": SAID, "top_logprobs": 2}, Code.REQUEST_INVALID, None),
        (CHAT, {"messages": SAID, "tools": [{"type": "function"}]}, Code.REQUEST_INVALID, "tools"),
        (CHAT, {"messages": SAID, "response_format": {"type": "json_object"}}, Code.REQUEST_INVALID, "response_format"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_its_code(
    http: httpx.Client, path: str, fields: dict[str, Any], code: Code, param: str | None
) -> None:
    for stream in (False, True):  # nothing has been sent yet, so a stream is refused alike
        answer = http.post(path, json=PLAIN | fields | {"stream": stream})
        assert refused(answer) == (code.fate.http, code.name), answer.text
        assert answer.json()["error"]["param"] == param
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b'{"model": NaN}', b'{"model": "a", "model": "b"}',
        b'{"seed": 99999999999999999999}', b"[" * 100_000, b'{"prompt": "\\ud800"}', b"{}", json.dumps(["a"]).encode(),
    ],
)  # fmt: skip
def test_bodies_that_are_no_requests(http: httpx.Client, body: bytes) -> None:
    for path in (TEXT, CHAT):
        assert refused(http.post(path, content=body, headers=JSON)) == (400, "REQUEST_INVALID")


def test_fields_that_change_nothing_are_passed_over(http: httpx.Client) -> None:
    more = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "of_tomorrow": [1], "tools": [],
        "response_format": {"type": "text"}, "presence_penalty": 0, "logit_bias": None, "stop": None, "n": None,
        "stream_options": None, "logprobs": None, "seed": None,
    }  # fmt: skip
    assert http.post(TEXT, json=PLAIN | more).status_code == 200
    assert http.post(CHAT, json={"model": "notes", "messages": SAID, "max_tokens": 1} | more).status_code == 200


def test_the_official_client_raises_its_own_errors(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="no model 'gpt-4o' here") as unknown:
        client.completions.create(model="gpt-4o", prompt="a")
    assert unknown.value.code == "POOL_UNKNOWN"
    with pytest.raises(PermissionDeniedError, match="takes no requests by spectr"):
        client.completions.create(model="notes/method:spectr", prompt="a")
    with pytest.raises(BadRequestError, match="no such entry"):
        client.completions.create(model="notes", prompt="a", extra_body={"greylag": {"wit": 1}})


def test_what_is_no_question(http: httpx.Client) -> None:
    assert refused(http.get(TEXT)) == (405, "REQUEST_INVALID")
    assert refused(http.get("/nothing")) == (404, "REQUEST_INVALID")
    assert refused(http.get("/openapi.json")) == (404, "REQUEST_INVALID")
    assert refused(http.get("/v1/models/none")) == (404, "POOL_UNKNOWN")
    assert refused(http.get("/v1/models/notes/expert:none")) == (404, "EXPERT_UNKNOWN")
    text = {"content-type": "text/plain"}
    assert refused(http.post(TEXT, content=json.dumps(PLAIN), headers=text)) == (400, "REQUEST_INVALID")


def test_another_name_for_this_machine_is_not_believed(http: httpx.Client) -> None:
    for path in ("/v1/models", "/metrics"):
        assert refused(http.get(path, headers={"host": "evil.example:80"})) == (400, "REQUEST_INVALID")
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1", "[::1]", "[::1]:8080"):
        assert http.get("/v1/models", headers={"host": host}).status_code == 200


KEYS = st.sampled_from(["model", "prompt", "messages", "n", "stop", "stream", "max_tokens", "logprobs", "greylag", "k"])
ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 53), 1 << 53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([TEXT, CHAT]), fields=st.dictionaries(KEYS, ANY, max_size=5))
def test_whatever_comes_is_answered_or_refused(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    answer = http.post(path, json=PLAIN | {"messages": SAID} | fields)
    assert answer.status_code < 500, answer.text


@pytest.fixture
def t5_engine(t5_base: Path) -> Engine:
    return open_engine(RoutedModel(load_base(str(t5_base), device="cpu")), waiting=4, memory_share=0.01)


def test_a_base_without_a_template_completes_and_does_not_chat(t5_engine: Engine, tmp_path: Path) -> None:
    t5_engine.start()
    with opened(t5_engine, tmp_path, Allowance(new_tokens=3)) as url, asking(url) as client:
        assert client.completions.create(model="notes", prompt="a b").usage.completion_tokens <= 3  # type: ignore[union-attr]
        with pytest.raises(BadRequestError, match="no chat template"):
            client.chat.completions.create(model="notes", messages=[{"role": "user", "content": "a"}])
        with pytest.raises(BadRequestError, match="at most 3 are given"):
            client.completions.create(model="notes", prompt="a b", max_tokens=4)
    t5_engine.stop()
