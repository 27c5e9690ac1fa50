"""Reading through LUKS with its volume key, in memory, without the kernel's device-mapper.

AES-XTS, in which nearly all LUKS volumes are: IEEE 1619; "plain64" is the sector's number as the
first 8 bytes of the tweak (the kernel's dm-crypt documentation). LUKS counts sectors of 512 bytes,
also where it encrypts larger ones in one piece.
"""

from __future__ import annotations

from imager.errors import MissingToolError, NotUnderstoodError, ReadFailedError
from imager.filesystems import Volume
from imager.layout.luks.header import Header

_SECTOR = 512
_CIPHER = "aes-xts-plain64"
_KEY_SIZES = (32, 64)


class Decrypted:
    """What a LUKS volume holds; a `Volume`."""

    def __init__(self, below: Volume, header: Header, key: bytes) -> None:
        """Through `below`, which holds the header; NotUnderstoodError for another cipher.

        MissingToolError where the package for it is not installed.
        """
        require_cipher(header)
        if len(key) not in _KEY_SIZES:
            raise NotUnderstoodError("its LUKS key has a length that is not known")
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        except ImportError:
            raise MissingToolError(
                "--unlock needs a Python package: apt-get install python3-cryptography"
            ) from None
        self._below = below
        self._header = header
        self.size = header.size
        self.sector_size = max(header.sector_size, below.sector_size)
        algorithm = algorithms.AES(key)

        def decrypt(number: int, data: bytes) -> bytes:
            tweak = number.to_bytes(8, "little") + bytes(8)
            return Cipher(algorithm, modes.XTS(tweak)).decryptor().update(data)

        self._decrypt = decrypt

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`; ReadFailedError."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ReadFailedError(f"read of {size} bytes at {offset} is outside the volume")
        header, unit = self._header, self._header.sector_size
        start, end = offset // unit * unit, -(-(offset + size) // unit) * unit
        data = self._below.read(header.offset + start, end - start)
        first = header.iv_offset + start // _SECTOR
        step = unit // _SECTOR
        clear = b"".join(
            self._decrypt(first + at // unit * step, data[at : at + unit])
            for at in range(0, end - start, unit)
        )
        return clear[offset - start : offset - start + size]


def require_cipher(header: Header) -> None:
    """NotUnderstoodError where a volume of this header cannot be read with its key alone."""
    if header.cipher != _CIPHER:
        raise NotUnderstoodError(f"its cipher {header.cipher} is only read where it is open")
