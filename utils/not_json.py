"""Why a configuration file cannot be parsed, for who wrote it."""

from __future__ import annotations

import re

import yaml

_FOREIGN_COMMENT = re.compile(r'(?:^|[,{}\[\]"\del])\s*(?://|/\*)')
"""As other dialects of JSON have it: at the beginning of a line, or behind a value."""


def explain(text: str, error: yaml.MarkedYAMLError) -> str:
    """`LINE: not valid JSON: REASON` of the file with this text."""
    line = error.problem_mark.line + 1 if error.problem_mark else 1
    for number, content in enumerate(text.splitlines()[:line], start=1):
        if _FOREIGN_COMMENT.search(re.sub(r'"(?:[^"\\]|\\.)*"', '""', content)):
            return f"{number}: not valid JSON: a comment begins with '#'"
    return f"{line}: not valid JSON: {error.problem}"
