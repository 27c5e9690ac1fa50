"""Acting at each step by which a program changes what others see."""

from __future__ import annotations

from collections.abc import Callable


def preceded(real: Callable[..., object], act: Callable[[], object]) -> Callable[..., object]:
    """`real`, which calls `act` first."""

    def call(*arguments: object, **more: object) -> object:
        act()
        return real(*arguments, **more)

    return call
