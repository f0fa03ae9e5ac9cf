"""Write the tables of the reference anew, from the schemas.

.venv/bin/python -m docs.reference             writes the pages in docs/reference/
.venv/bin/python -m docs.reference --check     writes nothing; exit status 1 if a page is out of date
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from docs.reference.tables import table_of

HERE = Path(__file__).resolve().parent
TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(\n<!-- end -->)", re.S)


def pages() -> dict[Path, str]:
    """Each page of the reference as it must be: its own text, with tables of today's schemas."""
    found = {}
    for path in sorted(HERE.glob("[ez][nh]/*.md")):

        def fresh(match: re.Match[str], language: str = path.parent.name) -> str:
            return f"{match[1]}\n{table_of(match[2], language)}\n{match[3]}"

        found[path] = TABLE.sub(fresh, path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only say which pages are out of date")
    check = parser.parse_args().check
    stale = {path: text for path, text in pages().items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        print(f"{'out of date' if check else 'written'}: {path.relative_to(HERE.parents[1])}")
        if not check:
            path.write_text(text, encoding="utf-8")
    sys.exit(bool(stale) if check else 0)


if __name__ == "__main__":
    main()
