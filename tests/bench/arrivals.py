"""Whether people notice releases that arrive while they ask.

    python -m tests.bench.arrivals
    python -m tests.bench.arrivals --releases 10 --seconds 30

A router as in `tests.bench.serve` answers users over HTTP: for a while nothing happens, then one release after the
other arrives, each with an expert more. Afterwards a second router, which nobody disturbs, grows as the first did, and
is asked some of the same prompts at the same releases: their answers must be the same, letter for letter.

Progress on stderr; the last line of stdout is one JSON object.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import httpx

from tests.bench.serve import LONGEST_S, NEW_TOKENS, PAUSE_S, prompts, served, tell
from tests.bench.served import POOL

EXPERTS, USERS, RELEASES, SECONDS, CHECKED = 36, 4, 100, 300.0, 60


@dataclass
class Heard:
    """What users heard."""

    gap_ms: list[float] = field(default_factory=list)
    answers: list[tuple[int, str, str]] = field(default_factory=list)
    """Release, prompt and answer of each request that was answered."""
    failed: int = 0


async def _user(http: httpx.AsyncClient, draw: random.Random, until: float, heard: Heard) -> None:
    while time.perf_counter() < until:
        (prompt,) = prompts(1, draw.randrange(1 << 30))
        await asyncio.sleep(draw.expovariate(1 / PAUSE_S))
        asked = {"model": POOL, "prompt": prompt, "max_tokens": NEW_TOKENS, "stream": True, "logprobs": 0}
        text, release, before = "", None, 0.0
        try:
            async with http.stream("POST", "/v1/completions", json=asked) as reply:
                async for line in reply.aiter_lines():
                    if not line.startswith('data: {"'):
                        continue
                    choice = json.loads(line[6:])["choices"][0]
                    now = time.perf_counter()
                    if choice.get("logprobs") and before:
                        heard.gap_ms.append(1e3 * (now - before))
                    text, before = text + choice["text"], now
                    release = choice.get("greylag", {}).get("release", release)
        except (httpx.HTTPError, LookupError):
            release = None
        heard.failed += release is None
        if release is not None:
            heard.answers.append((release, prompt, text))


async def _load(url: str, pipe: Connection, first: int, releases: int, seconds: float) -> Heard:
    """Let users ask for a while, and so many releases arrive meanwhile."""
    heard, until = Heard(), time.perf_counter() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=LONGEST_S) as http:
        users = [_user(http, random.Random(f"{first} {at}"), until, heard) for at in range(USERS)]
        asking = asyncio.gather(*users)
        for number in range(first + 1, first + releases + 1):
            await asyncio.sleep(seconds / (releases + 1))
            await asyncio.to_thread(tell, pipe, number)
        await asking
    return heard


def check(heard: Heard, dtype: str, most: int) -> int:
    """Ask a router that nobody disturbs some of what was asked; returns how many answers are not the same."""
    drawn = sorted(random.Random(0).sample(heard.answers, min(most, len(heard.answers))))
    wrong = 0
    with served(dtype) as (url, pipe), httpx.Client(base_url=url, timeout=LONGEST_S) as http:
        for release, prompt, text in drawn:
            tell(pipe, release)
            asked = {"model": POOL, "prompt": prompt, "max_tokens": NEW_TOKENS}
            answer: dict[str, Any] = http.post("/v1/completions", json=asked).json()["choices"][0]
            wrong += (answer["text"], answer["greylag"]["release"]) != (text, release)
    return wrong


def main() -> None:
    """Run all of it."""
    asked = argparse.ArgumentParser(description="Whether people notice releases that arrive while they ask.")
    asked.add_argument("--releases", type=int, default=RELEASES, help="that arrive")
    asked.add_argument("--seconds", type=float, default=SECONDS, help="for which users ask, with and without")
    asked.add_argument("--checked", type=int, default=CHECKED, help="answers that are asked for again")
    asked.add_argument("--dtype", default="float32", help="of the base and the experts")
    flags = asked.parse_args()
    with served(flags.dtype) as (url, pipe):
        tell(pipe, EXPERTS)
        asyncio.run(_load(url, pipe, EXPERTS, 0, min(flags.seconds, 10.0)))  # uncounted
        quiet = asyncio.run(_load(url, pipe, EXPERTS, 0, flags.seconds / 3))
        before = tell(pipe, "facts")["resident_bytes"]
        sys.stderr.write(f"quiet: {len(quiet.answers)} answers, {quiet.failed} failed\n")
        busy = asyncio.run(_load(url, pipe, EXPERTS, flags.releases, flags.seconds))
        after = tell(pipe, "facts")
        sys.stderr.write(f"{flags.releases} releases arrived: {len(busy.answers)} answers, {busy.failed} failed\n")
    wrong = check(busy, flags.dtype, flags.checked)
    p95 = {name: statistics.quantiles(heard.gap_ms, n=20)[-1] for name, heard in (("quiet", quiet), ("busy", busy))}
    document = {
        "schema": 1,
        "releases": flags.releases,
        "answers": len(busy.answers),
        "failed": quiet.failed + busy.failed,
        "checked": min(flags.checked, len(busy.answers)),
        "not_the_same": wrong,
        "gap_p95_ms": [round(p95["quiet"], 1), round(p95["busy"], 1)],
        "gap_p95_ratio": round(p95["busy"] / p95["quiet"], 2),
        "grown_mb_a_release": round((after["resident_bytes"] - before) / flags.releases / (1 << 20), 3),
        "expert_mb": round((after["expert_bytes"] + after["gate_bytes"]) / (1 << 20), 3),
    }
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
