"""Sealed frames against an implementation of their own, and against everything that somebody on the path can do."""

import random
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwire._ext import cipher
from kvwire._ext.cipher import Cipher
from kvwire._ext.frame import ERRORS, encode
from kvwire._ext.seal import MOST, Opener, Sealer
from tests.unit.sealing import HEADER, TAG_BYTES, opened, sealed

LIMIT = 1 << 18
NATIVE, PACKAGE = cipher.find(), cipher.of_package()
SECRET = bytes(range(32))
OTHER = bytes(range(1, 33))

either = pytest.mark.parametrize("provider", [NATIVE, PACKAGE], ids=lambda provider: str(provider.name).split()[0])


def some(provider: Cipher, count: int = 4, secret: bytes = SECRET) -> list[bytes]:
    """Frames 0 to `count`, of different kinds and lengths, each under the first key."""
    sealer = Sealer(provider, secret)
    kinds: list[Literal["data", "ack", "receipt"]] = ["data", "ack", "receipt"]
    return [sealer.seal(kinds[n % 3], 7 * n, n, 9, bytes(range(n, n + (40, 32, 0)[n % 3]))) for n in range(count)]


@either
def test_vectors(provider: Cipher) -> None:
    """Fixed for good: two ends of different versions have to agree."""
    sealer = Sealer(provider, SECRET, (MOST[0], 2, MOST[2]))
    frames = [
        sealer.seal("data", 0x1122334455667788, 3, 5, b"sealed once, never again"),
        sealer.seal("receipt", 4, 0, 0, b""),
        sealer.seal("ack", 0, 0, 0, bytes(range(16))),
    ]
    assert [frame.hex() for frame in frames] == [
        "4b5657460101000001000000030000000000000000000000887766554433221105000000180000001800000000000000"
        "98d12f45f61b01846b5c08624986b8b12a5c26a43126c35f1b938b1ba4e4a7675df40f30087e3097",
        "4b5657460103000001000000000000000100000000000000040000000000000000000000000000000000000000000000"
        "2c87983bfa7cc4b5b62a05aa45656a49",
        "4b5657460102000002000000000000000200000000000000000000000000000000000000100000001000000000000000"
        "fd9d0b781c8f0245109a75366f568ba8ab396ffb08f66805a6ba5f810abf994b",
    ]


@either
@pytest.mark.parametrize("frames_a_key", [1, 3, 1000])
def test_sealed_frames_are_what_the_formulas_say(provider: Cipher, frames_a_key: int) -> None:
    rng = random.Random(frames_a_key)
    sealer = Sealer(provider, SECRET, (MOST[0], frames_a_key, MOST[2]))
    for sequence in range(20):
        epoch = 1 + sequence // frames_a_key
        payload = rng.randbytes(rng.choice([0, 1, 15, 16, 17, 4096, 65536]))
        assert sealer.sequence == sequence
        frame = sealer.seal("data", 2**64 - 1 - sequence, sequence, 2**32 - 1, payload)
        assert opened(SECRET, frame) == ("data", epoch, sequence, 2**64 - 1 - sequence, sequence, 2**32 - 1, payload)
        assert sealer.epoch == epoch


@either
@pytest.mark.parametrize("frames_a_key", [1, 3, 1000])
def test_what_the_formulas_say_is_opened(provider: Cipher, frames_a_key: int) -> None:
    rng = random.Random(frames_a_key)
    opener = Opener(provider, SECRET)
    for sequence in range(20):
        epoch = 1 + sequence // frames_a_key
        payload = rng.randbytes(rng.choice([0, 1, 15, 16, 17, 4096, 65536]))
        frame = sealed(SECRET, epoch, sequence, payload, transfer=sequence, segment=1, cell=2)
        assert opener.open(frame + b"the next", LIMIT) == ("ok", len(frame), "data", sequence, 1, 2, payload)
        assert (opener.epoch, opener.sequence) == (epoch, sequence + 1)


@given(
    payload=st.binary(max_size=3000),
    transfer=st.integers(0, 2**64 - 1),
    segment=st.integers(0, 2**32 - 1),
    cell=st.integers(0, 2**32 - 1),
    secret=st.binary(min_size=32, max_size=32),
)
def test_each_provider_opens_what_the_other_has_sealed(
    payload: bytes, transfer: int, segment: int, cell: int, secret: bytes
) -> None:
    for one, other in ((NATIVE, PACKAGE), (PACKAGE, NATIVE)):
        frame = Sealer(one, secret).seal("data", transfer, segment, cell, payload)
        assert Opener(other, secret).open(frame, LIMIT) == (
            "ok",
            len(frame),
            "data",
            transfer,
            segment,
            cell,
            payload,
        )


# --- what somebody on the path can do ---------------------------------------------------------------------------------


def refuses(opener: Opener, data: bytes, *reasons: str) -> None:
    """`data` is none of what comes next, and the opener is as it was."""
    before = opener.epoch, opener.sequence
    verdict, consumed, *opened = opener.open(data, LIMIT)
    assert verdict in (reasons or ERRORS[1:])
    assert (consumed, opened) == (0, [])
    assert (opener.epoch, opener.sequence) == before


@either
@pytest.mark.parametrize("epoch", [1, 2])
def test_every_single_bit_flipped(provider: Cipher, epoch: int) -> None:
    """The second frame: under the first key, or as the first one under the next."""
    first = sealed(SECRET, 1, 0)
    frame = sealed(SECRET, epoch, 1, bytes(range(48)), transfer=1 << 40, segment=2, cell=9)
    opener = Opener(provider, SECRET)
    assert opener.open(first, LIMIT)[0] == "ok"
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        verdict, consumed, *payload = opener.open(bytes(damaged), LIMIT)
        assert verdict in ERRORS[1:]
        assert (consumed, payload) == (0, [])
        if bit >= 8 * HEADER.size:
            assert verdict == "tag"
    assert opener.open(frame, LIMIT)[0] == "ok", "what was refused has changed nothing"


@either
def test_cut_at_every_length(provider: Cipher) -> None:
    for sequence, frame in enumerate(some(provider)):
        opener = Opener(provider, SECRET)
        for before in some(provider)[:sequence]:
            assert opener.open(before, LIMIT)[0] == "ok"
        for length in range(len(frame)):
            assert opener.open(frame[:length], LIMIT) == ("incomplete", 0)
        assert opener.open(frame, LIMIT)[:2] == ("ok", len(frame))


@either
def test_cut_and_merged_with_the_next(provider: Cipher) -> None:
    frame, after = some(provider, 2)
    for length in range(HEADER.size, len(frame)):
        refuses(Opener(provider, SECRET), frame[:length] + after, "tag")
    opener = Opener(provider, SECRET)
    assert opener.open(frame + after, LIMIT)[:2] == ("ok", len(frame))
    assert opener.open(after, LIMIT)[:2] == ("ok", len(after))


@either
def test_reordered_replayed_left_out(provider: Cipher) -> None:
    frames = some(provider)
    opener = Opener(provider, SECRET)
    for sequence, frame in enumerate(frames):
        for wrong in frames[:sequence] + frames[sequence + 1 :]:
            refuses(opener, wrong, "sequence")
        assert opener.open(frame, LIMIT)[0] == "ok"
    refuses(opener, frames[-1], "sequence")


@either
def test_frames_of_another_lane_or_the_other_direction(provider: Cipher) -> None:
    """Their secrets are others: a frame that comes back, or from a lane beside it, has no tag here."""
    for frame in some(provider, 1, OTHER):
        refuses(Opener(provider, SECRET), frame, "tag")


@either
def test_a_number_that_is_changed_to_fit(provider: Cipher) -> None:
    """The sequence is in the nonce and under the tag, so a frame cannot stand in another one's place."""
    first, second = some(provider, 2)
    refuses(Opener(provider, SECRET), second[:16] + first[16:24] + second[24:], "tag")


@either
@pytest.mark.parametrize(
    ("lies", "verdict"),
    [
        ({"version": 2}, "version"),
        ({"flags": 1}, "version"),
        ({"codec": 1}, "length"),
        ({"type": 4}, "type"),
        ({"sequence": 1}, "sequence"),
        ({"plain_len": 17}, "length"),
        ({"wire_len": 15}, "length"),
        ({"plain_len": LIMIT + 1, "wire_len": LIMIT + 1}, "length"),
        ({"plain_len": 2**32 - 1, "wire_len": 2**32 - 1}, "length"),
        ({"type": 3}, "length"),
        ({"crc": 1}, "checksum"),
        ({"epoch": 0}, "epoch"),
        ({"epoch": 2**32 - 1}, "epoch"),
    ],
)
def test_lies_with_a_fitting_tag(provider: Cipher, lies: dict[str, int], verdict: str) -> None:
    frame = sealed(SECRET, 1, 0, bytes(16))
    assert Opener(provider, SECRET).open(frame, LIMIT)[0] == "ok"
    lie = sealed(SECRET, 1, 0, bytes(16), lies=lies)
    refuses(Opener(provider, SECRET), lie, verdict)
    refuses(Opener(provider, SECRET), lie[: HEADER.size], verdict)  # a wrong length is not waited for


@either
def test_a_plain_frame(provider: Cipher) -> None:
    refuses(Opener(provider, SECRET), encode("data", 0, payload=bytes(100)), "epoch")


@given(noise=st.binary(max_size=200))
def test_noise(noise: bytes) -> None:
    opener = Opener(NATIVE, SECRET)
    if len(noise) < HEADER.size:
        assert opener.open(noise, LIMIT) == ("incomplete", 0)
    else:
        refuses(opener, noise)


def test_length_at_the_limit() -> None:
    frame = Sealer(NATIVE, SECRET).seal("data", 0, 0, 0, bytes(LIMIT))
    assert len(frame) == HEADER.size + LIMIT + TAG_BYTES
    assert Opener(NATIVE, SECRET).open(frame, LIMIT)[0] == "ok"
    assert Opener(NATIVE, SECRET).open(frame, LIMIT - 1) == ("length", 0)


# --- keys that follow each other --------------------------------------------------------------------------------------


@either
def test_the_next_epoch_and_no_other(provider: Cipher) -> None:
    opener = Opener(provider, SECRET)
    refuses(opener, sealed(SECRET, 3, 0), "epoch")
    assert opener.open(sealed(SECRET, 2, 0), LIMIT)[0] == "ok"
    assert opener.epoch == 2
    refuses(opener, sealed(SECRET, 1, 1), "epoch")
    refuses(opener, sealed(SECRET, 4, 1), "epoch")
    assert opener.open(sealed(SECRET, 2, 1), LIMIT)[0] == "ok"
    assert opener.open(sealed(SECRET, 3, 2), LIMIT)[0] == "ok"
    refuses(opener, sealed(SECRET, 2, 3), "epoch")


@either
def test_a_promise_of_the_next_epoch_is_no_epoch(provider: Cipher) -> None:
    """Whoever has no key can write any epoch into a header; that does not move the keys on."""
    opener = Opener(provider, SECRET)
    refuses(opener, sealed(SECRET, 1, 0, b"x", lies={"epoch": 2}), "tag")
    refuses(opener, sealed(OTHER, 2, 0, b"x"), "tag")
    assert opener.epoch == 1
    assert opener.open(sealed(SECRET, 1, 0, b"x"), LIMIT)[0] == "ok"


@either
@pytest.mark.parametrize(
    ("rekey", "epochs"),
    [
        ((MOST[0], 1, 3600.0), [1, 2, 3, 4, 5, 6, 7, 8]),
        ((MOST[0], 3, 3600.0), [1, 1, 1, 2, 2, 2, 3, 3]),
        ((100, 99, 3600.0), [1, 1, 2, 2, 3, 3, 4, 4]),
        ((101, 99, 3600.0), [1, 1, 1, 2, 2, 2, 3, 3]),
        ((1, 99, 3600.0), [1, 2, 3, 4, 5, 6, 7, 8]),
        ((MOST[0], 99, 1e-9), [1, 2, 3, 4, 5, 6, 7, 8]),
        ((MOST[0], 99, 2e-6), [1, 1, 2, 2, 3, 3, 4, 4]),
        ((MOST[0], 3, 2.5e-6), [1, 1, 1, 2, 2, 2, 3, 3]),
        (MOST, [1] * 8),
    ],
)
def test_a_key_has_done_its_bytes_frames_or_time(
    provider: Cipher, rekey: tuple[int, int, float], epochs: list[int]
) -> None:
    """Frames of 50 bytes, one a microsecond."""
    sealer = Sealer(provider, SECRET, rekey)
    opener = Opener(provider, SECRET)
    start = 10**15
    seen = []
    for n in range(8):
        frame = sealer.seal("data", 0, 0, 0, bytes(50), start + 1000 * n)
        assert opener.open(frame, LIMIT)[0] == "ok"
        assert opener.epoch == sealer.epoch
        seen.append(sealer.epoch)
    assert seen == epochs


def test_the_time_of_a_key_starts_with_its_first_frame() -> None:
    sealer = Sealer(NATIVE, SECRET, (MOST[0], MOST[1], 1.0))
    for now_ns, epoch in ((10**18, 1), (10**18 + 10**9 - 1, 1), (10**18 + 10**9, 2), (2 * 10**18, 3)):
        sealer.seal("data", 0, 0, 0, b"", now_ns)
        assert sealer.epoch == epoch


# --- misuse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33), bytes(64)])
def test_secrets_of_another_size(secret: bytes) -> None:
    for make in (Sealer, Opener):
        with pytest.raises(ValueError, match=f"32 bytes, not {len(secret)}"):
            make(NATIVE, secret)


@pytest.mark.parametrize(
    "rekey",
    [
        (0, 1, 1.0),
        (1, 0, 1.0),
        (1, 1, 0.0),
        (MOST[0] + 1, 1, 1.0),
        (1, MOST[1] + 1, 1.0),
        (1, 1, 3600.1),
        (1, 1, float("nan")),
        (1, 1),
    ],
)
def test_limits_of_a_key(rekey: Any) -> None:
    with pytest.raises(ValueError, match=r"the most are|argument"):
        Sealer(NATIVE, SECRET, rekey)


@pytest.mark.parametrize("make", [Cipher, Sealer, Opener])
def test_nothing_is_made_of_nothing(make: Callable[..., object]) -> None:
    with pytest.raises(TypeError):
        make()
    with pytest.raises(TypeError):
        make(None, SECRET)
