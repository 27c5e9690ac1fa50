"""What a verb is doing at the moment, and how long it will take."""

from __future__ import annotations

from imager.wording import format_duration, format_size

PHASES = {
    "capture": "Capturing",
    "resume": "Comparing what is there",
    "sample": "Sampling",
    "changes": "Following what is written, then one standstill",
    "check": "Checking",
    "merge": "Bringing in what has changed",
    "compare": "Comparing with the disk",
    "survey": "Going through the image",
    "export": "Exporting",
    "diff": "Comparing the images",
    "write": "Writing",
    "read back": "Reading back",
}
"""The phases of `imager.pipeline.Progress`."""


def phase_words(phase: str) -> str:
    """A phase for a person; those of the layout's analysis say it themselves."""
    return PHASES.get(phase) or phase[:1].upper() + phase[1:]


def rate_and_rest(done: int, total: int, seconds: float) -> str:
    """Bytes a second since the phase began `seconds` ago, and what is left: "1.2 MB/s, 3 s left"."""
    rate = done / seconds if seconds > 0 else 0
    left = format_duration((total - done) / rate) if rate else "?"
    return f"{format_size(int(rate))}/s, {left} left"
