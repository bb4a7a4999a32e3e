"""A base with experts beside it: a plain model of transformers, forward hooks, and bundles read as safetensors.

No signature is looked at. PHATGOOSE is arXiv 2402.05859, section 3. All but the base's own pass is float64.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.real.independent import formulas
from tests.real.independent.formulas import Floats, K, cautious_weights, families, half, metric, request_weights, solve

_TEXTS, _TEXT_TOKENS = 1024, 256
_PREFIX, _SUFFIXES = "base_model.model.", ("lora_A.weight", "lora_B.weight")


class Lora(NamedTuple):
    """What one expert adds at one module."""

    a: Tensor
    """[r, d]."""
    b: Tensor
    """[o, r], times the scaling."""
    gate: Tensor
    """[d]."""


@dataclass(frozen=True)
class Expert:
    """What a bundle says."""

    name: str
    modules: dict[str, Lora]
    means: dict[str, Tensor]
    """[d] float64 by module."""


def read_expert(folder: Path, name: str) -> Expert:
    """Read the one bundle of a contributor's folder.

    Raises:
        RuntimeError: It is no LoRA, or there are several.
    """
    found = sorted(folder.glob("bundles/*/spec.json"))
    if len(found) != 1:
        raise RuntimeError(f"{folder} holds {len(found)} bundles; expected one.")
    bundle = found[0].parent
    weights, told = (load_file(bundle / f"{part}.safetensors") for part in ("adapter_model", "gates"))
    modules, means = {}, {}
    for path, module in json.loads(found[0].read_bytes())["modules"].items():
        if module["kind"] != "lora":
            raise RuntimeError(f"{name} is of kind {module['kind']}; only LoRA is worked out here.")
        a, b = (weights[f"{_PREFIX}{path}.{suffix}"].double() for suffix in _SUFFIXES)
        modules[path] = Lora(a, b * module["alpha"] / module["rank"], told[f"{path}.gate"].double())
        if (mean := told.get(f"{path}.mean")) is not None:
            means[path] = mean.double()
    return Expert(name, modules, means)


class Base:
    """A base model, and what it does with texts."""

    def __init__(self, place: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(place)

    def prompt(self, text: str) -> list[int]:
        """Turn an input into tokens; it is to be gone on with, so an end has no place."""
        tokens: list[int] = self.tokenizer(text)["input_ids"]
        return tokens[:-1] if tokens and tokens[-1] == self.tokenizer.eos_token_id else tokens

    def answer(self, text: str) -> list[int]:
        """Turn a target into tokens, its end among them."""
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        return tokens if end is None or tokens[-1:] == [end] else [*tokens, end]

    @contextmanager
    def hooked(self, paths: Sequence[str], hook: Callable[..., Tensor | None]) -> Iterator[None]:
        """Have a hook called with path, input and output of each module; what it returns is the output."""
        with ExitStack() as hooks:
            for path in paths:
                module = self.model.get_submodule(path)
                hooks.enter_context(module.register_forward_hook(partial(_call, hook, path)))
            yield

    def seen(self, tokens: Sequence[int], paths: Sequence[str]) -> dict[str, Tensor]:
        """Let the base read, no expert on it; returns what entered modules, [1, s, d], one object for one input."""
        found: dict[str, Tensor] = {}
        with self.hooked(paths, lambda path, u, _: found.update({path: u})), torch.inference_mode():
            self.model.base_model(torch.tensor([tokens]), use_cache=False)
        return found

    def likelihood(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list["Likelihood"]:
        """Score answers after a prompt. Padding comes last, where a causal model does not see it."""
        longest = max(map(len, answers))
        rows = [[*prompt, *answer, *([0] * (longest - len(answer)))] for answer in answers]
        with torch.inference_mode():
            logits = self.model(torch.tensor(rows), use_cache=False).logits[:, len(prompt) - 1 : -1].double()
        return [_likelihood(row[: len(answer)], answer) for row, answer in zip(logits, answers, strict=True)]


def _call(hook: Callable[..., Tensor | None], path: str, _: nn.Module, given: tuple[Tensor], out: Tensor) -> Any:
    return hook(path, given[0], out)


class Likelihood(NamedTuple):
    """How likely an answer is."""

    total: float
    tokens: int
    ahead: float
    """By how much its least likely token is before the best other one; below 0 greedy decoding writes another."""

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.total / self.tokens


def _likelihood(logits: Tensor, answer: Sequence[int]) -> Likelihood:
    at = torch.arange(len(answer)), torch.tensor(answer)
    chances = torch.log_softmax(logits, dim=1)
    others = logits.clone()
    others[at] = -torch.inf
    return Likelihood(float(chances[at].sum()), len(answer), float((logits[at] - others.max(1).values).min()))


Weigh = Callable[[str, Tensor], Tensor]
"""From a module's path and its input [t, d] to the weights [t, n] of the experts that touch it, in order."""


class Pool:
    """Experts laid out side by side at every module that any of them touches."""

    def __init__(self, experts: Sequence[Expert]) -> None:
        self.experts = experts
        self.paths = list(dict.fromkeys(path for expert in experts for path in expert.modules))
        self._laid = {path: self._lay(path) for path in self.paths}

    def at(self, path: str) -> list[Lora]:
        """List what is added at a module, in the experts' order."""
        return [expert.modules[path] for expert in self.experts if path in expert.modules]

    def _lay(self, path: str) -> tuple[Tensor, Tensor, Tensor]:
        here = self.at(path)
        ranks = torch.tensor([len(each.a) for each in here])
        return torch.cat([each.a for each in here]), torch.cat([each.b for each in here], 1), ranks

    def add(self, weigh: Weigh, path: str, u: Tensor, out: Tensor) -> Tensor:
        """Add to what the base gives at a module: y = W u + sum over z of w_z s_z B_z A_z u."""
        a, b, ranks = self._laid[path]
        tokens = u.reshape(-1, u.shape[-1]).double()
        inner = (tokens @ a.T) * weigh(path, tokens).repeat_interleave(ranks, dim=1)
        return out + (inner @ b.T).reshape(out.shape).to(out.dtype)

    def gated(self) -> Weigh:
        """Weigh as PHATGOOSE: softmax of the K best products of standardised gate and input over the root of d."""
        table = {path: _standardised(torch.stack([each.gate for each in self.at(path)])) for path in self.paths}

        def weigh(path: str, u: Tensor) -> Tensor:
            scores = _standardised(u) @ table[path].T / math.sqrt(u.shape[1])
            best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :K]
            weights = torch.softmax(scores.gather(1, best), dim=1)
            return torch.zeros_like(scores).scatter(1, best, weights)

        return weigh

    def fixed(self, weights: Sequence[float]) -> Weigh:
        """Weigh every token alike, by one weight an expert."""
        given = list(zip(self.experts, weights, strict=True))
        rows = {path: torch.tensor([w for each, w in given if path in each.modules]).double() for path in self.paths}
        return lambda path, u: rows[path].expand(len(u), -1)


def _standardised(x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-5)


class Mixtures:
    """Requests as mixtures of what experts were trained on, against the ground of public text."""

    def __init__(self, base: Base, pool: Pool, public: Sequence[str]) -> None:
        self._base = base
        # Modules that are handed one and the same tensor have one input.
        inputs: dict[int, list[str]] = defaultdict(list)
        shown = base.seen(base.prompt(public[0]), pool.paths)
        for path in pool.paths:
            inputs[id(shown[path])].append(path)
        told = {readers[0]: [_mean(expert, readers) for expert in pool.experts] for readers in inputs.values()}
        self._means = {path: torch.stack([each for each in told[path] if each is not None]) for path in told}
        self._means = {path: means for path, means in self._means.items() if len(means) == len(pool.experts)}
        if not self._means:
            raise RuntimeError("There is no input of which all experts tell the mean.")
        texts = [self.read(base.prompt(text)[:_TEXT_TOKENS]) for text in public[:_TEXTS]]
        self._ground = {path: torch.stack([text[path] for text in texts]) for path in self._means}
        self._centres = {path: ground.mean(0) for path, ground in self._ground.items()}
        self._solved = {
            path: torch.linalg.solve(metric(self._ground[path]), (means - self._centres[path]).T) / means.shape[1]
            for path, means in self._means.items()
        }
        self.gram = self._mean_of({path: means - self._centres[path] for path, means in self._means.items()})

    def read(self, tokens: Sequence[int]) -> dict[str, Tensor]:
        """Average what enters modules over the tokens, [d]."""
        return {path: u[0].double().mean(0) for path, u in self._base.seen(tokens, list(self._means)).items()}

    def _mean_of(self, apart: Mapping[str, Tensor]) -> Floats:
        products = [apart[path] @ solved for path, solved in self._solved.items()]
        return np.asarray(torch.stack(products).mean(0))

    def weights(self, method: str, tokens: Sequence[int]) -> list[float]:
        """Say with how much each expert answers a request."""
        family = families(self.gram)
        if method == "nnls-request":
            return request_weights(self.shares(tokens), family)
        begin = list(tokens[:1]) if tokens[0] == self._base.tokenizer.bos_token_id else []
        for length in formulas.ENDINGS:
            if len(tokens) > length:
                ending = self.shares([*begin, *tokens[len(tokens) - length + len(begin) :]])
                if half(ending, family):
                    return cautious_weights(ending, family)
        return cautious_weights(self.shares(tokens), family)

    def shares(self, tokens: Sequence[int]) -> Floats:
        """Solve tokens for the experts that they are a mixture of."""
        seen = self.read(tokens)
        target = self._mean_of({path: seen[path] - centre for path, centre in self._centres.items()})
        n = len(self.gram)
        even = self.gram + 1e-3 * np.trace(self.gram) / n * np.eye(n)
        return solve(even, target)


def _mean(expert: Expert, readers: Sequence[str]) -> Tensor | None:
    """Find what an expert tells of an input that several modules read."""
    told = [expert.means[path] for path in readers if path in expert.means]
    if any(not torch.equal(told[0], each) for each in told):
        raise RuntimeError(f"{expert.name} tells several means of what enters {readers[0]}.")
    return told[0] if told else None
