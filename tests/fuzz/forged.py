"""Checksums that fit whatever was changed, so that damage reaches what lies behind them.

A function that computes a checksum is made to return a number that equals every other: to a reader
the volume then looks as if the damage had been there before the checksum was computed. So there is
no need for code that knows where each format keeps its checksums and what they cover.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock


class AnyBytes(bytes):
    """Bytes that equal all others, also repeated or in part."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = bytes.__hash__

    def __getitem__(self, key: Any) -> Any:
        return self

    def __mul__(self, times: object) -> AnyBytes:
        return self

    def ljust(self, *_: object) -> AnyBytes:
        """Padded."""
        return self


class Anything(int):
    """A number that equals all others, also after masks and shifts; or a hash."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__

    def __and__(self, other: int) -> Anything:
        return self

    __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __and__
    __lshift__ = __rshift__ = __add__ = __radd__ = __and__

    def __invert__(self) -> Anything:
        return self

    def to_bytes(self, *_: object, **__: object) -> AnyBytes:
        """As `int.to_bytes`."""
        return AnyBytes()

    def digest(self) -> AnyBytes:
        """As that of hashlib's objects."""
        return AnyBytes()


_FITTING = Anything(0)


@contextmanager
def forged(functions: Iterable[str]) -> Iterator[None]:
    """Let every checksum that one of these dotted names computes be right."""
    with ExitStack() as stack:
        for name in functions:
            module, _, attribute = name.rpartition(".")
            place = importlib.import_module(module)
            stack.enter_context(mock.patch.object(place, attribute, lambda *_: _FITTING))
        yield
