"""LVM2, read only: label and metadata of a physical volume, and the logical volumes they describe.

    | label | metadata area: text, in a ring | ... | extent 0 | extent 1 | ... | (second area) |
                                                   ^ pe_start

Sources: lvm2's man pages lvm(8), lvmthin(7), lvmraid(7), pvcreate(8); the on-disk structures are
those of lvm2's headers lib/label/label.h and lib/format_text/layout.h, described in libvslvm's
"Logical Volume Manager (LVM) format" (documentation folder of that project).
"""
