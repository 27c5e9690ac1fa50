"""Damaged volumes by the thousand for everything that reads a disk: `python -m tests.fuzz`.

    targets.py   what is fuzzed: a volume of a few MiB, and the reader that looks at it
    damage.py    a volume with some bytes changed, chosen among those that the reader looks at
    forged.py    checksums that fit whatever was changed
    judge.py     one reader on one damaged volume: what is a finding
    child.py     many of them in a process of its own, with limits of time and memory

A reader may refuse (`NotUnderstoodError`, `ReadFailedError`) or answer; anything else is a finding:
another exception, too much time or memory, a map that is not within the volume, or one that leaves
out more of what the sound volume had in use than the changed bytes can account for.
"""
