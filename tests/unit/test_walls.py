"""The walls: who may import whom inside kvwire (docs/design.md, under Walls), as data, and walked."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BASE = {"errors", "types", "digests", "config", "version", "forks"}
# Of the data plane: what neither owns a thread nor touches a socket, so that a test can drive it from Python.
PURE_EXT = {"_ext.crc32c", "_ext.frame", "_ext.lanelog", "_ext.layout", "_ext.ledger", "_ext.sendqueue"}

# A name stands for the module or package and all below it. "kvwire" is the public API: `import kvwire` and the names
# it exports, no submodule.
MAY_IMPORT: dict[str, set[str]] = {
    "version": set(),
    "forks": set(),
    "errors": BASE,
    "types": BASE,
    "digests": BASE,
    "config": BASE,
    "_ext": {"errors"},
    "wire": BASE | PURE_EXT,
    "congestion": BASE | PURE_EXT,
    "security": BASE | {"_ext", "wire.keys"},
    "codecs": BASE | {"_ext"},
    "pool": BASE | {"_ext"},
    "telemetry": {"errors", "types", "congestion"},
    "emulate": set(),
    "integrations": {"kvwire"},
    "routing": {"kvwire"},
    "cli": {"kvwire", "emulate", "congestion", "telemetry", "codecs"}
    | {"_ext.build_info", "_ext.cipher", "_ext.codec", "_ext.crc32c", "_ext.libcrypto", "_ext.zstdlib"},
}
BELOW_ASYNCIO = BASE | {"_ext", "wire", "congestion", "security", "codecs", "pool", "telemetry"}
ASYNCIO = {"sockets", "link", "lanes", "driver", "control", "dialler", "acceptor", "node", "transfer", "outgoing"}
ASYNCIO |= {"incoming", "outcomes", "guard", "journal", "exchange", "egress", "sampling", "codings"}
ASYNCIO |= {"compression", "cores"}
MAY_IMPORT |= {part: BELOW_ASYNCIO | ASYNCIO for part in {"__init__"} | ASYNCIO}

PURE = {"wire", "congestion"}
IMPURE_MODULES = {"asyncio", "socket", "time", "random", "logging"}

MOST_LINES = 420

PYX_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<module>[.\w]+)[ \t]+c?import[ \t]+(?P<names>\([^)]*\)|[^\n]*)"
    r"|c?import[ \t]+(?P<modules>[^\n(]+))$",
    re.MULTILINE,
)


def imports(path: Path, root: Path) -> Iterator[str]:
    """Absolute dotted names that a file imports; `from m import n` gives m.n where that is a module, else m."""
    text = path.read_text()
    package = path.parent.relative_to(root).parts

    def of(module: str, names: list[str]) -> Iterator[str]:
        dots = len(module) - len(module.lstrip("."))
        base = [*package[: len(package) - dots + 1], *filter(None, module[dots:].split("."))] if dots else [module]
        for name in names:
            place = root.joinpath(*".".join(base).split("."), name)
            is_module = place.is_dir() or any(place.with_suffix(s).exists() for s in (".py", ".pyx", ".pxd"))
            yield ".".join([*base, name] if is_module else base)

    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from of("." * node.level + (node.module or ""), [alias.name for alias in node.names])
    else:
        for match in PYX_IMPORT.finditer(text):
            listed = re.sub(r"#.*|[()\\]", " ", match["names"] or match["modules"])
            names = [part.split()[0] for part in listed.split(",") if part.strip()]
            yield from of(match["module"], names) if match["module"] else names


def allowed(target: str, rules: set[str]) -> bool:
    return any(target == rule or target.startswith(rule + ".") for rule in rules)


def faults(root: Path) -> list[str]:
    """Every breach of the walls below root/kvwire, and in root/examples."""
    found = []
    base_graph: dict[str, set[str]] = {}
    files = [path for suffix in ("py", "pyx", "pxd") for path in sorted(root.glob(f"kvwire/**/*.{suffix}"))]
    for path in [*files, *sorted(root.glob("examples/**/*.py"))]:
        where = path.relative_to(root)
        part = where.with_suffix("").parts[1] if where.parts[0] == "kvwire" else "integrations"
        if part not in MAY_IMPORT:
            found.append(f"{where}: {part} is not in the table")
            continue
        for name in imports(path, root):
            top, _, target = name.partition(".")
            if part in PURE and top in IMPURE_MODULES:
                found.append(f"{where}: pure, imports {name}")
            if top != "kvwire":
                continue
            if part in BASE:
                base_graph.setdefault(part, set()).add(target)
            if target == "":
                if "kvwire" not in MAY_IMPORT[part]:
                    found.append(f"{where}: imports {name}, the public API")
            elif not allowed(target, MAY_IMPORT[part] | ({part} if where.parts[0] == "kvwire" else set())):
                found.append(f"{where}: imports {name}")
    try:
        TopologicalSorter(base_graph).prepare()
    except CycleError as error:
        found.append(f"kvwire: cycle {' -> '.join(error.args[1])}")
    return found


def test_every_import_keeps_to_the_table() -> None:
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("wire/session.py", "import asyncio", "pure, imports asyncio"),
        ("wire/session.py", "def f():\n    from time import monotonic", "pure, imports time"),
        ("wire/session.py", "from kvwire._ext import engine", "imports kvwire._ext.engine"),
        ("wire/session.py", "from .._ext.engine import Engine", "imports kvwire._ext.engine"),
        ("wire/deep/a.py", "from ... import node", "imports kvwire.node"),
        ("pool.py", "from .node import Node", "imports kvwire.node"),
        ("pool.py", "import kvwire", "imports kvwire, the public API"),
        ("errors.py", "from kvwire import config", "cycle config -> errors -> config"),
        ("cli/bench.py", "from kvwire._ext.engine import Engine", "imports kvwire._ext.engine"),
        ("cli/bench.py", "import kvwire.types", "imports kvwire.types"),
        ("_ext/a.pyx", "from kvwire.types cimport (\n    Manifest,\n)", "imports kvwire.types"),
        ("_ext/a.pyx", "cdef f():\n    import os, kvwire.node as n  # why", "imports kvwire.node"),
        ("_ext/a.pyx", "from .. cimport pool", "imports kvwire.pool"),
        ("stray.py", "", "stray is not in the table"),
        ("../examples/a.py", "from kvwire import node", "imports kvwire.node"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, file: str, text: str, fault: str) -> None:
    for name, content in {
        "errors.py": "",
        "config.py": "from kvwire.errors import ConfigError",
        "node.py": "from kvwire import errors\nimport asyncio",
        "pool.py": "",
        "_ext/engine.pyx": "from kvwire.errors import KvwireError\nfrom libc.stdint cimport uint32_t",
        "wire/ok.py": "from kvwire._ext import ledger\nfrom kvwire._ext.ledger import Ledger\nimport struct",
        "_ext/ledger.pyx": "",
        "cli/ok.py": "import kvwire\nfrom kvwire import Node\nimport time",
        file: text,
    }.items():
        path = tmp_path / "kvwire" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert [found.partition(": ")[2] for found in faults(tmp_path)] == [fault]


def test_no_file_outgrows_a_reader() -> None:
    patterns = ("*.py", "*.pyx", "*.pxd", "*.pyi", "*.h", "*_impl.c")  # the other .c files are Cython's
    sources = [path for pattern in patterns for path in ROOT.glob(f"kvwire/**/{pattern}")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources}
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_every_extension_module_is_typed() -> None:
    assert [path.name for path in ROOT.glob("kvwire/**/*.pyx") if not path.with_suffix(".pyi").exists()] == []
