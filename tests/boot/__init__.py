"""Boot tests: real firmware, real disks, a real system, all of them emulated by QEMU."""
