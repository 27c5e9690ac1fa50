"""The passphrases that a person has given for a capture, and what they open."""

from __future__ import annotations

from collections.abc import Mapping

from imager.errors import NotUnderstoodError, UsageError
from imager.filesystems import Volume
from imager.layout.luks.cipher import Decrypted, require_cipher
from imager.layout.luks.header import Header
from imager.layout.luks.unlock import volume_key

_CLOSED = "it is encrypted, and not open (--unlock reads what is in use)"


class Keys:
    """Opens LUKS volumes; a key once found is kept in memory, as finding it takes seconds.

    A disk in use is looked at several times.
    """

    def __init__(self, passphrases: Mapping[int | None, bytes] | None = None) -> None:
        """By the number of the partition that the volume lies in; None: the disk itself."""
        self._passphrases = dict(passphrases or {})
        self._keys: dict[tuple[int | None, Header, bytes], bytes] = {}
        self._met: set[int | None] = set()

    @property
    def numbers(self) -> frozenset[int | None]:
        """The partitions of which there is a passphrase."""
        return frozenset(self._passphrases)

    def open(self, volume: Volume, header: Header, number: int | None) -> Volume:
        """What is in the LUKS volume `volume`, which lies in partition `number`.

        NotUnderstoodError without a passphrase or for another cipher; UsageError where the
        passphrase is wrong; MissingToolError, ReadFailedError.
        """
        passphrase = self._passphrases.get(number)
        if passphrase is None:
            raise NotUnderstoodError(_CLOSED)
        require_cipher(header)
        known = (number, header, volume.read(0, 4096))
        if known not in self._keys:
            key = volume_key(volume, header, passphrase)
            if key is None:
                raise UsageError(f"the passphrase does not open {_place(number)}")
            self._keys[known] = key
        return Decrypted(volume, header, self._keys[known])

    def met(self, number: int | None) -> None:
        """There is a LUKS volume in partition `number`, whatever becomes of it."""
        self._met.add(number)

    def require_used(self) -> None:
        """UsageError for a passphrase that was for nothing: there is no LUKS to be opened by it."""
        for number in self._passphrases:
            if number not in self._met:
                raise UsageError(f"there is no LUKS volume to unlock in {_place(number)}")


def _place(number: int | None) -> str:
    return "the disk" if number is None else f"partition {number}"
