"""The router that `tests.bench.serve` asks: a process of its own, which grows its pool when told to."""

import asyncio
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import structlog
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from protocol.wire.grpc_server import Listen
from router.model.routed_model import RoutedModel
from router.query.limits import Allowance
from router.serving.batches.opening import open_engine
from router.serving.http.door import Serving
from router.serving.http.server import HttpServer
from router.serving.users.user_file import Users
from tests import factories
from tests.bench.experts import make_expert

WIDTH, INNER_WIDTH, LAYERS, HEADS, RANK, K = 1024, 2816, 8, 16, 8, 2
POOL = "bench"
_LOOKS = 5
"""Readings of memory, of which the fastest counts."""


def be_served(folder: Path, dtype: str, new_tokens: int, pipe: Connection) -> None:
    """Serve until told to stop.

    Args:
        folder: Where the base and the users' file go.
        dtype: Of the base.
        new_tokens: Length of every answer.
        pipe: Sends the port. Then a number of experts that comes is put on the base, in a release of that number, while
            whoever asked is answered; a list of prompts is answered with how many tokens a second `generate` writes
            to them one after the other, and `facts` with what a step reads; None ends it.
    """
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    model = RoutedModel.from_base(str(_make_base(folder)), device="cpu", dtype=dtype)
    told, tokenizer = model.base.model.generation_config, model.base.tokenizer
    told.min_new_tokens = new_tokens
    told.suppress_tokens = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    engine = open_engine(model, waiting=64, memory_share=0.1)
    engine.start()
    serving = Serving(engine, Users(folder), lambda: POOL, Allowance(methods=("base",)))
    server = HttpServer(Listen("127.0.0.1:0"), serving)
    stopped, loop = asyncio.Event(), asyncio.new_event_loop()
    answering = threading.Thread(target=lambda: loop.run_until_complete(server.serve(stopped)))
    answering.start()
    pipe.send(server.port)
    try:
        while (asked := pipe.recv()) is not None:
            match asked:
                case int(experts):
                    pipe.send(_grow(model, experts))
                case "facts":
                    pipe.send(_facts(model))
                case prompts:
                    pipe.send(_one_by_one(model, prompts, new_tokens))
    finally:
        loop.call_soon_threadsafe(stopped.set)
        answering.join()
        engine.stop()


def _make_base(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = factories.save_tokenizer(folder, begin=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=INNER_WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=512, tie_word_embeddings=False,
        pad_token_id=0, eos_token_id=1, bos_token_id=3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _shapes(model: RoutedModel) -> dict[str, tuple[int, int]]:
    linears = {path: model.base.model.get_submodule(path) for path in model.places}
    return {path: (linear.in_features, linear.out_features) for path, linear in linears.items()}


def _grow(model: RoutedModel, experts: int) -> int:
    """Put random experts on the base until there are so many, the same ones in every process."""
    pool, shapes = model.generation.pool, _shapes(model)
    for number in range(len(pool.experts), experts):
        torch.manual_seed(number)
        pool = pool.add(make_expert(number, shapes, RANK, dtype=model.base.model.dtype))
    model.held = model.held.followed_by(replace(model.generation, release=experts, pool=pool))
    return experts


def _facts(model: RoutedModel) -> dict[str, float]:
    """Tell what a step reads, in bytes, how fast that can be, and how much memory the process has."""
    shapes, weights = _shapes(model), list[Tensor](model.base.model.parameters())
    size = weights[0].element_size()
    return {
        "base_bytes": sum(each.numel() for each in weights) * size,
        "expert_bytes": sum(RANK * (d + o) for d, o in shapes.values()) * size,
        "gate_bytes": sum(4 * d for d, _ in shapes.values()),
        "bytes_s": _bandwidth(),
        "resident_bytes": psutil.Process().memory_info().rss,
    }


def _bandwidth() -> float:
    held = torch.ones(1 << 27)
    took = []
    for _ in range(_LOOKS):
        start = time.perf_counter()
        held.sum()
        took.append(time.perf_counter() - start)
    return held.numel() * held.element_size() / min(took)


def _one_by_one(model: RoutedModel, prompts: Any, new_tokens: int) -> float:
    start = time.perf_counter()
    for prompt in prompts:
        model.generate([prompt], max_new_tokens=new_tokens)
    return len(prompts) * new_tokens / (time.perf_counter() - start)
