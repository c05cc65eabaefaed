"""Which tests run under which sanitizer, and which do not, with the reason."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

PURE = "pure Python: no extension module is called, or hardly"
COMMANDS = "runs commands as processes: what they call of the engine is called by tests of its own"
COMPILER = "compiles libraries: the compiler inherits the sanitizer, and leaks"
HOSTS = "makes hosts with the command ip, which inherits the sanitizer, and leaks"
RESIDENT = "measures resident memory, and the sanitizer keeps what was freed"
GLIBC = "asks glibc what it has given out, and here the sanitizer gives"


@dataclass(frozen=True)
class Choice:
    """Files that match `taken`, but for those that match a pattern of `left_out`; single tests are left out by id."""

    taken: tuple[str, ...]
    left_out: dict[str, str]
    tests_left_out: dict[str, str]

    def files(self, root: Path) -> list[str]:
        found = {str(path.relative_to(root)) for pattern in self.taken for path in root.glob(pattern)}
        return sorted(name for name in found if not any(fnmatch(name, pattern) for pattern in self.left_out))

    def reasons(self) -> Iterator[str]:
        for what, why in (self.left_out | self.tests_left_out).items():
            yield f"{what}: {why}"


ASAN = Choice(
    ("tests/unit/test_*.py", "tests/net/test_*.py", "tests/fuzz/**/test_*.py"),
    {
        "tests/unit/test_audit*": PURE,
        "tests/unit/test_charts*": PURE,
        "tests/unit/test_config*": PURE,
        "tests/unit/test_congestion*": PURE,
        "tests/unit/test_codecs_command*": "measures what else is installed: blosc2 leaks",
        "tests/unit/test_doctor*": PURE,
        "tests/unit/test_keys_cli*": COMMANDS,
        "tests/unit/test_libcrypto*": COMPILER,
        "tests/unit/test_models*": PURE,
        "tests/unit/test_outcomes*": PURE,
        "tests/unit/test_packaging*": COMMANDS,
        "tests/unit/test_presets*": PURE,
        "tests/unit/test_report*": PURE,
        "tests/unit/test_seal_memory*": "reads all of its process's memory, of which a sanitizer has terabytes",
        "tests/unit/test_security*": PURE,
        "tests/unit/test_telemetry*": PURE,
        "tests/unit/test_transformers*": PURE,
        "tests/unit/test_types*": PURE,
        "tests/unit/test_walls*": "walks the source",
        "tests/unit/test_wan*": PURE,
        "tests/unit/test_wire*": PURE,
        "tests/unit/test_zstdlib*": COMPILER,
        "tests/net/test_bench*": COMMANDS,
        "tests/net/test_docs*": COMMANDS,
        "tests/net/test_bounds*": RESIDENT,
        "tests/net/test_clocks*": COMPILER,
        "tests/net/test_doctor*": COMMANDS,
        "tests/net/test_metrics*": COMMANDS,
        "tests/net/test_report*": COMMANDS,
    },
    {
        "tests/net/test_engine_samples.py::TestSamples::test_what_lanes_take_of_memory": GLIBC,
        "tests/net/test_engine_hostile.py::test_a_peer_that_never_acknowledges": RESIDENT,
        "tests/net/test_engine_loss.py::test_an_abort_writes_into_nobody_else_s_file": COMPILER,
        "tests/net/test_engine_suspend.py::test_what_waited_to_be_sent_is_given_back": RESIDENT,
        "tests/net/test_sealed_flood.py::test_ten_thousand_half_open_connections": RESIDENT,
        "tests/net/test_strangers.py::test_strangers_without_end": RESIDENT,
        "tests/net/test_storms.py::test_a_peer_that_has_gone_without_a_word_is_noticed": HOSTS,
        "tests/unit/test_seal_cipher.py::test_a_libcrypto_that_cannot_seal": COMPILER,
        "tests/unit/test_codecs_registry.py::test_a_codec_in_c": COMPILER,
    },
)

TSAN = Choice(
    (
        "tests/net/test_engine*.py",
        "tests/net/test_sealed_frames.py",
        "tests/net/test_api_threads.py",
        "tests/net/test_nonces.py",
        "tests/net/test_storms.py",
        "tests/unit/test_seal.py",
        "tests/unit/test_frame.py",
    ),
    {},
    {
        "tests/net/test_engine_samples.py::TestSamples::test_what_lanes_take_of_memory": GLIBC,
    },
)
