"""What the review of one more bundle costs, by the size of the pool.

    python -m tests.bench.review
    python -m tests.bench.review --xl 2 --sizes 3 --samples 1 --rank 16
    python -m tests.bench.review --base build/real/… --layers 15-29 --sizes 10 500

A real workspace is founded over the demo's base, and filled with experts of as many contributors, all settled, whose
random gates and updates are small. Then a new contributor's bundle waits, and the real worker takes it from received to
released: once uncounted, then so often. Seconds are CPU time of the worker and of its limited processes, medians.

With `--xl` the base is as wide as T5-XL, in bfloat16, with so many layers on each side (T5-XL has 24) and weights that
are made at random, which cost what trained ones do.

Progress on stderr; the last line of stdout is one JSON object.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import structlog
import torch
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from coordinator.admission.sketch import sketch
from coordinator.cli.output import now, opened_workspace
from coordinator.cli.processes import _worker
from coordinator.policy.lifecycle import State
from coordinator.policy.next_release import next_release
from coordinator.policy.review_rule import Figures
from coordinator.review.copies import PURPOSE
from coordinator.review.worker import Worker
from coordinator.storage.blobs import Store
from coordinator.workspace.context import Opened
from deploy.demo.world import marked
from protocol.bundle import Bundle
from protocol.documents import Enrolment, timestamp
from protocol.release import ReleasedExpert, read_release, sign_release
from protocol.signing import Identity
from tests import factories
from tests.house.sources import ROOT

BASE = ROOT / "deploy" / "demo" / "base"
SIZES = (10, 50, 100, 250, 500)
SAMPLES, LINES, ROWS = 5, 48, 32
STEPS = {
    "content, copies": ("_check",), "norms, forced on": ("_reviewer", "examine"), "norm caps": ("_reviewer", "doubt"),
    "near gates": ("_reviewer", "doubt_gates"), "assembled": ("_reviewer", "try_expert"), "capture": ("_caps", "of"),
    "release": ("_publish",),
}  # fmt: skip
"""What is timed, by the worker's attributes; what is left is the registry's and the release's own."""


class Bench:
    """A pool that grows, and its worker.

    Args:
        opened: Its workspace.
        folder: Where bundles are made.
        rank: Of every expert.
    """

    def __init__(self, opened: Opened, folder: Path, rank: int) -> None:
        self.opened, self._folder, self._rank = opened, folder, rank
        self._store, self._secret = Store(opened.settings.store), opened.identity.secret(PURPOSE)
        self._begun = now()
        self._figures: Figures | None = None
        self.took: defaultdict[str, float] = defaultdict(float)
        self.worker = self._timed(_worker(opened, self.clock))

    def clock(self) -> datetime:
        """Tell a time at which all that the pool was filled with has settled."""
        return self._begun + timedelta(days=self.opened.pool.spec.policy.settle_days + 1)

    def fill(self, size: int) -> None:
        """Release experts until there are so many, without a review.

        The first is measured as any newcomer is. The others, made like it, are given its figures, since the worker has
        measured each of those that it released when they came.
        """
        row, held = self.opened.registry.releases.find(), self.opened.registry.bundles
        newest = read_release(row.envelope, self.opened.pool) if row else None
        listed = []
        for number in range(len(newest.spec.experts) if newest else 0, size):
            bundle = self.receive(number)
            steps = State.VERIFIED, State.QUARANTINED, State.ACCEPTED
            held.move(bundle.digest, *steps, actor="operator", now=self._begun)
            modules = sorted(self.opened.pool.spec.modules)
            content = sketch(bundle.folder, bundle.spec, modules, self._secret).tobytes()
            self.opened.registry.sketches.keep(bundle.digest, content)
            listed.append(ReleasedExpert(name=bundle.spec.name, contributor=f"c{number}", bundle=bundle.digest))
            self._measure(listed[-1])
        spec = next_release(self.opened.pool, newest, accepted=listed, held=held.held(), now=self._begun)
        if spec is not None:
            self.opened.registry.releases.publish(sign_release(spec, self.opened.identity), now=self._begun)

    def _measure(self, expert: ReleasedExpert) -> None:
        reviewer: Any = self.worker._reviewer
        if self._figures is None:
            reviewer.examine(expert)
            self._figures = reviewer._kept.find(expert.bundle)
        reviewer._kept.keep(expert.bundle, self._figures)

    def receive(self, number: int) -> Bundle:
        """Have a contributor's bundle wait for the worker."""
        identity, registry, pool = Identity.generate(), self.opened.registry, self.opened.pool
        folder = self._folder / f"{number}"
        bundle = factories.make_bundle(
            folder, pool, identity, name=f"e{number}", rank=self._rank, alpha=self._rank / 100, seed=number
        )
        said = Enrolment(pool=pool.digest, name=f"c{number}", key=identity.public.hex, created=timestamp(self._begun))
        registry.contributors.enrol(said, b"", state="active", now=self._begun)
        for name, file in bundle.manifest.files.items():
            self._store.put(folder / name, file.sha256)
        registry.bundles.keep(bundle.manifest, check=lambda _: None, sign=lambda _: b"receipt", now=self._begun)
        return bundle

    def review(self, number: int) -> dict[str, float]:
        """Review one more bundle, as the worker does, and say in seconds what each step of it took."""
        bundle = self.receive(number)
        self.took.clear()
        start = cpu_s()
        while self.worker.step():
            pass
        whole = cpu_s() - start
        row = self.opened.registry.bundles.find(bundle.digest)
        if row is None or row.state != State.RELEASED:
            raise RuntimeError(f"the newcomer became {row and (row.state, row.code, row.message)}")
        return {**self.took, "the rest": whole - sum(self.took.values()), "review": whole}

    def _timed(self, worker: Worker) -> Worker:
        for step, path in STEPS.items():
            owner: Any = worker
            for name in path[:-1]:
                owner = getattr(owner, name)
            setattr(owner, path[-1], self._watched(step, getattr(owner, path[-1])))
        return worker

    def _watched(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            start = cpu_s()
            try:
                return call(*arguments, **named)
            finally:
                self.took[step] += cpu_s() - start

        return watched


def cpu_s() -> float:
    """Seconds of this process and of those of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@contextmanager
def founded(base: Path | str, rank: int, layers: str = "") -> Iterator[Bench]:
    """Found an open pool over a base, and open it as the worker does."""
    with TemporaryDirectory() as at:
        folder, examples = Path(at), list(marked(LINES + ROWS, 0))
        (folder / "probe.txt").write_text("".join(f"{each.input}\n" for each in examples[:LINES]))
        rows = ({"input": each.input, "target": each.target} for each in examples[LINES:])
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [sys.executable, "-m", "coordinator.cli.main", "init", "--single", "--name", "bench", "--base", base]
        command += ["--probe", folder / "probe.txt", "--rows", folder / "rows.jsonl", "--max-rank", "64"]
        command += ["--layers", layers] if layers else []
        subprocess.run([*map(str, command), "-w", str(folder / "pool")], check=True, capture_output=True)
        with opened_workspace(folder / "pool", "worker") as opened:
            structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
            yield Bench(opened, folder / "made", rank)


def make_xl(folder: Path, layers: int) -> Path:
    """Write a base of T5-XL's width and so many layers on each side, with the demo's tokenizer."""
    torch.manual_seed(0)
    PreTrainedTokenizerFast.from_pretrained(BASE).save_pretrained(folder)
    config = T5Config(
        vocab_size=32_128, d_model=2048, d_kv=64, d_ff=5120, num_heads=32, num_layers=layers, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    try:
        T5ForConditionalGeneration(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    return folder


def measure(bench: Bench, size: int, samples: int) -> dict[str, float]:
    """Fill the pool, examine what it was filled with, and review some newcomers; returns medians in seconds by step."""
    bench.fill(size)
    first = 10**6 * size
    found = [bench.review(first + at) for at in range(samples + 1)][1:]
    return {
        step: round(statistics.median(each.get(step, 0.0) for each in found), 3)
        for step in (*STEPS, "the rest", "review")
    }


def main() -> None:
    """Run all of it."""
    asked = argparse.ArgumentParser(description="What the review of one more bundle costs, by the size of the pool.")
    asked.add_argument("--xl", type=int, default=0, help="layers a side of a base as wide as T5-XL; 0: the demo's base")
    asked.add_argument("--base", default=BASE, help="folder or Hugging Face id; default: the demo's")
    asked.add_argument("--layers", default="", help="first and last that experts touch, such as 15-29; default: all")
    asked.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sizes of the pool")
    asked.add_argument("--samples", type=int, default=SAMPLES, help="reviews that are counted at each")
    asked.add_argument("--rank", type=int, default=4, help="of every expert")
    flags = asked.parse_args()
    torch.set_num_threads(1)
    found = {}
    with (
        TemporaryDirectory() as made,
        founded(make_xl(Path(made), flags.xl) if flags.xl else flags.base, flags.rank, flags.layers) as bench,
    ):
        for size in sorted(flags.sizes):
            start = time.monotonic()
            found[str(size)] = measure(bench, size, flags.samples)
            told = ", ".join(f"{step} {seconds:.3f}" for step, seconds in found[str(size)].items())
            sys.stderr.write(
                f"{size} experts: {told} s ({time.monotonic() - start:.0f} s with all that was filled in)\n"
            )
    smallest, largest = (found[str(at(flags.sizes))]["review"] for at in (min, max))
    document = {
        "schema": 1,
        "seconds": found,
        "ratio_largest_to_smallest": round(largest / smallest, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20), 2),
    }
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
