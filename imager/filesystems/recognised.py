"""Kinds of volumes that are recognised by name and stored whole, and why, in a person's words."""

from __future__ import annotations

_UNREAD = "{} is not read by this version"
_READ_ONLY = "{} has no free space to leave out"
_ENCRYPTED = "encrypted with {}: what is in use cannot be seen"
_MEMBER = "part of {}: what is in use cannot be seen from this disk alone"

_REASONS: dict[str, str] = {
    "adfs": _UNREAD.format("ADFS"),
    "apfs": _UNREAD.format("APFS (Apple)"),
    "bcache": _MEMBER.format("a bcache set"),
    "bcachefs": _UNREAD.format("bcachefs"),
    "befs": _UNREAD.format("BeFS"),
    "BitLocker": _ENCRYPTED.format("BitLocker"),
    "ceph_bluestore": _MEMBER.format("a Ceph cluster"),
    "cramfs": _READ_ONLY.format("cramfs"),
    "ddf_raid_member": _MEMBER.format("a RAID (DDF)"),
    "drbd": _MEMBER.format("a DRBD pair"),
    "erofs": _READ_ONLY.format("EROFS"),
    "exfs": _UNREAD.format("EXFS"),
    "gfs2": _UNREAD.format("GFS2"),
    "hfs": _UNREAD.format("HFS (Apple)"),
    "hpfs": _UNREAD.format("HPFS (OS/2)"),
    "iso9660": _READ_ONLY.format("ISO 9660"),
    "isw_raid_member": _MEMBER.format("a RAID (Intel)"),
    "jbd": "a journal of an ext file system on another volume",
    "jfs": _UNREAD.format("JFS"),
    "minix": _UNREAD.format("Minix"),
    "nilfs2": _UNREAD.format("NILFS2"),
    "ocfs2": _UNREAD.format("OCFS2"),
    "ReFS": _UNREAD.format("ReFS (Windows)"),
    "reiser4": _UNREAD.format("Reiser4"),
    "reiserfs": _UNREAD.format("ReiserFS"),
    "romfs": _READ_ONLY.format("romfs"),
    "squashfs": _READ_ONLY.format("SquashFS"),
    "squashfs3": _READ_ONLY.format("SquashFS"),
    "stratis": _MEMBER.format("a Stratis pool"),
    "udf": _UNREAD.format("UDF"),
    "ufs": _UNREAD.format("UFS (BSD, Solaris)"),
    "vdo": _MEMBER.format("a VDO volume"),
    "VMFS": _UNREAD.format("VMFS (VMware)"),
    "VMFS_volume_member": _UNREAD.format("VMFS (VMware)"),
    "vxfs": _UNREAD.format("VxFS"),
    "zfs_member": _MEMBER.format("a ZFS pool"),
}
"""blkid's name of a type to the reason. What has a reader does not belong here."""


def reason_to_keep(kind: str) -> str:
    """Why a volume that blkid calls `kind`, for which there is no reader, is stored whole."""
    return _REASONS.get(kind, _UNREAD.format(kind))
