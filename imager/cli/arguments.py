"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_common(parser: argparse.ArgumentParser) -> None:
    """--json and --quiet."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--quiet", "-q", action="store_true", help="no progress and no result but errors"
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads."""
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads to use (default: one for each core)"
    )


def add_parents(parser: argparse.ArgumentParser) -> None:
    """--parents."""
    parser.add_argument(
        "--parents",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="look for images that an incremental one needs in this folder, too, if they do not lie "
        "beside it; can be given several times",
    )


def partition_list(text: str) -> tuple[int, ...]:
    """Partition numbers such as 1,3."""
    try:
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of partition numbers such as 1,3")
    return numbers
