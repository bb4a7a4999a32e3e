"""The routed model: a base, every expert of a release, and a router at every module."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from platformdirs import user_cache_path
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from protocol.bundle import Bundle
from protocol.errors import Code, Refused, Unavailable
from protocol.spec import Routing
from router.answer import Answer, Answered
from router.attach import find_linear, linear_modules
from router.base import Base, check_base, first_line, load_base
from router.layer import Plan, RoutedLinear, routing
from router.limits import DEFAULT_NEW_TOKENS
from router.memory import check_room
from router.methods.registry import resolve
from router.pool import Expert, ExpertPool, load_expert
from router.pull import FINGERPRINT, Mirror, pull
from router.record import RouteRecorder
from router.saved import open_saved, save
from router.text import IGNORED, encode_input, encode_target

Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class Generation:
    """What a request is answered with, from its first token to its last."""

    pool: ExpertPool = field(default_factory=ExpertPool)
    settings: Routing = field(default_factory=Routing)
    """Method and k for requests that name none."""
    release: int = 0
    """Number of the release; 0 for a pool that was put together by hand."""


class RoutedModel:
    """Answers with whatever experts it holds; grows and shrinks while it answers.

    Experts come and go by exchanging the generation as a whole: a request that has begun finishes with
    the generation that it began with.

    Args:
        base: A loaded base model; its linear modules are replaced by routed ones.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.generation = Generation()
        for path in linear_modules(base.model):
            base.model.set_submodule(path, RoutedLinear(path, find_linear(base.model, path)))

    @classmethod
    def from_base(cls, name_or_path: str, *, device: str | None = None) -> "RoutedModel":
        """Load a base model that holds no experts yet.

        Raises:
            Refused: `BASE_UNREADABLE`.
        """
        return cls(load_base(name_or_path, device=device))

    @classmethod
    def from_bundles(cls, name_or_path: str, bundles: Iterable[Bundle], *, device: str | None = None) -> "RoutedModel":
        """Load a base model and put experts on it, in order.

        Raises:
            Refused: `BASE_UNREADABLE`, or as `append`.
        """
        model = cls.from_base(name_or_path, device=device)
        for bundle in bundles:
            model.append(bundle)
        return model

    @classmethod
    def from_mirror(
        cls, name_or_path: str, mirror: Mirror, *, device: str | None = None, cache: Path | None = None
    ) -> "RoutedModel":
        """Load a base model with a release that was pulled to this machine.

        Args:
            name_or_path: Folder or Hub id of the base model.
            mirror: The release.
            device: A torch device; without one, CUDA where there is a GPU, else the CPU.
            cache: File that remembers the base model's fingerprint.

        Raises:
            Refused: `BASE_MISMATCH` if the release was made for another base, `BASE_UNREADABLE`, or as `load`.
        """
        check_base(name_or_path, mirror.pool.spec.base, cache)
        model = cls.from_base(name_or_path, device=device)
        model.take_up(mirror)
        return model

    @classmethod
    def from_release(
        cls,
        coordinator: str,
        base: str,
        *,
        folder: Path | None = None,
        ca: Path | None = None,
        device: str | None = None,
    ) -> "RoutedModel":
        """Fetch the newest release of a coordinator and load it.

        Args:
            coordinator: `host:port`.
            base: Folder or Hub id of the pool's base model.
            folder: Where releases are kept; without one, the user's cache.
            ca: The coordinator's CA certificate, PEM.
            device: A torch device.

        Raises:
            Refused: As `router.pull.pull`, and `BASE_MISMATCH`.
            Unavailable: The coordinator cannot be reached.
        """
        kept = folder or user_cache_path("greylag") / coordinator.replace(":", "-")
        return cls.from_mirror(base, pull(kept, coordinator, ca=ca), device=device, cache=kept / FINGERPRINT)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, base: str | None = None, device: str | None = None, expected: str | None = None
    ) -> "RoutedModel":
        """Load what `save_pretrained` wrote.

        Args:
            folder: The saved model.
            base: Folder or Hub id of the base model; needed if it was not saved, too.
            device: A torch device; without one, CUDA where there is a GPU, else the CPU.
            expected: The identity that the model must have.

        Raises:
            Refused: `WORKSPACE_MISSING`, `DIGEST_MISMATCH`, `BASE_MISMATCH`, `BASE_UNREADABLE`, or as `append`.
            Unavailable: `MEMORY_FULL`.
        """
        saved = open_saved(Path(folder), expected=expected)
        source = base or (str(saved.base) if saved.base else saved.index.base.name)
        check_base(source, saved.index.base)
        model = cls.from_base(source, device=device)
        check_room(saved.bundles, model.base.model.device, model.base.model.dtype)
        for expert, bundle in zip(saved.index.experts, saved.bundles, strict=True):
            model.append(bundle, name=expert.name, contributor=expert.contributor)
        model.generation = replace(model.generation, settings=saved.index.routing, release=saved.index.release)
        return model

    def save_pretrained(self, folder: Path | str, *, with_base: bool = False) -> str:
        """Write base, routing and every expert's bundle to a folder, by content and under their names.

        Args:
            folder: A new folder; appears whole or not at all.
            with_base: Whether the base model's files are copied, too.

        Returns:
            The model's identity: a sha256 that stands for every byte of experts, routing and base.

        Raises:
            Refused: `WORKSPACE_EXISTS`, `BUNDLE_UNKNOWN` if a bundle is gone from where it was loaded.
        """
        now = self.generation
        return save(
            Path(folder), self.base.source, now.pool.experts, routing=now.settings, release=now.release,
            with_base=with_base,
        )  # fmt: skip

    @property
    def digests(self) -> tuple[str, ...]:
        """Bundle digests of the experts, in pool order."""
        return tuple(expert.digest for expert in self.generation.pool.experts)

    def load(self, bundle: Bundle, *, name: str | None = None, contributor: str = "") -> Expert:
        """Read a bundle onto the model's device without using it yet.

        Raises:
            Refused: `MODULE_UNKNOWN`, or `TENSOR_SHAPE` if the bundle was made for a model of other widths.
        """
        model, linears = self.base.model, {}
        for path, module in bundle.spec.modules.items():
            try:
                linear = model.get_submodule(path)
            except AttributeError:
                linear = None
            if not isinstance(linear, RoutedLinear):
                raise Refused(
                    Code.MODULE_UNKNOWN,
                    f"The base model has no module {path} that an expert may touch.",
                    "Use the base model that the expert was trained on.",
                )
            if (linear.in_features, linear.out_features) != (module.d_in, module.d_out):
                raise Refused(
                    Code.TENSOR_SHAPE,
                    f"{path} maps {linear.in_features} to {linear.out_features} features; the expert expects "
                    f"{module.d_in} to {module.d_out}.",
                    "Use the base model that the expert was trained on.",
                )
            linears[path] = linear.linear
        return load_expert(bundle, linears, dtype=model.dtype, name=name, contributor=contributor)

    def append(self, bundle: Bundle, *, name: str | None = None, contributor: str = "") -> None:
        """Add one expert from the next request on; the others are not touched.

        Raises:
            Refused: As `load`, or `DUPLICATE_OF` if the model holds the bundle already.
            Unavailable: `MEMORY_FULL`.
        """
        check_room([bundle], self.base.model.device, self.base.model.dtype)
        pool = self.generation.pool.add(self.load(bundle, name=name, contributor=contributor))
        self.generation = replace(self.generation, pool=pool)

    def remove(self, digest: str) -> None:
        """Leave one expert out from the next request on."""
        self.generation = replace(self.generation, pool=self.generation.pool.remove(digest))

    def take_up(self, mirror: Mirror) -> None:
        """Go over to a release: load what is new, drop what is gone, leave the rest alone.

        Raises:
            Refused: As `load`, or `METHOD_UNKNOWN`; the model then stays as it was.
            Unavailable: `MEMORY_FULL`; likewise.
        """
        release = mirror.release.spec
        held = set(self.digests)
        new = [bundle for bundle in mirror.bundles if bundle.digest not in held]
        check_room(new, self.base.model.device, self.base.model.dtype)
        pool = self.generation.pool
        for digest in held - {expert.bundle for expert in release.experts}:
            pool = pool.remove(digest)
        for entry, bundle in zip(release.experts, mirror.bundles, strict=True):
            if entry.bundle not in held:
                pool = pool.add(self.load(bundle, name=entry.name, contributor=entry.contributor))
        pool = pool.reordered([entry.bundle for entry in release.experts])
        resolve(release.routing.method, pool, release.routing.k)  # a method that is unknown here is no way to answer
        self.generation = Generation(pool, release.routing, release.number)

    def generate(
        self, inputs: Sequence[str], *, method: str | None = None, max_new_tokens: int = DEFAULT_NEW_TOKENS
    ) -> list[str]:
        """Answer a batch of inputs greedily.

        Args:
            inputs: Texts.
            method: A routing method; without one, the release's.
            max_new_tokens: Longest answer, in tokens.

        Raises:
            Refused: `METHOD_UNKNOWN`, `EXPERT_UNKNOWN` or `REQUEST_INVALID`.
        """
        answered = self.answer(inputs, method=method, max_new_tokens=max_new_tokens)
        return [answer.text for answer in answered.answers]

    def answer(
        self,
        inputs: Sequence[str],
        *,
        method: str | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        explain: bool = False,
    ) -> Answered:
        """Answer a batch of inputs greedily, on request with the experts that answered.

        Args:
            inputs: As in `generate`.
            method: As in `generate`.
            max_new_tokens: As in `generate`.
            explain: Whether the answers carry their tokens and routes.

        Raises:
            Refused: As `generate`.
        """
        if not inputs or not all(text.strip() for text in inputs):
            raise Refused(
                Code.REQUEST_INVALID, "A request needs at least one input, and no empty one.", "Leave empty inputs out."
            )
        generation = self.generation
        experts = generation.pool.experts
        recorder = RouteRecorder({expert.digest: at for at, expert in enumerate(experts)}) if explain else None
        batch = self._encode(inputs)
        causal = self.base.architecture == "decoder-only"
        with torch.inference_mode(), routing(_plan(generation, method, recorder)):
            # transformers' generate settings of the checkpoint may sample; an answer should be repeatable.
            out = self.base.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
        written = out[:, batch["input_ids"].shape[1] :] if causal else out[:, 1:]
        answers = tuple(self._answer(batch, row, written[row].tolist(), recorder) for row in range(len(inputs)))
        return Answered(
            generation.release,
            method or generation.settings.method,
            tuple(expert.full_name for expert in experts),
            answers,
        )

    def score(self, inputs: Sequence[str], targets: Sequence[str], *, method: str | None = None) -> list[float]:
        """Mean negative log-likelihood of each target's tokens after its input, in nats a token.

        Args:
            inputs: Texts.
            targets: One text for each input.
            method: As in `generate`.

        Raises:
            Refused: `METHOD_UNKNOWN` or `EXPERT_UNKNOWN`.
        """
        batch, labels = self._encode_pairs(inputs, targets)
        with torch.inference_mode(), routing(_plan(self.generation, method)):
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
            Refused: `PROBE_FAILED` if any figure is not finite, or if the model does not run.
            Unavailable: `MEMORY_FULL`.
        """
        try:
            losses = self.score(texts, texts)
        except torch.OutOfMemoryError as error:  # the device's limit, not the bundle's fault
            raise Unavailable(
                Code.MEMORY_FULL,
                "The device has too little memory for the routed model.",
                "Free some, or choose another device; nothing was refused.",
            ) from error
        except RuntimeError as error:  # torch's family: out of memory, shapes, kernels
            raise Refused(
                Code.PROBE_FAILED,
                f"The routed model does not run on the probe text: {first_line(error)}.",
                "Check the expert's ranks and modules, then train it again.",
            ) from error
        if not all(math.isfinite(loss) for loss in losses):
            raise Refused(
                Code.PROBE_FAILED,
                "With this expert the routed model's loss on the probe text is not finite.",
                "Train it again with a smaller learning rate.",
            )
        return sum(losses) / len(losses)

    def _encode(self, inputs: Sequence[str]) -> dict[str, Tensor]:
        rows = [encode_input(self.base.tokenizer, text, self.base.architecture) for text in inputs]
        # A decoder continues from the last position, so there the padding goes to the left.
        return self._batch(rows, "left" if self.base.architecture == "decoder-only" else "right")

    def _encode_pairs(self, inputs: Sequence[str], targets: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        tokenizer, architecture = self.base.tokenizer, self.base.architecture
        rows = [encode_input(tokenizer, text, architecture) for text in inputs]
        labels = [encode_target(tokenizer, text, architecture) for text in targets]
        if architecture == "decoder-only":
            labels = [[IGNORED] * len(row) + label for row, label in zip(rows, labels, strict=True)]
            rows = [row + label[len(row) :] for row, label in zip(rows, labels, strict=True)]
        return self._batch(rows, "right"), _pad(labels, IGNORED, "right", self.base.model.device)

    def _batch(self, rows: Sequence[Sequence[int]], side: Side) -> dict[str, Tensor]:
        tokenizer, device = self.base.tokenizer, self.base.model.device
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return {
            "input_ids": _pad(rows, padding, side, device),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0, side, device),
        }

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


def _plan(generation: Generation, method: str | None, recorder: RouteRecorder | None = None) -> Plan:
    settings, pool = generation.settings, generation.pool
    return Plan(pool, resolve(method or settings.method, pool, settings.k), recorder)


def _pad(rows: Sequence[Sequence[int]], value: int, side: Side, device: torch.device) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.long, device=device) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)
