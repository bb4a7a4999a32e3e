"""Sentence embeddings: where a text lies, by any Hugging Face encoder, or by the base model itself.

The mean of the last layer's states over the text's tokens, scaled to length 1, as sentence-transformers does for
all-MiniLM-L6-v2; needs transformers alone.
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from protocol.spec import BaseModelRef
from router.base.fingerprint import fingerprint, first_line, locate, unreadable
from router.base.loading import Base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_AT_ONCE = 32
_LONGEST = 512
"""Tokens of a text that are read."""


class Embedder:
    """Turns texts into vectors.

    Args:
        model: An encoder, the encoder of an encoder-decoder, or a decoder.
        tokenizer: Its tokenizer.
        ref: What the model is by content; None for the base model.
    """

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", ref: BaseModelRef | None = None
    ) -> None:
        self._model, self._shared, self.ref = model, tokenizer, ref

    @classmethod
    def of_base(cls, base: Base) -> "Embedder":
        """Embed by the base model, no expert taking part."""
        return cls(base.model, base.tokenizer)

    @classmethod
    def load(cls, name_or_path: str, *, device: torch.device | str = "cpu") -> "Embedder":
        """Load an encoder from a folder or the Hub; safetensors only.

        Raises:
            Refused: `BASE_UNREADABLE`.
        """
        from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - seconds that most processes never need

        folder, ref = locate(name_or_path), fingerprint(name_or_path)
        try:
            model = AutoModel.from_pretrained(folder, use_safetensors=True).to(device).eval()
            return cls(model, AutoTokenizer.from_pretrained(folder), ref)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise unreadable(name_or_path, first_line(error), "embedding") from error

    @cached_property
    def width(self) -> int:
        """Numbers in an embedding; tried out, since configurations name it in many ways."""
        return self.embed(["a"]).shape[1]

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        # A tokenizer remembers how it is to cut and pad, for whoever uses it next, be it in another thread: one of
        # one's own, since a request that somebody else reads meanwhile is not to be cut.
        return copy.deepcopy(self._shared)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed texts; returns [b, d] float32 on the CPU, each of length 1."""
        chunks = [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]
        with torch.inference_mode():
            return torch.cat([self._embed(list(chunk)) for chunk in chunks]).cpu()

    def _embed(self, texts: list[str]) -> Tensor:
        tokenizer, model = self._tokenizer, self._model
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any token serves
        batch = tokenizer(texts, padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt")
        ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        encoder = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        return functional.normalize((states * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True), dim=1)
