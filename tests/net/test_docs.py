"""docs/embedding.md runs as it stands."""

import ast
import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "embedding.md"


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
