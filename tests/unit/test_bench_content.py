"""What a bench fills its pages with, what it takes for right behind a codec, and how --compression is written."""

import zlib

import numpy as np
import pytest

import kvwire
from kvwire import ConfigError, DType, GroupKind, GroupSpec, Part
from kvwire._ext.codec import Scratch
from kvwire.cli import compression
from kvwire.cli.codecs.samples import as_bf16
from kvwire.cli.compression import Coding
from kvwire.cli.content import (
    CONTENTS,
    KV,
    KV_WORDS,
    NOISE,
    NOISE_WORDS,
    as_fp8,
    content_bytes,
    content_of,
    keys,
    kv_numbers,
)
from kvwire.cli.jobs import synthetic
from kvwire.cli.memory import KvMemory
from kvwire.codecs import cell, find_codec

FLOATS = [DType.BF16, DType.FP16, DType.FP32, DType.FP64, DType.FP8_E4M3, DType.FP8_E5M2]
PAGE = 16384
TOKENS = 5


def spec(dtype: DType = DType.BF16, page: int = PAGE, name: str = "pages") -> GroupSpec:
    return GroupSpec(name, GroupKind.FULL, (3, 4, 9), dtype, (Part("page", (page // dtype.itemsize,)),), block_tokens=1)


def memory(content: str, scatter_seed: int | None = None, transfer: int = 7) -> KvMemory:
    made = KvMemory([spec(), spec(DType.UINT8, name="other")], TOKENS, scatter_seed, content)
    made.fill(transfer)
    return made


@pytest.fixture(params=CONTENTS)
def content(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestChecker:
    @pytest.mark.parametrize("scatter_seed", [None, 3])
    def test_right_bytes(self, content: str, scatter_seed: int | None) -> None:
        assert memory(content, scatter_seed).damage(7) == []

    def test_every_bit_counts(self, content: str) -> None:
        for at, bit in ((0, 1), (PAGE // 2, 0x10), (PAGE - 1, 0x80)):
            made = memory(content)
            made.pages[0].array(4)[2, at] ^= bit
            assert made.damage(7) == ["group pages, layer 4: 1 of 5 blocks are wrong, first 2"]

    def test_another_place_another_transfer_and_nothing(self, content: str) -> None:
        made = memory(content)
        pages = made.pages[0].array(4)
        pages[[0, 1]] = pages[[1, 0]]
        assert made.damage(7) == ["group pages, layer 4: 2 of 5 blocks are wrong, first 0"]
        made = memory(content)
        page = made.pages[0].array(9)[0]
        page[:4096] = page[4096:8192]
        assert len(made.damage(7)) == 1
        assert len(memory(content, transfer=8).damage(7)) == 6
        made.poison()
        assert len(made.damage(7)) == 6

    def test_no_two_blocks_are_alike(self, content: str) -> None:
        seen: set[bytes] = set()
        for transfer in range(3):
            made = memory(content, transfer=transfer)
            for pages in made.pages:
                seen |= {block.tobytes() for layer in (3, 4, 9) for block in pages.array(layer)}
        assert len(seen) == 3 * 2 * 3 * TOKENS

    @pytest.mark.parametrize("page", [512, 8 * NOISE_WORDS, 8 * NOISE_WORDS + 8, 8 * KV_WORDS + 8])
    def test_pages_of_any_size(self, content: str, page: int) -> None:
        made = KvMemory([spec(page=page)], 2, None, content)
        made.fill(1)
        assert made.damage(1) == []
        made.pages[0].array(3)[1, -1] ^= 1
        assert len(made.damage(1)) == 1


class TestNumbers:
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_a_codec_finds_something(self, dtype: DType) -> None:
        group = spec(dtype, 65536)
        data = content_of(group, KV).of(keys(1, 0, 3, group.blocks_for(1))).view(np.uint8)[0]
        payload = find_codec("zstd").native.encode(cell(group), data, Scratch())
        assert payload is not None
        if dtype is DType.BF16:
            assert 1.4 < len(data) / len(payload) < 1.5
        noise = content_of(group, NOISE).of(keys(1, 0, 3, group.blocks_for(1))).view(np.uint8)[0]
        assert find_codec("zstd").native.encode(cell(group), noise, Scratch()) is None

    @pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16, DType.FP32, DType.FP64])
    def test_they_are_numbers(self, dtype: DType) -> None:
        """Whatever the keys turn over in them: a lossy codec takes no cell with NaN or an infinity."""
        group = spec(dtype, 65536)
        words = content_of(group, KV).of(keys(1, 0, 3, group.blocks_for(8)))
        if dtype is DType.BF16:
            numbers = (words.view("<u2").astype("<u4") << 16).view("<f4")
        else:
            numbers = words.view({2: "<f2", 4: "<f4", 8: "<f8"}[dtype.itemsize])
        assert np.isfinite(numbers).all()
        assert 0.5 < np.median(np.abs(numbers)) < 2

    def test_what_has_no_numbers_is_noise(self) -> None:
        group = spec(DType.INT8)
        some = keys(1, 0, 3, group.blocks_for(2))
        assert np.array_equal(content_of(group, KV).of(some), content_of(group, NOISE).of(some))
        assert content_bytes(group, KV) == content_bytes(group, NOISE) == 0

    def test_the_same_ones_on_every_host(self) -> None:
        """The two ends make them on their own."""
        assert zlib.crc32(kv_numbers().tobytes()) == 0xB6F0D702
        assert zlib.crc32(as_bf16(kv_numbers()).tobytes()) == 0xFF51A4B0

    def test_fp8_is_the_nearest(self) -> None:
        e4m3 = np.array([0.0, -0.0, 1.0, -1.0, 448.0, 1e9, 2.0**-9, 2.0**-11, 1.0624, 1.0626, -17.9])
        assert as_fp8(e4m3, 3).tolist() == [0, 0, 0x38, 0xB8, 0x7E, 0x7E, 1, 0, 0x38, 0x39, 0xD9]
        e5m2 = np.array([1.0, 57344.0, 1e9, 2.0**-16, 1.24, 1.26, -1.5])
        assert as_fp8(e5m2, 2).tolist() == [0x3C, 0x7B, 0x7B, 1, 0x3D, 0x3D, 0xBE]


class TestRecoded:
    """Behind a lossy codec right is what it makes of the right bytes."""

    @pytest.mark.parametrize("name", ["int8", "int4", "fp8", "delta"])
    def test_what_it_makes_is_right_and_nothing_else(self, name: str) -> None:
        group = GroupSpec.attention("full", range(2), DType.BF16, block_tokens=16, heads=8, head_dim=40)
        made = KvMemory([group], 160, 5, KV)  # cells that blocks do not divide
        made.fill(7)
        assert made.damage(7, f"full={name}")
        codec, step, scratch = find_codec(name), kvwire.Config().cell_bytes, Scratch()
        for number, layer in enumerate(group.layers):
            pages = made.pages[0].array(layer)
            segment = pages[made.slots[0]].reshape(-1)
            for at in range(0, len(segment), step):
                part, shape = segment[at : at + step], cell(group, number, at)
                payload = codec.native.encode(shape, part, scratch)
                assert payload is not None
                part[:] = np.frombuffer(codec.native.decode(shape, payload, len(part), scratch), np.uint8)
            pages[made.slots[0]] = segment.reshape(-1, group.block_bytes)
        assert made.damage(7, name) == made.damage(7, f"full={name},conv=zstd") == []
        assert len(made.damage(7)) == 2
        made.pages[0].array(1)[made.slots[0][4], 9] ^= 1
        assert made.damage(7, name) == ["group full, layer 1: 1 of 10 blocks are wrong, first 4"]


class TestWritten:
    @pytest.mark.parametrize(
        ("text", "value", "automatic"),
        [
            ("auto", "auto", True),
            ("off", "off", False),
            ("zstd", "zstd", False),
            ("full=int8,recurrent=zstd", {"full": "int8", "recurrent": "zstd"}, True),
            (" full = off", {"full": "off"}, True),
            (
                "full=off,window=off,mla=zstd,recurrent=off,conv=off",
                {"full": "off", "window": "off", "mla": "zstd", "recurrent": "off", "conv": "off"},
                False,
            ),
        ],
    )
    def test_what_it_says(self, text: str, value: object, automatic: bool) -> None:
        assert compression.choice(text) == value
        assert compression.is_automatic(text) is automatic
        assert compression.choice(compression.spoken(compression.choice(text))) == value

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("zip", "there is no codec 'zip'"),
            ("", "there is no codec ''"),
            ("full=zip", "there is no codec 'zip'"),
            ("half=zstd", "'half' is no kind of group"),
            ("full=zstd,full=off", "a kind of group is named twice"),
            ("full=zstd,", "'' is no kind of group"),
        ],
    )
    def test_what_says_nothing(self, text: str, sentence: str) -> None:
        with pytest.raises(ConfigError, match=sentence):
            compression.choice(text)

    def test_settings_beside_each_other(self) -> None:
        assert compression.settings("off, zstd,off") == ["off", "zstd"]
        wrong = {"off,full=int8": "more than one setting", "off,zip": "no codec", "off,": "no codec"}
        for text, sentence in wrong.items():
            with pytest.raises(ValueError, match=sentence):
                compression.settings(text)

    def test_a_codec_that_does_not_take_a_group(self) -> None:
        compression.check("int8", synthetic(1 << 20, 65536, 1 << 20, KV).specs)
        with pytest.raises(ConfigError, match="codec 'int8' does not take group 'pages', which is full of uint8"):
            compression.check("int8", synthetic(1 << 20, 65536, 1 << 20).specs)


def test_what_went_coded() -> None:
    assert Coding().facts() == {"coded_share": 0.0, "coded_ratio": None}
    assert (Coding(100, 50, 25) + Coding(100, 50, 15)).facts() == {"coded_share": 0.5, "coded_ratio": 2.5}
    assert Coding(100, 101, 50).facts()["coded_share"] == 1.0  # a cell was sent twice
