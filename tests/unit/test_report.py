"""kvwire-bench report: records become a page, and what is no record becomes a sentence."""

import copy
import io
import json
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kvwire.cli import bench
from kvwire.cli.failure import Failure
from kvwire.cli.report import webpage
from kvwire.cli.report.command import KINDS, differences, page
from kvwire.cli.report.fields import Fields, read
from kvwire.cli.report.section import NOTHING, TIMES

SAMPLES = Path(__file__).parent / "reports"
"""Made with --json by each command, but for the names of the machines and one fault of the doctor's."""


def sample(name: str, at: int = 0) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((SAMPLES / f"{name}.json").read_text().splitlines()[at])
    return record


class Text(HTMLParser):
    """The tags of a page and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(*records: dict[str, Any]) -> Text:
    return Text(page([Fields(record, f"{number}.json") for number, record in enumerate(records, 1)]))


def test_a_loopback_record_beside_iperf3() -> None:
    found = page_of(sample("loopback"))
    assert {"2.56 GB/s", f"0.57 {TIMES}", "iperf3 -P 4", "every byte was right", "iperf 3.12"} <= set(found.words)
    assert {"decode", "2 cores of AMD EPYC 9554", "23.54 GiB"} <= set(found.words)
    assert "kvwire-bench loopback -n 256MiB --runs 5 --vs iperf3 --json" in found.words
    assert found.tags.count("circle") == 5  # a dot for each run


def test_each_comparison_of_loopback_has_its_figure_and_chart() -> None:
    pages, busy, tail, plain = (page_of(sample("loopback", at)) for at in (1, 2, 3, 4))
    assert {f"0.75 {TIMES}", "of the goodput with pages of 1 MiB", "16 KiB, in random order"} <= set(pages.words)
    assert {f"0.76 {TIMES}", "a Python loop in both processes", "6.55 ms"} <= set(busy.words)
    assert {"1.09 ms", "tail, 19% of what is allowed", "5.61 ms", "case-study-1t, 2,048 tokens"} <= set(tail.words)
    assert {f"0.63 {TIMES}", "of the goodput of a plain link", "kvwire, plain"} <= set(plain.words)
    assert [found.tags.count("svg") for found in (pages, busy, tail, plain)] == [1, 2, 2, 1]


def test_compression_has_its_figures_beside_other_settings() -> None:
    loopback, wan, run = (
        page_of(sample(*which) | {"ratio_vs_off_runs": [1.0, 1.1]})
        for which in (("loopback", 5), ("wan", 8), ("run", 1))
    )
    for found in (loopback, wan):
        said = {"of the goodput with compression off", "kvwire, compression zstd", "Content", "Automatic codecs"}
        assert said <= set(found.words)
    assert f"100 %, 1.47 {TIMES} shorter" in run.words


def test_each_scenario_over_an_emulated_link_has_its_figures() -> None:
    found = [page_of(sample("wan", at)) for at in range(8)]
    words = [set(one.words) for one in found]
    assert {"of the best of iperf3", "iperf3 -P 16", "Wait in the bottleneck's queue, 95 % of packets"} <= words[0]
    assert {"of what the link offered over the run", "until goodput was back at 85 %", "the link"} <= words[1]
    assert {"goodput meanwhile", "Goodput over time, the last run"} <= words[2] & words[7]
    assert {"full link, 99 % at most", "of their time over an idle link"} <= words[3]
    assert {"of a fair share, beside cubic=2", "TCP flow 2", "a fair share"} <= words[4]
    assert {"case-study-1t, 2,048 tokens", "tail, from the last layer to the receipt"} <= words[5]
    assert "of a round trip and the bytes at the link's rate" in words[6]
    assert all({"tun", "every byte was right"} <= each for each in words)
    assert all("kvwire-bench wan" in "".join(one.words) for one in found)


def test_a_grid_has_its_cells_and_says_which_are_missing() -> None:
    found = page_of(sample("wan-grid"))
    assert {"#1 Grid of 11 emulated links of 1 Gbit/s", "40 ms, 0.01 % loss, cubic", "best iperf3"} <= set(found.words)
    assert any(words.startswith("80 ms, 0.1 % loss, cubic was not measured: the emulator") for words in found.words)
    assert found.tags.count("svg") == 1


def test_what_sealed_is_named() -> None:
    assert {"sealed, AES-256-GCM by OpenSSL 3.0.19 (python)", "AES-256-GCM"} <= set(
        page_of(sample("loopback", 4)).words
    )
    assert "plain, CRC32C" in page_of(sample("loopback")).words  # of a version before there was a cipher


def test_a_run_has_its_goodput_over_time_and_both_commands() -> None:
    found = page_of(sample("run"))
    assert {"7.2 Gbit/s", "7 Gbit/s", "602 us", "6.1 ms", "Goodput over time"} <= set(found.words)
    assert {"kvwire-bench serve", "kvwire-bench run decode.example --bidir -t 6 --json"} <= set(found.words)
    assert {"client: prefill, server: decode"} <= {part for words in found.words for part in words.split(" · ")}
    assert found.tags.count("circle") == 12  # six intervals of two directions
    elsewhere = page_of(sample("run") | {"port": 7911})
    assert "kvwire-bench serve -p 7911" in elsewhere.words


def test_the_intervals_of_a_long_run_are_shown_together() -> None:
    record = sample("run")
    second = {"bytes": 1, "goodput_bps": 1e9}
    record["flows"] = [record["flows"][0]]
    record["flows"][0]["intervals"] = [second | {"start_s": float(n), "end_s": n + 1.0} for n in range(86400)]
    assert page_of(record).tags.count("circle") == 300


def test_wrong_bytes_are_seen_first() -> None:
    record = sample("loopback") | {"verified": False, "damage": ["layer 3, block 7: 12 bytes differ"]}
    found = page_of(record)
    assert {"bytes were wrong", "layer 3, block 7: 12 bytes differ"} <= set(found.words)
    assert "every byte was right" not in found.words
    run = sample("run")
    assert "interrupted" in page_of(run | {"interrupted": True}).words
    assert "bytes were wrong" in page_of(run | {"interrupted": True, "verified": False}).words


def test_a_diagnosis_begins_with_the_gravest() -> None:
    found = page_of(sample("doctor"))
    badges = [words for words in found.words if words in webpage.LEVELS]
    assert badges == ["fault", *["note"] * 5, *["ok"] * 6]
    assert {"1 fault", "ulimit -n 65536", "sysctls net.ipv4.tcp_sack"} <= set(found.words)


def test_models_have_sizes_and_times() -> None:
    found = page_of(sample("models"))
    assert {"#1 KV cache of 3 models", "40 GiB", "10 GiB", "85.9 s", "32 K tokens"} <= set(found.words)
    one = sample("models")
    one["models"] = one["models"][:1]
    assert {"#1 KV cache of llama-3-70b", "at 32 K tokens"} <= set(page_of(one).words)


def test_codecs_have_ratios_and_links() -> None:
    found = page_of(sample("codecs"))
    assert {"#1 Codecs on bf16", f"1.47{TIMES}", "fewer bytes by zstd, nothing lost", "not for bf16"} <= set(
        found.words
    )
    assert {"How many times faster a link is", "zstd alone", "never"} - set(found.words) == {"never"}
    one = sample("codecs")
    one["codecs"][0] |= {"decode_bps": None, "wins_below_bps": 0}
    assert {"never", NOTHING} <= set(page_of(one).words)


def test_several_records_are_compared_and_machines_told_once() -> None:
    found = page_of(*(sample("loopback", at) for at in range(4)), sample("run"), sample("doctor"))
    assert "4 loopback measurements, 1 measurement between hosts, 1 diagnosis" in found.words
    assert "#3 -n 128MiB --busy-host" not in found.words  # "--runs" has different values
    assert "#3 -n 128MiB --runs 3 --busy-host" in found.words
    assert found.words.count("2 cores of AMD EPYC 9554") == 2  # decode and prefill
    assert "#1 here, #2 here, #3 here, #4 here, #5 server, #6 here" in found.words


def test_commands_are_told_apart_by_what_not_all_have() -> None:
    common = "kvwire-bench loopback --runs 3 --json"
    assert differences([f"{common} -P 2", f"{common} -P 4 --scatter", common]) == ["-P 2", "-P 4 --scatter", ""]
    assert differences(["kvwire-bench run a", "kvwire-bench run 'b c'", "unclosed 'quote"])[:2] == [
        "kvwire-bench run a",
        "kvwire-bench run b c",
    ]


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    found = page_of(*(sample(kind) for kind in KINDS))
    assert not {"script", "img", "iframe", "object", "embed", "base"} & set(found.tags)
    links = [value for name, value in found.attributes if name in ("href", "src", "srcset", "action", "data")]
    assert {value for value in links if not (value or "").startswith("#record-")} == {"data:,"}
    assert ("content", webpage.POLICY) in found.attributes
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert "url(" not in webpage.STYLE
    assert "@import" not in webpage.STYLE


HOSTILE = "</style></script><script>alert(1)</script><img src=x onerror=alert(1)>\"&' \x00\ud800\u202e"


def hostile(value: Any) -> Any:
    """The same record with hostile words for every text but those that are choices."""
    if isinstance(value, dict):
        kept = ("kind", "direction", "level", "scenario", "black_hole")
        return {key: found if key in kept else hostile(found) for key, found in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_words_stay_words(kind: str) -> None:
    clean, found = page_of(sample(kind)), page_of(hostile(sample(kind)) | {"kind": kind})
    assert set(found.tags) <= set(clean.tags) | {"svg"}
    assert "alert(1)" in "".join(found.words)
    assert "<script>" in "".join(found.words)  # escaped, so that it is read as words
    assert not {"\x00", "\ud800", "\u202e"} & set("".join(found.words))


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a record as its container and key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from leaves(value[key])


def refusal(record: dict[str, Any]) -> str | None:
    try:
        page([Fields(record, "bad.json")]).encode()
    except Failure as failure:
        return str(failure)
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_is_missing_or_something_else_is_a_sentence(kind: str) -> None:
    """One field at a time is made something else: there is a page all the same, or a sentence that names the file."""
    record = sample(kind, -1)
    for flow in record.get("flows", []):
        del flow["intervals"][1:]
    refused = 0
    for container, key in leaves(record):
        kept = copy.copy(container[key])
        for other in (None, "x", -1, 0, 10**400, 5e-324, 1e18, float("nan"), True, [], [None], {}, {"x": "y"}):
            container[key] = other
            said = refusal(record)
            assert said is None or (said.startswith("bad.json") and "expected" in said)
            refused += said is not None
        container[key] = kept
    assert refused > 100


def test_a_record_without_a_field_names_it() -> None:
    record = sample("loopback")
    del record["machines"]["here"]["cpu"]
    with pytest.raises(Failure, match=r"^bad\.json, 'machines', 'here' has no 'cpu'; expected a text$"):
        page([Fields(record, "bad.json")])


GOOD = json.dumps(sample("run"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"{", "line 1: no JSON"),
        (b"goodput: 3", "line 1: no JSON"),
        (GOOD.encode() + b"\nError: no route\n", "line 2: no JSON"),
        (b"[1, 2]", "is no record"),
        (b"3", "is no record"),
        (b'{"start": {}, "end": {}}', "is no record"),
        (GOOD.encode() + b"\n{}\n", "line 2 is no record"),
        (b'{"kvwire_bench": 2, "kind": "run"}', "has format 2 and this kvwire-bench reads 1"),
        (b'{"kvwire_bench": "1"}', "'kvwire_bench' is \"1\"; expected a number"),
        (b'{"kvwire_bench": 1}', "has no 'kind'"),
        (
            b'{"kvwire_bench": 1, "kind": "wine"}',
            "'kind' is \"wine\"; expected loopback or run or wan or",
        ),
        (b'{"kvwire_bench": 1, "kind": ' + b"[" * 90 + b"]" * 90 + b"}", "'kind' is a list; expected a text"),
        (b'{"kvwire_bench": 1, "kind": ' + b"[" * 900 + b"]" * 900 + b"}", "nested more than 100 deep"),
        (b'{"kvwire_bench": 1, "kind": "' + b"[" * 900 + b'"}', "kind"),
        (b"\xff\xfe\x00", "is no text"),
        (b"\x7fELF\x02\x01\x01\x00", "line 1: no JSON"),
        (b"[" * 100_000, "nested more than 100 deep"),
        (b'{"kvwire_bench": ' + b"1" * 5000 + b"}", "is no record"),
        (b'{"kvwire_bench": NaN}', "'kvwire_bench' is NaN; expected a number"),
    ],
)
def test_what_is_no_report_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, sentence: str
) -> None:
    file, out = tmp_path / "bad.json", tmp_path / "out.html"
    file.write_bytes(content)
    assert bench.main(["report", str(file), "-o", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"kvwire-bench: {file}")
    assert sentence in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_files_that_cannot_be_read_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good.json"
    good.write_text(GOOD)
    for arguments, sentence in [
        ([str(tmp_path / "none.json")], "none.json cannot be read: No such file or directory"),
        ([str(tmp_path)], "cannot be read: Is a directory"),
        (["/dev/zero"], "/dev/zero is larger than 64 MiB"),
        ([str(good), "-o", str(tmp_path / "no" / "out.html")], "out.html cannot be written: No such file or directory"),
        ([str(good), "-o", str(tmp_path)], "cannot be written: Is a directory"),
    ]:
        assert bench.main(["report", *arguments]) == 2
        assert sentence in capsys.readouterr().err


def test_only_a_report_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, other, out = tmp_path / "good.json", tmp_path / "other.json", tmp_path / "out.html"
    good.write_text(GOOD)
    other.write_text(GOOD)
    assert bench.main(["report", str(good), "-o", str(other)]) == 2
    assert "other.json is there and is no report" in capsys.readouterr().err
    assert other.read_text() == GOOD
    out.touch()
    for _ in range(2):
        assert bench.main(["report", str(good), "-o", str(out)]) == 0
        assert capsys.readouterr().out.startswith(f"{out}: 1 record, ")
    assert out.read_text().startswith(webpage.START)
    no_text = tmp_path / "\udcff.html"  # the byte 0xff, as Python has it
    assert bench.main(["report", str(good), "-o", str(no_text)]) == 0
    assert "?.html: 1 record" in capsys.readouterr().out


def test_json_lines_printed_objects_and_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = tmp_path / "both.json"
    both.write_text(json.dumps(sample("run"), indent=2) + "\n" + json.dumps(sample("doctor")), encoding="utf-8-sig")
    lines = len(json.dumps(sample("run"), indent=2).splitlines())
    assert [fields.where for fields in read(str(both))] == [f"{both}, line 1", f"{both}, line {lines + 1}"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    assert bench.main(["report", "-", "-o", "-"]) == 0
    written = capsys.readouterr().out
    assert written.startswith(webpage.START)
    assert {"standard input"} <= {part for words in Text(written).words for part in words.split(" · ")}
