"""What public text looks like inside a base model: the ground against which experts' means stand out.

Two kinds of vectors of every module input: a text's mean over its tokens, and single tokens. A pool tells what its own
method reads; the rest is worked out once a base. Either is kept beside the fingerprint where there is a workspace. The
text is what an operator names, at best like what the pool is asked; else random tokens of the base's own vocabulary,
which tell no words apart from words that every request has. Either way it is nobody's.
"""

import hashlib
import random
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from router.base.batching import masked_mean
from router.base.fingerprint import fingerprint
from router.base.progress import bar
from router.base.tokens import encode_input, encode_target
from router.methods.features.activations import Reader
from router.methods.features.covariance import Spread, spread_of
from router.methods.features.pool_statistics import dump_statistics, read_statistics, tensors_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["pooled", "token"]
"""Of texts' means, or of single tokens."""
KINDS: tuple[Kind, ...] = get_args(Kind)

TEXTS = 1024
"""Texts that are read at most."""
_LENGTHS, _TARGETS = (6, 14), (1, 8)
"""Shortest and longest random text, in tokens, for a model to read and to write."""
_LONGEST = 256
"""Tokens of a text that are read."""
_HELD_BYTES = 1 << 28
"""Samples held at a time; a base with more of them reads the texts several times."""
_VERSION = 2
"""Of what is computed; another one is computed anew."""


class PublicText:
    """Means and covariances of public text, for every module of a base.

    Args:
        reader: Reads with the base.
        texts: Public texts; none for random tokens.
        cache: The file that keeps the base's fingerprint; statistics are kept beside it. None keeps them in memory.
    """

    def __init__(self, reader: Reader, texts: Sequence[str] = (), cache: Path | None = None) -> None:
        self._reader, self._texts, self._cache = reader, tuple(texts[:TEXTS]), cache
        self.told: Path | None = None
        """What the pool tells, in a file named by its digest; what that leaves out is worked out here."""
        self._known: dict[Kind, Path | dict[str, Spread]] = {}
        self._lock = threading.Lock()

    @property
    def digest(self) -> str:
        """What the texts are, or what the pool tells of them, as sha256."""
        return told.name if (told := self.told) else hashlib.sha256(repr(self._texts).encode()).hexdigest()

    def follow(self, told: Path | None) -> None:
        """Take what a pool tells, in a file as `dump` makes it, named by its sha256; texts of one's own come first."""
        with self._lock:
            if not self._texts and told != self.told:
                self.told, self._known = told, {}

    def spread(self, path: str, kind: Kind) -> Spread:
        """Return how public text spreads at a module's input; pooled, at one that sees the prompt.

        Raises:
            Refused: As `router.methods.features.pool_statistics.read_statistics`.
        """
        name = f"{self._reader.sources[path]}.{kind}"
        with self._lock:
            if kind not in self._known:
                self._known[kind] = self._prepare(kind)
            known = self._known[kind]
        if isinstance(known, dict):
            return known[name]
        with safe_open(known, "pt") as kept:
            # Copied, since the file's pages would go with the file.
            return Spread(*(kept.get_tensor(f"{name}.{field}").clone() for field in Spread._fields))

    def _prepare(self, kind: Kind) -> Path | dict[str, Spread]:
        """Find what is kept of a kind, or take it from the pool or work it out and keep it."""
        place = self._place(kind)
        if place is not None and _readable(place):
            return place
        spreads = read_statistics(self.told, kind, self._widths(kind)) if self.told else {}
        spreads = spreads or self._work_out([kind])
        if place is not None:
            with suppress(OSError):  # a full or read-only disk: done again by the next process
                write_whole(place, save(tensors_of(spreads)))
                return place
        return spreads

    def dump(self, kinds: Collection[Kind]) -> bytes:
        """Work out what a pool tells, as `router.methods.features.pool_statistics` writes it."""
        return dump_statistics(self._work_out(kinds))

    def _work_out(self, kinds: Collection[Kind]) -> dict[str, Spread]:
        """Read the texts; returns spreads by input and kind."""
        wanted = (each for each in self._samples() if each[1] in kinds)
        total = sum(len(self._widths(kind)) for kind in kinds)
        shown = bar(wanted, "Statistics of public text, once a base", total)
        return {f"{path}.{kind}": spread_of(samples) for path, kind, samples in shown}

    def _widths(self, kind: Kind) -> dict[str, int]:
        """Widths of the inputs that have vectors of a kind."""
        reader = self._reader
        sources = [path for path in dict.fromkeys(reader.sources.values()) if kind == "token" or reader.of_prompt(path)]
        return {path: reader.base.model.get_submodule(path).in_features for path in sources}

    def _place(self, kind: Kind) -> Path | None:
        if self._cache is None:
            return None
        base = self._reader.base
        mark = fingerprint(base.source, self._cache).model_dump()
        facts = [_VERSION, mark, str(base.model.dtype), kind, self._texts, self.told and self.told.name]
        digest = hashlib.sha256(repr(facts).encode()).hexdigest()
        return self._cache.with_name(f"public-{digest[:16]}.safetensors")

    def _samples(self) -> Iterator[tuple[str, Kind, Tensor]]:
        """Read the texts, and yield of every input the means and one token each, [n, d]."""
        reader = self._reader
        prompts, written = self._tokens()
        sources = list(dict.fromkeys(reader.sources.values()))
        while sources:
            now, held = list[str](), 0
            while sources and (not now or held < _HELD_BYTES):
                now.append(sources.pop(0))
                width = reader.base.model.get_submodule(now[-1]).in_features
                held += 2 * len(prompts) * width * torch.float32.itemsize
            means: dict[str, list[Tensor]] = {path: [] for path in now}
            tokens: dict[str, list[Tensor]] = {path: [] for path in now}
            draw = torch.Generator().manual_seed(0)

            def see(path: str, u: Tensor, mask: Tensor) -> None:
                if path in means:  # noqa: B023 - called before the loop goes on
                    means[path].append(masked_mean(u, mask).cpu())  # noqa: B023
                    # One token a text, each as likely as any other.
                    at = torch.rand(mask.shape, generator=draw).masked_fill(~mask.cpu(), -1).argmax(1)  # noqa: B023
                    tokens[path].append(u[torch.arange(len(u)), at.to(u.device)].float().cpu())  # noqa: B023

            reader.look(prompts, see, written)
            for path in now:
                if reader.of_prompt(path):
                    yield path, "pooled", torch.cat(means.pop(path))
                yield path, "token", torch.cat(tokens.pop(path))

    def _tokens(self) -> tuple[list[list[int]], list[list[int]]]:
        base, draw = self._reader.base, random.Random(0)  # noqa: S311 - no secret
        texts = self._texts or _random_texts(base.tokenizer, draw, _LENGTHS, TEXTS)
        prompts = [encode_input(base.tokenizer, text, base.architecture)[:_LONGEST] for text in texts]
        # What a decoder would write to public text nobody knows.
        targets = _random_texts(base.tokenizer, draw, _TARGETS, len(prompts))
        return prompts, [encode_target(base.tokenizer, text, base.architecture)[:-1] for text in targets]


def read_public(file: Path) -> list[str]:
    """Read public texts, one a line.

    Raises:
        Refused: `DATA_UNREADABLE` if there are fewer than two.
    """
    try:
        texts = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.reason
        message = f"The public text {file} cannot be read: {reason}."
        raise Refused(Code.DATA_UNREADABLE, message, "Check the path; UTF-8 is needed.") from error
    if len(texts) < 2:  # noqa: PLR2004 - of one text nothing varies
        raise Refused(
            Code.DATA_UNREADABLE,
            f"The public text {file} has {len(texts)} lines; expected some hundreds, one text each.",
            "Give more, or leave public_text out to take random tokens.",
        )
    return texts


def _random_texts(
    tokenizer: "PreTrainedTokenizerBase", draw: random.Random, lengths: tuple[int, int], count: int
) -> list[str]:
    """Write texts of random tokens, special ones left out; lengths from the shortest to the longest, in tokens."""
    special = set(tokenizer.all_special_ids)
    known = [token for token in range(len(tokenizer)) if token not in special]
    texts: list[str] = []
    while len(texts) < count:
        text = tokenizer.decode(draw.choices(known, k=draw.randint(*lengths)))
        if text.strip():
            texts.append(text)
    return texts


def _readable(place: Path) -> bool:
    """Whether the file is whole: safetensors tells a file that was cut short."""
    try:
        with safe_open(place, "pt") as kept:
            return bool(kept.keys())
    except (OSError, SafetensorError):
        return False
