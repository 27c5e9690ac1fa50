"""The volume key of a LUKS volume, by a passphrase.

`cryptsetup` checks the passphrase against the key slots. It is given a copy of the header in
memory and writes the key into a pipe, so that neither needs a device, or leaves anything in a file.
"""

from __future__ import annotations

import os
import re
import subprocess

from imager.disk import programs
from imager.errors import UsageError
from imager.filesystems import Volume
from imager.layout.luks.header import Header

_LARGEST_HEADER = 136 << 20
"""LUKS2's headers and key slots take at most 8 and 128 MiB (specification 2, section 1.2)."""
_STEP = 1 << 20
_KEY = re.compile(rb"(?:MK|Volume key) dump:\s*((?:[0-9a-fA-F]{2}\s+)+)")
_WRONG_PASSPHRASE = 2
_SECONDS = 300
"""Old machines need a minute for all key slots of a new one; a damaged count of rounds, years."""


def volume_key(volume: Volume, header: Header, passphrase: bytes) -> bytes | None:
    """The key with which `volume` is encrypted, None where the passphrase does not open it.

    Takes as long and as much memory as the key slot wants it to. Raises MissingToolError without
    cryptsetup, UsageError where that fails, ReadFailedError.
    """
    fd = os.memfd_create("luks-header")
    try:
        os.ftruncate(fd, volume.size)
        for offset in range(0, min(header.offset, _LARGEST_HEADER), _STEP):
            size = min(_STEP, header.offset - offset)
            os.pwrite(fd, volume.read(offset, size), offset)
        done = subprocess.run(
            [
                programs.find("cryptsetup", "cryptsetup-bin"),
                *("luksDump", "--batch-mode", "--dump-volume-key", "--key-file", "-"),
                f"/proc/self/fd/{fd}",
            ],
            input=passphrase,
            capture_output=True,
            pass_fds=(fd,),
            env={**os.environ, "LC_ALL": "C"},
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UsageError("cryptsetup does not come to an end with this LUKS volume") from None
    finally:
        os.close(fd)
    if done.returncode == _WRONG_PASSPHRASE:
        return None
    found = _KEY.search(done.stdout)
    if done.returncode or not found:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise UsageError(f"cryptsetup cannot open the LUKS volume: {' '.join(said) or 'no reason'}")
    return bytes.fromhex(found[1].decode())
