"""What is on a disk: its partition table, the volumes in it, and what between them must be kept.

Everything here only reads, through a `Volume`, and trusts no number that it reads.
`analyse.analyse` is the entry; `relocate.relocate` fits a GPT to a disk of another size.
"""
