"""Block devices and disk-image files: identity, geometry, direct reads, discard, safety.

`identity` says which disk it is, `inventory` what is on all of them, `safety` what must not be
touched; `source` reads, `target` writes. All else here serves these: `abi` is the kernel's ioctls,
`programs` runs util-linux, `sysfs` and `mounts` say what is stacked on what, `system` puts both
together.
"""
