"""A real router behind a real socket."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from protocol.signing import Identity
from protocol.wire.grpc_server import Listen
from router.model.routed_model import RoutedModel
from router.query.limits import Allowance
from router.serving.batches.opening import open_engine
from router.serving.engine import Engine
from router.serving.http.door import Serving
from router.serving.http.server import HttpServer
from router.serving.users.user_file import Users
from tests import factories

POOL = "notes"
TEMPLATE = (
    "{% for turn in messages %}{% if turn['role'] == 'system' and not loop.first %}{{ raise_exception('late') }}"
    "{% endif %}{{ turn['content'] }} ; {% endfor %}"
)


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> RoutedModel:
    """Three experts of ada's on a decoder that chats, in release 8, and two of them in release 7."""
    folder = tmp_path_factory.mktemp("served")
    base, identity = factories.make_llama(folder / "base"), Identity.generate()
    (base / "chat_template.jinja").write_text(TEMPLATE)
    pool = factories.make_pool(base, identity)
    bundles = [
        factories.make_bundle(folder / name, pool, identity, name=name, alpha=16.0, seed=at)
        for at, name in enumerate(("copy", "say", "rotate"))
    ]
    model = RoutedModel.from_base(str(base), device="cpu")
    for bundle in bundles[:2]:
        model.append(bundle, contributor="ada")
    model.generation = replace(model.generation, release=7)
    third = model.load(bundles[2], contributor="ada")
    newest = replace(model.generation, release=8, pool=model.generation.pool.add(third))
    model.held = model.held.followed_by(newest)
    told, tokenizer = model.base.model.generation_config, model.base.tokenizer
    told.min_new_tokens = 8  # a random model's answers are short, and full of what no text shows
    told.suppress_tokens = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    return model


@pytest.fixture(scope="package")
def engine(model: RoutedModel) -> Iterator[Engine]:
    engine = open_engine(model, waiting=40, memory_share=0.01)
    engine.start()
    yield engine
    engine.stop()


@contextmanager
def opened(
    engine: Engine, folder: Path, allowance: Allowance | None = None, listen: Listen | None = None
) -> Iterator[str]:
    """Open a door for the length of a block; gives its URL."""
    serving = Serving(engine, Users(folder), lambda: POOL, allowance or Allowance())
    server = HttpServer(listen or Listen("127.0.0.1:0"), serving)
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve(stopped)), name="door")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(30)
        assert not thread.is_alive()
        loop.close()


@pytest.fixture(scope="package")
def url(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with opened(engine, tmp_path_factory.mktemp("open")) as url:
        yield url


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with asking(url) as client:
        yield client


@contextmanager
def asking(url: str, key: str = "none") -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30) as client:
        yield client
