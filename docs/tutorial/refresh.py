"""Puts what the experiments print now into the chapters, in both languages, and draws the figures again.

.venv/bin/python -m docs.tutorial.refresh               all but times
.venv/bin/python -m docs.tutorial.refresh --measured    times, too: on a machine that does nothing else

What the text says of the numbers is left to whoever runs this.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

from docs.tutorial.figures.draw import drawn

HERE = Path(__file__).resolve().parent
EXAMPLE = re.compile(
    r"(```shell\n\.venv/bin/python ([^\n]*)\n```\n\n```text( measured)?\n).*?(^```)", re.M | re.S
)


@cache
def printed(arguments: str) -> str:
    """What Python prints with these arguments."""
    command = [sys.executable, *shlex.split(arguments)]
    return subprocess.run(command, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True, check=True).stdout


def refresh(page: Path, *, measured: bool) -> bool:
    """Whether `page` changed."""

    def run(example: re.Match[str]) -> str:
        head, arguments, times, end = example.groups()
        if times and not measured:
            return example[0]
        return f"{head}{printed(arguments).rstrip()}\n{end}"

    before = page.read_text(encoding="utf-8")
    after = EXAMPLE.sub(run, before)
    page.write_text(after, encoding="utf-8")
    return after != before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measured", action="store_true", help="run what measures times as well")
    args = parser.parse_args()
    for path, content in drawn().items():
        path.write_text(content, encoding="utf-8")
    for page in sorted(HERE.glob("[ez][nh]/*.md")):
        if refresh(page, measured=args.measured):
            print(f"changed: {page.relative_to(HERE)}")


if __name__ == "__main__":
    main()
