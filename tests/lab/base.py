"""The base model of a suite: small, trained from scratch on the world's text, of either architecture.

    folder = make_base(World(0), "encoder-decoder", seed=0, cache=Path("build/lab"), say=print)

The T5-like model has no absolute positions. It learns orders all the same where its relative buckets tell every
distance that occurs apart: 64 buckets, half of them for either side, where T5 has 32.

Training keeps one learning rate until the model shows the skill that it learns last, and then cools down to zero, so
that every world and seed gets as long as it needs, and no longer.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from protocol.spec import Architecture
from router.base.batching import TokenPair, pair_batch
from router.base.loading import Base
from router.base.tokens import IGNORED
from tests.lab.world import Row, World

PAD, START, END, ANSWER, UNKNOWN = "<pad>", "<s>", "</s>", "=>", "<unk>"

SHOWN = 0.95
"""Exact match that each kind of skill must reach behind its marks."""
HIDDEN = 0.02
"""Exact match that must not be passed without them, on what experts are trained for."""
CHECK_ROWS = 512
CHECKS = (("order",), ("table",), ("lexicon",), ("order", "table"))


@dataclass(frozen=True)
class Course:
    """How a base model is built and trained."""

    architecture: Architecture
    width: int = 64
    inner: int = 192
    layers: int = 2
    """Of the decoder, and of the encoder where there is one."""
    heads: int = 4
    batch: int = 128
    learning_rate: float = 4e-3
    warm_up: int = 100
    steady: int = 3000
    """Steps at the full rate at most."""
    ready: float = 0.92
    """Exact match, order and table together, at which cooling begins; one of eight orders missing costs an eighth."""
    cooling: int = 600
    """Steps from the full rate down to zero."""
    look: int = 50
    """Steps between two looks at whether the model is ready."""


COURSES: dict[Architecture, Course] = {
    "encoder-decoder": Course("encoder-decoder"),
    "decoder-only": Course("decoder-only", inner=160, layers=4),
}


def make_base(
    world: World, architecture: Architecture, seed: int, cache: Path, say: Callable[[str], object] = str
) -> Path:
    """Train a base model, or find the one that was trained before.

    Args:
        world: Whose text it reads.
        architecture: T5-like or Llama-like.
        seed: Of weights and text.
        cache: Folder of all base models; each one's name is a digest of what decides how it comes out.
        say: Told how it goes.

    Returns:
        A folder that transformers loads, with a tokenizer of one token a word.

    Raises:
        RuntimeError: If the model did not learn its skills, or shows them unasked.
    """
    course = COURSES[architecture]
    folder = cache / f"base-{_digest(world, course, seed)}"
    if folder.is_dir():
        return folder
    set_seed(seed)
    tokenizer = make_tokenizer(world.vocabulary, architecture)
    model = make_model(course, tokenizer)
    school = _School(world, seed, model, tokenizer, course, say)
    school.train()
    school.check()
    transformers.utils.logging.disable_progress_bar()
    partial = folder.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    return partial.rename(folder)


def make_tokenizer(words: Sequence[str], architecture: Architecture) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token a word; a decoder's input begins with <s> and ends with =>."""
    special = (PAD, START, END, ANSWER, UNKNOWN)
    vocabulary = {word: number for number, word in enumerate((*special, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    frame = f"$A {END}" if architecture == "encoder-decoder" else f"{START} $A {ANSWER}"
    tokenizer.post_processor = TemplateProcessing(
        single=frame, special_tokens=[(word, vocabulary[word]) for word in (START, END, ANSWER)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END, unk_token=UNKNOWN
    )


def make_model(course: Course, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Make an untrained model."""
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if course.architecture == "encoder-decoder":
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(tokenizer),
                d_model=course.width,
                d_kv=course.width // course.heads,
                d_ff=course.inner,
                num_layers=course.layers,
                num_heads=course.heads,
                relative_attention_num_buckets=64,
                relative_attention_max_distance=64,
                dropout_rate=0.0,
                decoder_start_token_id=tokenizer.pad_token_id,
                **special,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=course.width,
            intermediate_size=course.inner,
            num_hidden_layers=course.layers,
            num_attention_heads=course.heads,
            initializer_range=course.width**-0.5,
            bos_token_id=tokenizer.bos_token_id,
            **special,
        )
    )


class _School:
    """Trains one model on one world's text, and examines it."""

    def __init__(
        self,
        world: World,
        seed: int,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        course: Course,
        say: Callable[[str], object],
    ) -> None:
        self._world, self._seed, self._model, self._course, self._say = world, seed, model, course, say
        self._base = Base(model, tokenizer)
        self._frame = tokenizer("")["input_ids"]
        self._number = tokenizer.get_vocab()

    def train(self) -> None:
        course, model = self._course, self._model
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=course.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        rows = self._world.pretraining(self._seed)
        model.train()
        rates = self._rates()
        for step, rate in enumerate(rates, 1):
            optimizer.param_groups[0]["lr"] = rate
            loss = self._step(list(itertools.islice(rows, course.batch)))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 250 == 0:
                self._say(f"base: step {step}, loss {loss:.3f}")
        model.eval()

    def _rates(self) -> Iterator[float]:
        course = self._course
        for step in range(1, course.steady + 1):
            yield course.learning_rate * min(step / course.warm_up, 1.0)
            if step % course.look == 0 and self._exact(CHECKS[-1], rows=256) >= course.ready:
                break
        self._say(f"base: cooling begins after step {step}")
        yield from (course.learning_rate * (1 - step / course.cooling) for step in range(course.cooling))

    def _step(self, rows: list[Row]) -> float:
        """Add up the gradient of one batch, in two halves by length, so that less of it is padding."""
        rows.sort(key=lambda row: len(row["input"]) + len(row["target"]))
        answers = sum(len(row["target"].split()) + 1 for row in rows)
        total = 0.0
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            logits, wanted, _ = self._read(half)
            loss = functional.cross_entropy(logits, wanted, reduction="sum") / answers
            torch.autograd.backward(loss)
            total += loss.item()
        return total

    def _read(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the answers of some rows, each word from the right ones before it.

        Returns:
            Logits [n, words] and answers [n] at all n positions of answers, and which positions these are: [rows, t].
        """
        end = self._number[END]
        pairs = [
            TokenPair(self._tokens(row["input"]), [*self._tokens(row["target"], framed=False), end]) for row in rows
        ]
        batch, labels = pair_batch(self._base, pairs)
        if isinstance(self._model, T5ForConditionalGeneration):
            kept = labels != IGNORED
            begun = self._model.prepare_decoder_input_ids_from_labels(labels)
            return self._model(**batch, decoder_input_ids=begun).logits[kept], labels[kept], kept
        labels = labels[:, 1:]
        kept = labels != IGNORED
        # Padding stands at the end, where no other position sees it; the head is a tenth of the cost.
        hidden = self._model.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[:, :-1]
        return self._model.lm_head(hidden[kept]), labels[kept], kept

    def _tokens(self, text: str, *, framed: bool = True) -> list[int]:
        """Do what the tokenizer does, in a tenth of its time."""
        tokens = [self._number[word] for word in text.split()]
        return [*self._frame[:-1], *tokens, self._frame[-1]] if framed else tokens

    @torch.inference_mode()
    def _share(self, rows: Sequence[Row]) -> float:
        """Measure the share of rows that greedy decoding answers exactly.

        It does if every word of the answer is the most likely one after the right words before it.
        """
        logits, wanted, kept = self._read(rows)
        right = ~kept
        right[kept] = logits.argmax(-1) == wanted
        return float(right.all(1).double().mean())

    def _exact(self, kinds: Sequence[str], rows: int = CHECK_ROWS) -> float:
        return self._share(self._world.check_rows(*kinds, on=True, seed=self._seed, count=rows))

    def check(self) -> None:
        """Raise if the model lacks a skill, or shows one unasked."""
        shown = {"+".join(kinds): self._exact(kinds) for kinds in CHECKS}
        tasks = [task for task in self._world.tasks() if task.family == "held_in"]
        rows = [row for task in tasks for row in self._world.rows(task, self._seed, max(1, CHECK_ROWS // len(tasks)))]
        hidden = self._share(rows)
        figures = ", ".join(f"{name} {share:.3f}" for name, share in shown.items())
        self._say(f"base: exact match behind marks: {figures}; without: {hidden:.3f}")
        if min(shown.values()) < SHOWN or hidden > HIDDEN:
            raise RuntimeError(
                f"The base of suite {self._world.suite_seed}, seed {self._seed}, is not fit: behind marks at least "
                f"{SHOWN} is needed, without them at most {HIDDEN}; found {figures}, and {hidden:.3f} without."
            )


def _digest(world: World, course: Course, seed: int) -> str:
    """Name all that decides how a base comes out: its text, its course, this file and the libraries."""
    text = list(itertools.islice(world.pretraining(seed), 200))
    facts = [world.vocabulary, text, asdict(course), seed, torch.__version__, transformers.__version__]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]
