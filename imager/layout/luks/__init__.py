"""LUKS, versions 1 and 2: headers, and reading through the encryption where that is possible.

    | header, key slots | ciphertext: sector by sector what the volume inside holds |

Nothing of what is inside is ever written anywhere: its file system's map says which sectors of
ciphertext are in use, and these are stored as they are.

Sources: "LUKS1 On-Disk Format Specification" 1.2.3; "LUKS2 On-Disk Format Specification" 1.1.1
(both in the cryptsetup project); the kernel's documentation of dm-crypt.
"""
