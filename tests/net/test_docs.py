"""docs/embedding.md runs as it stands, and so do the README's commands that make keys."""

import ast
import asyncio
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvwire import Identity, KeyFiles

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "embedding.md"


@pytest.mark.usefixtures("nothing_left")
async def test_embedding(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text()
    snippets = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(snippets) > 8
    names: dict[str, Any] = {}
    for snippet in snippets:
        first_line = text.count("\n", 0, snippet.start(1))
        code = compile("\n" * first_line + snippet[1], str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        async with asyncio.timeout(30):
            running = eval(code, names)
            if inspect.isawaitable(running):
                await running
    said = capsys.readouterr().out
    assert all(f"full {layer}" in said for layer in (0, 2, 4, 6))
    assert "360448 bytes in" in said
    assert "the peer aborted: the client went away" in said


SHIMS = {
    "kvwire-keys": f'exec {shlex.quote(sys.executable)} -m kvwire.cli.keys "$@"',
    "ssh": 'cd "$HOSTS/$1" && shift && exec "$@"',
    "scp": 'for a; do shift; case $a in *:*) a="$HOSTS/${a%%:*}/${a#*:}";; esac; set -- "$@" "$a"; done; exec cp "$@"',
}
"""Hosts are folders of $HOSTS, whose network is the file system."""


def test_keys_as_the_readme_makes_them(tmp_path: Path) -> None:
    binaries, hosts = tmp_path / "bin", tmp_path / "hosts"
    binaries.mkdir()
    for name, script in SHIMS.items():
        (binaries / name).write_text(f"#!/bin/sh\n{script}\n")
        (binaries / name).chmod(0o755)
    for host in ("decode", "prefill", "ca", "host-7"):
        (hosts / host).mkdir(parents=True)
    section = (ROOT / "README.md").read_text().partition("## Keys")[2].partition("\n## ")[0]
    commands = re.findall(r"^(\w+)\$ +(.+)$", section, re.MULTILINE)
    assert len(commands) > 5
    path = {"PATH": f"{binaries}:{os.environ['PATH']}", "HOSTS": str(hosts)}
    for host, command in commands:
        done = subprocess.run(
            ["sh", "-ec", command], cwd=hosts / host, env=os.environ | path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), command
    for host, peer in (("decode", "prefill"), ("prefill", "decode")):
        (shown,) = KeyFiles.read(hosts / peer / "kvwire-keys" / "certificate.pem").own
        assert Identity.load(hosts / host / "kvwire-keys").identify(shown.der).subject.role == "both"
    assert Identity.load(hosts / "host-7" / "kvwire-keys").subject.uri == "kvwire://acme/prefill/eu-west/host-7"
