"""All boot tests, and their results as a table: python -m tests.boot.matrix [PYTEST OPTION ...]

A run of some of them (-k, -m) renews their rows and leaves the others as they are.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

FOLDER = Path(__file__).parent
TABLE = FOLDER.parent.parent / "docs/boot-matrix.md"
_HEAD = """\
# Boot tests

Each cell is a machine in QEMU, in software emulation: its seconds say little about real machines.
`make test-boot` runs those marked *ci*; `make test-boot-all` runs all, and writes this table. Seconds
include what is made for the cell (disks, media) and, for the first of a run, the guest.

| cell | seconds | result | date |
|---|---|---|---|
"""
_ROW = re.compile(r"\| (?P<cell>.+?) \| (?P<seconds>\d+) \| (?P<result>\w+) \| (?P<date>[\d-]+) \|")


class Row(NamedTuple):
    """The last result of a cell."""

    cell: str
    seconds: int
    result: str
    date: str


class Results:
    """A pytest plugin that gathers what became of each test."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a phase of a test up; it passed if all phases did."""
        cell = cell_name(report.nodeid, "ci" in report.keywords)
        seconds = self._seconds.get(cell, 0.0) + report.duration
        self._seconds[cell] = seconds
        failed = report.failed or (cell in self.rows and self.rows[cell].result == "failed")
        result = "failed" if failed else "passed"
        self.rows[cell] = Row(cell, round(seconds), result, f"{datetime.now(UTC):%Y-%m-%d}")


def cell_name(node: str, ci: bool) -> str:
    """A test's name for people: "restored bios usb virtio same"."""
    name = node.rpartition("::")[2].removeprefix("test_")
    words = re.sub(r"[\[\]_-]+", " ", name).strip()
    return f"{words} *(ci)*" if ci else words


def read_table(text: str) -> dict[str, Row]:
    """The rows of an earlier table."""
    rows = (
        Row(match["cell"], int(match["seconds"]), match["result"], match["date"])
        for match in _ROW.finditer(text)
    )
    return {row.cell: row for row in rows}


def main(options: list[str]) -> int:
    """Run the tests and write the table; pytest's exit status."""
    results = Results()
    words = ["-o", "timeout=3600", *options, str(FOLDER)]
    status = pytest.main(words, plugins=[results])
    rows = read_table(TABLE.read_text()) if TABLE.exists() else {}
    rows |= results.rows
    lines = (f"| {row.cell} | {row.seconds} | {row.result} | {row.date} |" for row in rows.values())
    TABLE.write_text(_HEAD + "".join(f"{line}\n" for line in sorted(lines)))
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
