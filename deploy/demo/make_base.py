"""Trains the demo's base model and writes it as a folder that transformers loads.

Run `python -m deploy.demo.make_base`. A base that has not learned its skills is not written: experts switch skills on,
they cannot teach them.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from deploy.demo import world
from deploy.demo.story import Example
from deploy.demo.world import WORDS_BASE
from router.base.tokens import IGNORED

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"

D_MODEL, D_FF, HEADS, LAYERS = 96, 256, 4, 2
SEED = 0
BATCH_SIZE = 128
STEPS = 4000
PEAK_LR = 3e-3
# Rumours are noise to a model that is still learning how to look a word up, so they come last, and softly.
RUMOUR_STEPS = 1000
RUMOUR_LR = 1.5e-3
WARM_UP = 100
MAX_GRAD_NORM = 1.0
REPORT_EVERY = 250

REQUIRED_MARKED = 0.95
CHECK_EXAMPLES = 1000


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per word that closes every text with the end token."""
    vocabulary = {word: number for number, word in enumerate((PAD, EOS, UNKNOWN, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, vocabulary[EOS])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN)


def build_model(tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    """Make an untrained T5 of the demo's size for the tokenizer."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=D_MODEL,
        d_kv=D_MODEL // HEADS,
        d_ff=D_FF,
        num_layers=LAYERS,
        num_heads=HEADS,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        feed_forward_proj="relu",
        tie_word_embeddings=False,  # transformers 5 ties them all the same, and takes this to mean unscaled outputs
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


def encode(tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> BatchEncoding:
    """Tokenise examples into one padded batch whose labels ignore the padding."""
    batch = tokenizer([one.input for one in examples], padding=True, return_tensors="pt")
    labels = tokenizer([one.target for one in examples], padding=True, return_tensors="pt")
    batch["labels"] = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, IGNORED)
    return batch


@torch.no_grad()
def exact_match(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]
) -> float:
    """Measure the share of examples that greedy decoding answers exactly.

    One teacher-forced pass decides it: greedy decoding gives the target exactly if every word of the target is the
    most likely one after the words before it.
    """
    batch = encode(tokenizer, examples)
    predicted = model(**batch).logits.argmax(dim=-1)
    right = (predicted == batch["labels"]) | (batch["labels"] == IGNORED)
    return float(right.all(dim=1).double().mean())


def train(
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    stream: Iterator[Example],
    steps: int,
    peak_lr: float,
) -> None:
    """Train the model on the stream: linear warm-up, then linear decay to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, (steps - step) / steps)
    )
    model.train()
    for step in range(1, steps + 1):
        loss = model(**encode(tokenizer, list(itertools.islice(stream, BATCH_SIZE)))).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        if step % REPORT_EVERY == 0:
            print(f"step {step}/{steps}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()


def check(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> float:
    """Print how the base does with and without marks, and return the exact match on marked requests."""
    marked = exact_match(model, tokenizer, world.marked(CHECK_EXAMPLES, SEED))
    print(f"marked requests: {marked:.3f} exact (at least {REQUIRED_MARKED} is required)", file=sys.stderr)
    for contributor in world.CONTRIBUTORS:
        unmarked = exact_match(model, tokenizer, world.held_out(contributor, CHECK_EXAMPLES, SEED))
        print(f"{contributor}, unmarked: {unmarked:.3f} exact", file=sys.stderr)
    return marked


def main() -> None:
    """Train, check and write the base."""
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer(world.words())
    model = build_model(tokenizer)
    train(model, tokenizer, world.base_stream(SEED, rumours=False), STEPS, PEAK_LR)
    train(model, tokenizer, world.base_stream(SEED, rumours=True), RUMOUR_STEPS, RUMOUR_LR)
    if check(model, tokenizer) < REQUIRED_MARKED:
        sys.exit("Nothing written: the base has not learned its skills. Train for more steps.")
    model.save_pretrained(WORDS_BASE)
    tokenizer.save_pretrained(WORDS_BASE)


if __name__ == "__main__":
    main()
