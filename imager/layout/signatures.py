"""Which file system, LVM, LUKS or RAID signature stands at an offset.

Good enough to say "something may be here", which is all that a gap between partitions needs: what
finds nothing here was a partition of no kind that this table knows. Offsets and magics are those
of each format's documentation, as also listed in file(1)'s magic and libblkid's manual. Short
magics are widened by neighbouring fields of few legal values, so that random data do not hit.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from imager.filesystems import Volume

SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, rb"XFSB", "XFS"),
    (0, rb"LUKS\xba\xbe\0[\x01\x02]", "LUKS"),
    (0, rb"\xfc\x4e\x2b\xa9\x01\0\0\0", "md RAID 1.1"),
    (0, rb"hsqs|sqsh", "squashfs"),
    (0, rb"dmvdo001", "VDO"),
    (0, rb"verity\0\0", "dm-verity"),
    (0, rb"integrt\0", "dm-integrity"),
    (0, rb"SnAp\x01\0\0\0", "dm-snapshot"),
    (3, rb"NTFS {4}", "NTFS"),
    (3, rb"EXFAT {3}", "exFAT"),
    (3, rb"-FVE-FS-", "BitLocker"),
    (3, rb"ReFS\0{4}", "ReFS"),
    (32, rb"NXSB", "APFS"),
    (32, rb"ORCLDISK", "Oracle ASM"),
    (54, rb"FAT(?:12|16|  ) {3}", "FAT"),
    (82, rb"FAT32 {3}", "FAT"),
    (0, rb"LABELONE[\s\S]{16}LVM2 001", "LVM2"),
    (512, rb"LABELONE[\s\S]{16}LVM2 001", "LVM2"),
    (1024, rb"LABELONE[\s\S]{16}LVM2 001", "LVM2"),
    (1536, rb"LABELONE[\s\S]{16}LVM2 001", "LVM2"),
    (512, rb"!Stra0tis\x86\xff\x02\^\x41rh", "Stratis"),
    (1024, rb"H\+\0\x04|HX\0\x05", "HFS+"),
    (1024, rb"\x10\x20\xf5\xf2", "F2FS"),
    (1024, rb"\xe2\xe1\xf5\xe0", "EROFS"),
    (1024, rb"[\x01\x02]\0{5}\x34\x34", "NILFS2"),
    (1024, rb"OCFSV2", "OCFS2"),
    (2048, rb"OCFSV2", "OCFS2"),
    (4096, rb"OCFSV2", "OCFS2"),
    # s_magic, s_state (flags up to 0x20), s_errors
    (1080, rb"\x53\xef[\0-\x3f]\0[\0-\x03]\0", "ext2/3/4"),
    (4086, rb"SWAPSPACE2|SWAP-SPACE|S[12]SUSPEND", "swap"),
    (8182, rb"SWAPSPACE2|SWAP-SPACE|S[12]SUSPEND", "swap"),
    (16374, rb"SWAPSPACE2|SWAP-SPACE|S[12]SUSPEND", "swap"),
    (32758, rb"SWAPSPACE2|SWAP-SPACE|S[12]SUSPEND", "swap"),
    (65526, rb"SWAPSPACE2|SWAP-SPACE|S[12]SUSPEND", "swap"),
    (4096, rb"\xfc\x4e\x2b\xa9\x01\0\0\0", "md RAID 1.2"),
    (4120, rb"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcache"),
    (4120, rb"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "bcachefs"),
    (8244, rb"Re(?:IsErFs|IsEr2Fs|IsEr3Fs)", "reiserfs"),
    (65588, rb"Re(?:IsErFs|IsEr2Fs|IsEr3Fs)", "reiserfs"),
    (65536, rb"ReIsEr4", "reiser4"),
    (9564, rb"\x54\x19\x01\0|\0\x01\x19\x54|\x19\x01\x54\x19|\x19\x54\x01\x19", "UFS"),
    (66908, rb"\x54\x19\x01\0|\0\x01\x19\x54|\x19\x01\x54\x19|\x19\x54\x01\x19", "UFS"),
    # zec_magic of the label's boot block, in either byte order
    (16344, rb"\x11\x7a\x0c\xb1\x7a\xda\x10\x02|\x02\x10\xda\x7a\xb1\x0c\x7a\x11", "ZFS"),
    (32768, rb"JFS1", "JFS"),
    (32769, rb"CD001|BEA01|NSR0[23]", "ISO 9660 or UDF"),
    (65536, rb"\x01\x16\x19\x70", "GFS2"),
    (65600, rb"_BHRfS_M", "btrfs"),
)
"""(offset in bytes, regular expression of the magic, name)."""

_MATCHERS: tuple[tuple[Callable[..., object], int, str], ...] = tuple(
    (re.compile(magic).match, offset, name) for offset, magic, name in SIGNATURES
)
_SPAN = 68 * 1024
"""One read that reaches past the last magic: cheaper than several small ones on every medium."""


def find_signature(volume: Volume, offset: int) -> str | None:
    """The name of the signature at `offset` (bytes), or None; ReadFailedError as `volume.read`.

    Near the volume's end only what fits in is looked at; past it there is nothing.
    """
    size = min(_SPAN, volume.size - offset)
    if size <= 0:
        return None
    window = volume.read(offset, size)
    for match, at, name in _MATCHERS:
        if match(window, at):
            return name
    return None
