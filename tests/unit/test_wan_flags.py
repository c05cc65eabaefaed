"""The flags of kvwire-bench wan: what is meant where nothing is said, and what does not go together."""

import argparse

import pytest

from kvwire.cli import bench
from kvwire.cli.failure import Failure
from kvwire.cli.jobs import job_of
from kvwire.cli.units import parse_share, parse_time, show_share
from kvwire.cli.wan import flags
from kvwire.cli.wan.emulated import EmulatedLink
from kvwire.cli.wan.model import scaled

MIB = 1 << 20


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    flags.add_arguments(parser.add_subparsers(), None)
    return flags.checked(parser.parse_args(["wan", *words]))


def test_what_is_meant_without_a_word() -> None:
    found = options()
    assert (found.scenario, found.size, found.runs, found.vs) == ("transfer", 512 * MIB, 5, "iperf3")
    assert (found.compression, found.content, found.vs_compression) == ("auto", "noise", ())
    link = EmulatedLink.of(found)
    assert (link.rtt_s, link.rate_bps, link.loss, link.burst) == (0.04, 1e9, 0.0, None)
    assert link.queue_bytes == 5_000_000  # one bandwidth-delay product
    assert link.payload_bps == pytest.approx(1e9 * 1448 / 1500)


def test_the_link_that_is_asked_for() -> None:
    link = EmulatedLink.of(
        options("--rtt", "80ms", "--rate", "200mbit", "--bursty", "--jitter", "5ms", "--queue", "1M")
    )
    path = link.path()
    assert (path.delay_s, path.rate_bps, path.queue_bytes, path.jitter_s) == (0.04, 2e8, MIB, 0.005)
    assert (path.loss, path.burst) == (0.0, (0.0005, 0.2))
    assert link.path(1e8).rate_bps == 1e8


def test_a_shaped_link_has_no_delay() -> None:
    link = EmulatedLink.of(options("--shaped", "9gbit"))
    assert (link.shaped, link.rtt_s, link.rate_bps) == (True, 0.0, 9e9)
    assert link.payload_bps == pytest.approx(9e9 * 1448 / 1514)


@pytest.mark.parametrize(
    ("words", "scenario", "size", "runs"),
    [
        (["--step", "200mbit"], "step", 64 * MIB, 3),
        (["--black-hole", "lane", "--size", "1M", "--runs", "2"], "black_hole", MIB, 2),
        (["--urgent", "500ms"], "urgent", 64 * MIB, 1),
        (["--beside", "cubic=2"], "beside", 64 * MIB, 3),
        (["--model", "case-study-1t", "--tokens", "1024"], "model", 64 * MIB, 5),
    ],
)
def test_each_scenario_has_its_own_sizes(words: list[str], scenario: str, size: int, runs: int) -> None:
    found = options(*words)
    assert (found.scenario, found.size, found.runs) == (scenario, size, runs)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--step", "1g", "--urgent", "1s"], "--step and --urgent are scenarios of their own"),
        (["--grid", "--rtt", "10ms"], "--grid and --rtt do not go together: the grid has cells of its own"),
        (["--grid", "--urgent", "1s"], "--grid does not go with --urgent"),
        (["--shaped", "9g", "--loss", "1%"], "--shaped and --loss do not go together: a veth has no delay"),
        (["--shaped", "9g", "--step", "1g"], "--shaped does not go with --step"),
        (["--bursty", "--loss", "1%"], "--bursty and --loss do not go together: its losses come in bursts"),
        (["--black-hole", "all", "--vs", "iperf3"], "--vs does not go with --black-hole"),
        (["--step", "1g", "--cold"], "--cold does not go with --step"),
        (["--no-classes"], "--no-classes needs --urgent"),
        (["--seconds", "9"], "--seconds needs --step or --black-hole or --beside"),
        (["--scale", "10"], "--scale needs --model"),
        (["--prefill", "1"], "--prefill needs --model"),
        (["--model", "case-study-1t", "--tokens", "9", "--size", "1M"], "--size does not go with --model"),
        (["--rtt", "4ms", "--jitter", "5ms"], "a link that cannot be: .*0.005"),
        (["--model", "case-study-1t"], "--model needs --tokens"),
        (["--step", "1g", "--vs-compression", "off"], "--vs-compression does not go with --step"),
        (
            ["--cold", "--vs-compression", "off"],
            "--vs-compression and --cold do not go together: automatic codecs",
        ),
        (["--vs-compression", "off,auto"], "--vs-compression auto compares another compression with what is that"),
    ],
)
def test_what_does_not_go_together_is_said(words: list[str], sentence: str) -> None:
    with pytest.raises(Failure, match=sentence):
        EmulatedLink.of(options(*words))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rtt", "40"], "'40' is no time; expected one with its unit"),
        (["--rtt", "0ms"], "'0ms' is nothing; leave it out"),
        (["--rate", "1000"], "is no rate"),
        (["--loss", "0.001"], "'0.001' is no share; expected a percentage such as 0.1%"),
        (["--loss", "101%"], "is no share"),
        (["--beside", "cubic"], "expected a congestion control and how many, such as cubic=2"),
        (["--beside", "cubic=65"], "names no flows"),
        (["--vs", "rsync"], "expected iperf3 or none"),
        (["--black-hole", "some"], "invalid choice"),
        (["--size", "big"], "is no size"),
        (["--runs", "0"], "expected an integer in 1 to 1000"),
        (["--lanes", "65"], "expected an integer in 1 to 64"),
        (["--compression", "zip"], "there is no codec 'zip' (known: zstd"),
        (["--vs-compression", "off,zip"], "there is no codec 'zip' (known: zstd"),
        (["--vs-compression", "full=int8"], "'full=int8' is more than one setting"),
        (["--content", "text"], "invalid choice: 'text'"),
    ],
)
def test_bad_values_are_answered_with_a_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        bench.main(["wan", *words])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert sentence in said
    assert "Traceback" not in said


def test_what_is_compared_with() -> None:
    found = options("--compression", "full=int8", "--vs-compression", "off,zstd", "--content", "kv")
    assert (found.compression, found.vs_compression, found.content) == ("full=int8", ["off", "zstd"], "kv")


def test_times() -> None:
    assert [parse_time(text) for text in ("40ms", "1.5s", "500 us", "2s")] == [0.04, 1.5, 0.0005, 2.0]


def test_shares() -> None:
    assert [parse_share(text) for text in ("0.1%", "0", "0%", "100 %")] == [0.001, 0.0, 0.0, 1.0]
    assert show_share(0.0001) == "0.01 %"


def test_a_scaled_model_has_the_same_layers_and_one_tenth_of_the_bytes() -> None:
    found = options("--model", "case-study-1t", "--tokens", "32768", "--scale", "10", "--prefill", "1.84")
    whole = job_of(found, found.size, found.size)
    tenth = scaled(whole, found.scale)
    assert tenth.transfer_bytes == pytest.approx(whole.transfer_bytes / 10, rel=0.001)
    assert [spec.layers for spec in tenth.specs] == [spec.layers for spec in whole.specs]
    assert all(spec.block_bytes % 8 == 0 for spec in tenth.specs)
    assert scaled(whole, 1) is whole
