"""What people and other programs write: each reader answers with a value that can be, or with the error it names."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvwire import ConfigError, IdentityError, LocalError
from kvwire.cli.jsontext import DEEPEST, check_depth
from kvwire.cli.top import scrape
from kvwire.cli.units import parse_rate, parse_share, parse_size, parse_time, show_share, show_size
from kvwire.congestion import make_controller, parse
from kvwire.emulate.path import Path as LinkPath
from kvwire.security.chain import verify_audit
from kvwire.security.pins import read_pins
from kvwire.security.revocation import parse_fingerprint, read_revoked
from tests.unit.security_kit import put

FINGERPRINT = "ab" * 32
one_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
"""A file is written anew for each example."""

amounts = st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{0,4})? ?([kKmMgGtT]i?[bB]?|Gbit/s|us|ms|s|%)?", fullmatch=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("read", "most"), [(parse_size, 1e30), (parse_rate, 1e31), (parse_time, 1e10), (parse_share, 1.0)]
)
@given(text=st.text(max_size=30) | amounts)
def test_amounts(read: Callable[[str], float], most: float, text: str) -> None:
    with contextlib.suppress(ValueError):
        value = read(text)
        assert math.isfinite(value)
        assert 0 <= value <= most


@given(st.integers(1, (1 << 53) - 1))
def test_a_size_is_read_as_it_is_written(size: int) -> None:
    assert parse_size(str(size)) == size
    assert show_size(size)


@given(st.integers(0, 10**9))
def test_a_share_is_read_as_it_is_shown(billionths: int) -> None:
    shown = show_share(billionths / 1e9)
    if "e" not in shown:
        assert parse_share(shown) == pytest.approx(billionths / 1e9, rel=1e-3)


@given(
    st.text(max_size=80) | st.from_regex(r"(https?://)?[a-z0-9.\[\]:@]{0,20}(:[0-9]{0,6})?(/[a-z]*)?", fullmatch=True)
)
@example("[::1]")
@example("node:")
def test_urls(text: str) -> None:
    with contextlib.suppress(ValueError):
        url = scrape.parse_url(text)
        assert scrape.parse_url(url) == url


expositions = st.lists(
    st.sampled_from(["# HELP", "# TYPE", "kvwire_links", '{link="a",', "}", "1", " ", "\n", "\x0b", '"', "=", "NaN"])
)


@given(st.text(max_size=80) | expositions.map("".join) | expositions.map(" ".join))
@example("# HELP\x0b\x1e\x0bn")
def test_metrics(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert scrape.parse("http://node", text).url == "http://node"


@given(st.sampled_from(["fixed", "aimd", "delay", "budget", "none", "x"]), st.text(max_size=40))
@example("fixed", "pace_bps=inf")
def test_controllers_by_name(name: str, parameters: str) -> None:
    with contextlib.suppress(ConfigError):
        make_controller(f"{name}:{parameters}")


@given(json_values, st.integers(0, 2 * DEEPEST))
def test_json_is_as_deep_as_it_is(value: object, deeper: int) -> None:
    text = "[" * deeper + json.dumps(value) + "]" * deeper
    if deeper > DEEPEST:
        with pytest.raises(ValueError, match="nested"):
            check_depth(text)
    elif deeper < DEEPEST - 50:
        check_depth(text)


@one_directory
@given(content=st.binary(max_size=200) | st.text(alphabet="abcdef0189:# \n\r\x0b\x85", max_size=200).map(str.encode))
@example(content=f"{FINGERPRINT}\x0b{FINGERPRINT[::-1]}".encode())
def test_revocation_lists(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "revoked.txt", content)
    with contextlib.suppress(IdentityError):
        for each in read_revoked(path):
            assert parse_fingerprint(each) == each


@one_directory
@given(content=st.binary(max_size=200) | json_values.map(json.dumps).map(str.encode))
@example(content=b'{"kvwire_pins": 1, "pins": [{}]}')
def test_pin_files(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "pins.json", content)
    with contextlib.suppress(IdentityError):
        assert read_pins(path) == ()


@one_directory
@given(content=st.binary(max_size=200) | st.lists(json_values.map(json.dumps)).map("\n".join).map(str.encode))
def test_audit_logs(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "audit", content)
    with contextlib.suppress(LocalError):
        assert verify_audit(path).lines == content.count(b"\n") == 0


@given(st.binary(max_size=320))
def test_tcp_info_of_any_length(raw: bytes) -> None:
    assert all(0 <= value < 1 << 64 for value in parse(raw))
    assert parse(raw.ljust(280, b"\0")) == parse(raw)


numbers = st.floats() | st.integers(-1, 1 << 70) | st.sampled_from([0.0, 0.5, 1.0])


@given(
    numbers, numbers, st.none() | numbers, st.none() | st.integers(), numbers, st.none() | st.tuples(numbers, numbers)
)
def test_paths(
    delay_s: float,
    jitter_s: float,
    rate_bps: float | None,
    queue_bytes: int | None,
    loss: float,
    burst: tuple[float, float] | None,
) -> None:
    with contextlib.suppress(ValueError):
        path = LinkPath(
            delay_s=delay_s, jitter_s=jitter_s, rate_bps=rate_bps, queue_bytes=queue_bytes, loss=loss, burst=burst
        )
        assert 0 <= path.jitter_s <= path.delay_s <= 60
        assert all(0 <= share <= 1 for share in (path.loss, *(path.burst or ())))
