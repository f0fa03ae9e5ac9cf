"""What was found so far, in a file from which a later call goes on."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.same_bits.answers import Told

WITHOUT_EFFECT = ("output", "seconds", "settings")
"""Options that may differ between calls that continue each other."""


@dataclass(slots=True)
class Finding:
    """What came of one setting and kind of request.

    Attributes:
        parted: for each answer that differs, the place of its first other token or log probability.
        portions: parts of the work that are done.
    """

    setting: str
    kind: str
    compared: int = 0
    parted: dict[str, int] = field(default_factory=dict)
    drafted: int = 0
    hits: int = 0
    preempted: int = 0
    seconds: float = 0.0
    portions: int = 0

    def __str__(self) -> str:
        counts = {"tokens drafted": self.drafted, "tokens found": self.hits, "preemptions": self.preempted}
        notes = [f"{count} {what}" for what, count in counts.items() if count]
        text = f"{len(self.parted)} of {self.compared}"
        return f"{text} ({', '.join(notes)})" if notes else text


class Record:
    """Findings and the answers that they are compared with.

    Args:
        options: of the command. Where ``options.output`` is there already, its content is continued.

    Raises:
        SystemExit: the file is that of a call with other options.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = {k: str(v) for k, v in vars(options).items() if k not in WITHOUT_EFFECT}
        self._path: Path | None = options.output
        self.capabilities: dict[str, Any] = {}
        self.findings: list[Finding] = []
        self.alone: dict[str, Told] = {}
        if self._path is not None and self._path.is_file():
            found = json.loads(self._path.read_text())
            if found["options"] != self._options:
                raise SystemExit(f"{self._path} is of other options: {found['options']}")
            self.capabilities = found["capabilities"]
            self.findings = [Finding(**finding) for finding in found["findings"]]
            answers = json.loads(self._answers.read_text())
            self.alone = {name: Told(**told) for name, told in answers.items()}

    @property
    def _answers(self) -> Path:
        assert self._path is not None
        return self._path.with_suffix(".answers.json")

    def finding(self, setting: str, kind: str) -> Finding:
        """That of a setting and kind, new or begun."""
        for finding in self.findings:
            if (finding.setting, finding.kind) == (setting, kind):
                return finding
        self.findings.append(Finding(setting, kind))
        return self.findings[-1]

    def write(self) -> None:
        """Both files, where an output is wanted."""
        if self._path is None:
            return
        self._answers.write_text(json.dumps({name: asdict(told) for name, told in self.alone.items()}))
        findings = [asdict(finding) for finding in self.findings]
        result = {"options": self._options, "capabilities": self.capabilities, "findings": findings}
        self._path.write_text(json.dumps(result, indent=1) + "\n")
