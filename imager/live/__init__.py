"""Capturing a disk while file systems on it are mounted, as it was at one instant.

    tracing ──► dirty map ──► precopy: rounds ──► freeze ──► instant ──► thaw
    (kernel's completed writes)      (re-read what changed)  (superblocks, watchdog)

`tracing` records which sectors are written, `dirty` remembers them, `precopy` reads them again until
few are left, `freezer` holds the file systems that `superblocks` found still for an instant, and
`watchdog` sees to it that they never stay so. `patches` keeps what was read again.
"""
