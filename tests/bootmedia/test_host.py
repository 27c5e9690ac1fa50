"""Programs that a build runs: their failure in a line, and an end in order."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bootmedia import host
from imager.errors import ImagerError


def script(folder: Path, text: str) -> Path:
    path = folder / "program"
    path.write_text(text)
    return path


def test_a_failure_is_the_programs_own_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = script(tmp_path, "echo I: fetching; echo 'E: no such package'; echo bye; exit 3\n")
    with pytest.raises(ImagerError) as caught:
        host.run(("sh", program), "making the base", log)
    assert str(caught.value) == f"making the base failed: E: no such package (log: {log})"
    assert "I: fetching" in log.read_text()


def test_a_silent_failure(tmp_path: Path) -> None:
    with pytest.raises(ImagerError, match="failed: it said nothing"):
        host.run(("sh", script(tmp_path, "exit 1\n")), "making the base")


def test_what_is_ended_cleans_up_first(tmp_path: Path) -> None:
    """mmdebstrap unmounts what it has mounted when it is asked to end, not when it is killed."""
    begun, cleaned = tmp_path / "begun", tmp_path / "cleaned"
    program = script(
        tmp_path,
        f"trap 'touch {cleaned}; exit 1' TERM; touch {begun}; while :; do sleep 0.05; done\n",
    )

    def interrupt(number: int, frame: object) -> None:
        if begun.exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            host.run(("sh", program), "making the base")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert cleaned.exists()
