"""What routing costs people who ask over HTTP, many at once.

    python -m tests.bench.serve
    python -m tests.bench.serve --experts 8 166 --users 16 --rounds 1

A router over a Llama-like base of random weights (`tests.bench.served`) answers over loopback in a process of its own,
on one thread; here so many users ask it, each a while after the last answer came, with exponential waits, so that
together they come as a Poisson process does. All experts and none (the method `base`) take turns in each row. The floor
is arithmetic: the tokens a second that memory allows, read as fast as it can be read here, if every step reads the
base, all gates and the experts that its tokens chose, once.

Progress on stderr; the last line of stdout is one JSON object.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

from tests.bench.served import POOL, K, be_served
from tests.factories import WORDS

INPUT_TOKENS, NEW_TOKENS, PAUSE_S = 64, 32, 0.2
EXPERTS, USERS, ROUNDS = (0, 8, 36, 166), (1, 4, 16), 2
SEQUENTIAL = 6
"""Requests that `generate` answers one after the other."""
LONGEST_S = 600.0


@dataclass
class Load:
    """What requests of one kind came to, over all turns of a row."""

    tokens: int = 0
    seconds: float = 0.0
    first_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)
    errors: int = 0

    @property
    def pace(self) -> float:
        """Tokens a second, of all users together."""
        return self.tokens / self.seconds if self.seconds else 0.0


@contextmanager
def served(dtype: str) -> Iterator[tuple[str, Connection]]:
    """Start the router for the length of a block; gives its URL, and the pipe by which it is told things."""
    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        arguments = Path(folder), dtype, NEW_TOKENS, there
        process = multiprocessing.get_context("spawn").Process(target=be_served, args=arguments, daemon=True)
        process.start()
        there.close()
        try:
            yield f"http://127.0.0.1:{here.recv()}", here
        finally:
            here.send(None)
            process.join(LONGEST_S)


def tell(pipe: Connection, what: object) -> Any:
    """Tell the router's process something, and wait for what it says."""
    pipe.send(what)
    return pipe.recv()


def prompts(count: int, seed: int) -> list[str]:
    """Make inputs of one length that begin differently."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=INPUT_TOKENS - 1)) for _ in range(count)]


async def turn(url: str, model: str, users: int, seed: int, load: Load) -> None:
    """Let so many users ask twice each, and four times if there is one alone."""
    left = prompts(users * 2 if users > 1 else 4, seed)
    async with httpx.AsyncClient(base_url=url, timeout=LONGEST_S, limits=httpx.Limits(max_connections=users)) as http:
        start = time.perf_counter()
        await asyncio.gather(*(_user(http, model, left, random.Random(f"{seed} {at}"), load) for at in range(users)))
        load.seconds += time.perf_counter() - start


async def _user(http: httpx.AsyncClient, model: str, left: list[str], draw: random.Random, load: Load) -> None:
    while left:
        prompt = left.pop()
        await asyncio.sleep(draw.expovariate(1 / PAUSE_S))
        asked = {"model": model, "prompt": prompt, "max_tokens": NEW_TOKENS, "stream": True, "logprobs": 0}
        before, written = time.perf_counter(), 0
        try:
            async with http.stream("POST", "/v1/completions", json=asked) as reply:
                async for line in reply.aiter_lines():
                    if line.startswith('data: {"') and json.loads(line[6:])["choices"][0].get("logprobs"):
                        now = time.perf_counter()
                        (load.gap_ms if written else load.first_ms).append(1e3 * (now - before))
                        before, written = now, written + 1
        except httpx.HTTPError:
            written = 0
        load.errors += written != NEW_TOKENS
        load.tokens += written


def row(url: str, experts: int, users: int, rounds: int, facts: dict[str, float]) -> dict[str, Any]:
    """Measure one row: both kinds in turn, after one request of each that does not count."""
    kinds = {"base": Load(), "all": Load()}
    models = {"base": f"{POOL}/method:base", "all": POOL if experts else f"{POOL}/method:base"}
    for model in models.values():
        asyncio.run(turn(url, model, 1, -1, Load()))
    for number in range(rounds):
        for kind, model in models.items():
            asyncio.run(turn(url, model, users, number, kinds[kind]))
    mine, base = kinds["all"], kinds["base"]
    read = facts["base_bytes"] + experts * facts["gate_bytes"] + min(experts, K * users) * facts["expert_bytes"]
    return {
        "experts": experts, "users": users, "tokens_s": round(mine.pace, 1), "base_tokens_s": round(base.pace, 1),
        "ratio_to_base": round(mine.pace / base.pace, 3), "first_token_ms": spread(mine.first_ms),
        "gap_ms": spread(mine.gap_ms), "errors": mine.errors + base.errors,
        "floor_tokens_s": round(users * facts["bytes_s"] / read, 1),
    }  # fmt: skip


def spread(values: Sequence[float]) -> list[float]:
    """Median and 95th of a hundred."""
    return [round(statistics.median(values), 1), round(statistics.quantiles(values, n=20)[-1], 1)]


def main() -> None:
    """Run all of it."""
    asked = argparse.ArgumentParser(description="What routing costs people who ask over HTTP, many at once.")
    asked.add_argument("--experts", type=int, nargs="+", default=EXPERTS, help="sizes of the pool")
    asked.add_argument("--users", type=int, nargs="+", default=USERS, help="who ask at the same time")
    asked.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each kind of request")
    asked.add_argument("--dtype", default="float32", help="of the base and the experts")
    flags = asked.parse_args()
    rows = []
    with served(flags.dtype) as (url, pipe):
        for experts in sorted(flags.experts):
            tell(pipe, experts)
            facts = tell(pipe, "facts")
            for users in flags.users:
                rows.append(row(url, experts, users, flags.rounds, facts))
                sys.stderr.write(f"{rows[-1]}\n")
        alone = tell(pipe, prompts(SEQUENTIAL, 0))
    most = max((each for each in rows if each["experts"] == max(flags.experts)), key=lambda each: each["users"])
    document = {
        "schema": 1,
        "rows": rows,
        "sequential_tokens_s": round(alone, 1),
        "ratio_to_sequential": round(most["tokens_s"] / alone, 2),
    }
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
