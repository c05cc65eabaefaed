"""Stops before a CUDA build of torch is downloaded: the tests need the CPU build, a tenth of the size.

Argument: a report of `pip install --dry-run --no-deps --report`. Exit status 1, with advice, where the chosen torch
would pull CUDA packages.
"""

import json
import sys
from pathlib import Path

from packaging.requirements import Requirement

CUDA = ("cuda", "nvidia-", "triton")

ADVICE = """\
The package index offers torch {version} as a CUDA build only (it needs {first} and {others} more), several gigabytes
that these tests have no use for. Name an index that has the CPU build (version {version}+cpu) through pip's own
configuration, then run this again: set PIP_EXTRA_INDEX_URL to its URL in the environment, or
"pip config set global.extra-index-url URL"; PyTorch's installation page gives the URL of its CPU index."""


def main(report: Path) -> int:
    (torch,) = (item["metadata"] for item in json.loads(report.read_text())["install"])
    needs = [Requirement(text) for text in torch.get("requires_dist", [])]
    cuda = [need.name for need in needs if need.name.startswith(CUDA) and applies(need)]
    if cuda:
        print(ADVICE.format(version=torch["version"], first=cuda[0], others=len(cuda) - 1), file=sys.stderr)
    return 1 if cuda else 0


def applies(need: Requirement) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": ""})


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
