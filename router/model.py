"""The routed model: a base, every expert of a release, and a router at every module."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from protocol.bundle import Bundle
from protocol.errors import Code, Refused
from protocol.spec import Routing
from router.attach import linear_modules, replace_module
from router.base import Base, load_base
from router.layer import Plan, RoutedLinear, routing
from router.methods import resolve
from router.pool import Expert, ExpertPool, load_expert
from router.trace import ModuleRoute, RouteRecorder

IGNORED = -100
"""Label of a position that the loss leaves out (PyTorch's convention)."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one input, and why."""

    text: str
    input_tokens: tuple[str, ...] = ()
    output_tokens: tuple[str, ...] = ()
    routes: tuple[ModuleRoute, ...] = ()
    """Only if an explanation was asked for."""


class RoutedModel:
    """Answers with whatever experts it holds; grows and shrinks while it answers.

    `append`, `remove` and `update` exchange the pool as a whole: a request that has begun finishes with the
    experts that it began with.

    Args:
        base: A loaded base model; its linear modules are replaced by routed ones.
        settings: Method and k for requests that name none.
    """

    def __init__(self, base: Base, settings: Routing | None = None) -> None:
        self.base = base
        self.settings = settings or Routing()
        self._pool = ExpertPool()
        for path in linear_modules(base.model):
            replace_module(base.model, path, RoutedLinear(path, base.model.get_submodule(path)))

    @classmethod
    def from_base(cls, name_or_path: str, *, device: str | None = None) -> "RoutedModel":
        """Load a base model that holds no experts yet."""
        return cls(load_base(name_or_path, device=device))

    @classmethod
    def from_bundles(cls, name_or_path: str, bundles: Iterable[Bundle], *, device: str | None = None) -> "RoutedModel":
        """Load a base model and put experts on it, in order."""
        model = cls.from_base(name_or_path, device=device)
        for bundle in bundles:
            model.append(bundle)
        return model

    @property
    def pool(self) -> ExpertPool:
        """The experts that the next request will begin with."""
        return self._pool

    @property
    def digests(self) -> tuple[str, ...]:
        """Bundle digests of the experts, in pool order."""
        return tuple(expert.digest for expert in self._pool.experts)

    def load(self, bundle: Bundle, *, name: str | None = None, contributor: str = "") -> Expert:
        """Read a bundle onto the model's device without using it yet.

        Raises:
            Refused: `MODULE_UNKNOWN`, or `TENSOR_SHAPE` if the bundle was made for a model of other widths.
        """
        model = self.base.model
        for path, module in bundle.spec.modules.items():
            try:
                linear = model.get_submodule(path)
            except AttributeError:
                linear = None
            if not isinstance(linear, RoutedLinear):
                raise Refused(Code.MODULE_UNKNOWN, f"The base model has no module {path} that an expert may touch.")
            if (linear.in_features, linear.out_features) != (module.d_in, module.d_out):
                raise Refused(
                    Code.TENSOR_SHAPE,
                    f"{path} maps {linear.in_features} to {linear.out_features} features; the expert expects "
                    f"{module.d_in} to {module.d_out}.",
                )
        return load_expert(bundle, device=model.device, dtype=model.dtype, name=name, contributor=contributor)

    def append(self, bundle: Bundle, *, name: str | None = None, contributor: str = "") -> None:
        """Add one expert; the others are not touched."""
        self.update(self._pool.add(self.load(bundle, name=name, contributor=contributor)))

    def remove(self, digest: str) -> None:
        """Leave one expert out from the next request on."""
        self.update(self._pool.remove(digest))

    def update(self, pool: ExpertPool, settings: Routing | None = None) -> None:
        """Exchange the pool, and the settings with it, from the next request on."""
        self._pool, self.settings = pool, settings or self.settings

    def generate(self, inputs: Sequence[str], *, method: str | None = None, max_new_tokens: int = 64) -> list[str]:
        """Answer a batch of inputs greedily.

        Args:
            inputs: Texts.
            method: A routing method; without one, the release's.
            max_new_tokens: Longest answer, in tokens.

        Raises:
            Refused: `METHOD_UNKNOWN`, `EXPERT_UNKNOWN` or `REQUEST_INVALID`.
        """
        return [answer.text for answer in self.answer(inputs, method=method, max_new_tokens=max_new_tokens)]

    def answer(
        self, inputs: Sequence[str], *, method: str | None = None, max_new_tokens: int = 64, explain: bool = False
    ) -> list[Answer]:
        """Answer a batch of inputs greedily, with the experts that answered on request.

        As `generate`; positions in the routes count into `pool.experts` as it was at the call.
        """
        if not inputs or not all(text.strip() for text in inputs):
            raise Refused(Code.REQUEST_INVALID, "A request needs at least one input, and no empty one.")
        pool = self._pool
        recorder = RouteRecorder({digest: at for at, digest in enumerate(self.digests)}) if explain else None
        batch = self._encode(inputs)
        causal = self.base.architecture == "decoder-only"
        with torch.inference_mode(), routing(self._plan(pool, method, recorder)):
            # transformers' generate settings of the checkpoint may sample; an answer should be repeatable.
            out = self.base.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
        written = out[:, batch["input_ids"].shape[1] :] if causal else out[:, 1:]
        return [self._answer(batch, row, written[row].tolist(), recorder) for row in range(len(inputs))]

    def score(self, inputs: Sequence[str], targets: Sequence[str], *, method: str | None = None) -> list[float]:
        """Mean negative log-likelihood of each target's tokens after its input, in nats a token.

        Args:
            inputs: Texts.
            targets: One text for each input.
            method: As in `generate`.
        """
        batch, labels = self._encode_pairs(inputs, targets)
        with torch.inference_mode(), routing(self._plan(self._pool, method, None)):
            if self.base.architecture == "decoder-only":
                logits = self.base.model(**batch).logits[:, :-1]
                labels = labels[:, 1:]
            else:
                logits = self.base.model(**batch, labels=labels).logits
        losses = functional.cross_entropy(
            logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        ).sum(1)
        return (losses / (labels != IGNORED).sum(1)).tolist()

    def probe(self, texts: Sequence[str]) -> float:
        """Run the model over public text and see that it holds.

        Returns:
            Mean loss in nats a token of each text given itself.

        Raises:
            Refused: `PROBE_FAILED` if any figure is not finite.
        """
        losses = self.score(texts, texts)
        mean = sum(losses) / len(losses)
        if not all(abs(loss) < float("inf") for loss in losses):
            raise Refused(
                Code.PROBE_FAILED, "With this expert the routed model's loss on the probe text is not finite."
            )
        return mean

    def _plan(self, pool: ExpertPool, method: str | None, recorder: RouteRecorder | None) -> Plan:
        return Plan(pool, resolve(method or self.settings.method, pool, self.settings.k), recorder)

    def _encode(self, inputs: Sequence[str]) -> dict[str, Tensor]:
        # A decoder continues from the last position, so the padding goes to the left.
        side = "left" if self.base.architecture == "decoder-only" else "right"
        encoded = self.base.tokenizer(list(inputs), return_tensors="pt", padding=True, padding_side=side)
        device = self.base.model.device
        return {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}

    def _encode_pairs(self, inputs: Sequence[str], targets: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        tokenizer, device = self.base.tokenizer, self.base.model.device
        prompts = [tokenizer(text).input_ids for text in inputs]
        answers = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in targets]
        if self.base.architecture == "decoder-only":
            rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
            labels = [[IGNORED] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
        else:
            rows, labels = prompts, answers
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        batch = {
            "input_ids": _pad(rows, padding, device),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0, device),
        }
        return batch, _pad(labels, IGNORED, device)

    def _answer(self, batch: dict[str, Tensor], row: int, written: list[int], recorder: RouteRecorder | None) -> Answer:
        tokenizer = self.base.tokenizer
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
        length = next((at + 1 for at, token in enumerate(written) if token in ends), len(written))
        text = tokenizer.decode(written[:length], skip_special_tokens=True).strip()
        if recorder is None:
            return Answer(text)
        mask = batch["attention_mask"][row].bool()
        causal = self.base.architecture == "decoder-only"
        inputs = tokenizer.convert_ids_to_tokens(batch["input_ids"][row][mask].tolist())
        outputs = tokenizer.convert_ids_to_tokens(written[:length])
        return Answer(
            text, tuple(inputs), tuple(outputs), tuple(recorder.routes(row, mask.tolist(), length, causal=causal))
        )


def _pad(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row, device=device) for row in rows], batch_first=True, padding_value=value
    )
