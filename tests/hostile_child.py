"""Runs command lines in one process of little memory, and reports what became of each.

Input: a JSON list of [arguments, path of standard input or null]. Output: a JSON list of
[exit status, standard output, standard error, seconds].
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import time
import traceback

from imager.cli import main

MEMORY = 600 << 20


def run(arguments: list[str], source: str | None) -> tuple[int, str, str, float]:
    """One command line, as from a shell."""
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        saved = os.dup(0)
        stack.callback(os.close, saved)
        stack.callback(os.dup2, saved, 0)
        fd = os.open(source or os.devnull, os.O_RDONLY)
        os.dup2(fd, 0)
        os.close(fd)
        out = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        err = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            status = main(arguments)
        except BaseException:
            status = -1
            traceback.print_exc(file=err)
    return status, out.getvalue(), err.getvalue(), time.monotonic() - begun


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    json.dump([run(*command) for command in json.load(sys.stdin)], sys.stdout)
