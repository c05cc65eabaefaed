"""What layouts and contents are named by: digests of both, to be compared between two hosts."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence

from kvwire.errors import SpecError
from kvwire.types import GroupSpec, check_int, check_specs


def layout_digest(specs: Sequence[GroupSpec]) -> str:
    """SHA-256 (hex) over everything that decides where a KV byte lies: kinds, layers, dtypes, parts, in order."""
    check_specs(specs)
    digest = hashlib.sha256(b"kvwire layout 1")
    for spec in specs:
        fields = (spec.name, spec.kind.value, spec.layers, spec.dtype.value, spec.block_tokens, spec.window)
        parts = tuple((part.name, part.shape, part.token_axis) for part in spec.parts)
        text = repr((fields, parts)).encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def block_hashes(tokens: Sequence[int], block_tokens: int, *, seed: bytes = b"") -> tuple[bytes, ...]:
    """Chained 16-byte hashes of the full blocks of a prompt, so that equal hashes mean equal whole prefixes.

    `hash[i] = SHA-256(hash[i-1] || tokens of block i as little-endian u64)[:16]`, with `seed` before the first:
    put there what else decides the KV (model tag, adapter, tenant salt). A last, partial block is hashed too.
    """
    check_int("block_tokens", block_tokens, 1, 1 << 30)
    if not isinstance(seed, bytes):
        raise SpecError(f"seed is {seed!r:.80}; expected bytes")
    out = [hashlib.sha256(b"kvwire prefix 1" + seed).digest()[:16]]
    try:
        for first in range(0, len(tokens), block_tokens):
            block = b"".join(operator.index(it).to_bytes(8, "little") for it in tokens[first : first + block_tokens])
            out.append(hashlib.sha256(out[-1] + block).digest()[:16])
    except (TypeError, ValueError, OverflowError, LookupError) as error:
        raise SpecError(f"tokens are a sequence of integers in 0 to 2**64 - 1: {error}") from None
    return tuple(out[1:])
