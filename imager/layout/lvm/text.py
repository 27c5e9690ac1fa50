"""LVM's configuration text: sections, and keys with numbers, strings or lists (lvm.conf(5)).

root {
    id = "..."
    status = ["READ", "WRITE"]
    segment1 {
        stripes = ["pv0", 0]
    }
}
"""

from __future__ import annotations

import re
from typing import Union

from imager.errors import NotUnderstoodError

Scalar = int | float | str
Value = Union[Scalar, list[Scalar], "Section"]
Section = dict[str, Value]

_MAX_DEPTH = 16
_MAX_TOKENS = 2_000_000
_TOKEN = re.compile(
    r"""(?:\s++|\#[^\n]*+)*+(?:
        (?P<string>"(?:[^"\\]|\\["\\])*+")
      | (?P<number>-?\d{1,20}(?:\.\d{1,20})?(?![\w.]))
      | (?P<name>[A-Za-z0-9_.+-]+)
      | (?P<sign>[{}=\[\],])
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.ASCII,
)
_ESCAPED = re.compile(r'\\(["\\])')


def parse(text: str) -> Section:
    """The sections of a text; NotUnderstoodError where it is none."""
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._tokens = 0
        self._kind = self._token = ""
        self._advance()

    def parse(self) -> Section:
        root: Section = {}
        sections = [root]
        while self._kind != "end":
            if self._kind == "sign" and self._token == "}":
                if len(sections) == 1:
                    raise NotUnderstoodError("LVM metadata are not well formed")
                sections.pop()
                self._advance()
                continue
            name = self._name()
            if name in sections[-1]:
                raise NotUnderstoodError("LVM metadata say something twice")
            if self._skip("{"):
                inner: Section = {}
                sections[-1][name] = inner
                sections.append(inner)
                if len(sections) > _MAX_DEPTH:
                    raise NotUnderstoodError("LVM metadata are nested too deeply")
            elif self._skip("="):
                sections[-1][name] = self._list() if self._skip("[") else self._scalar()
            else:
                raise NotUnderstoodError("LVM metadata are not well formed")
        if len(sections) != 1:
            raise NotUnderstoodError("LVM metadata are cut short")
        return root

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._position)
        self._tokens += 1
        if match is None or match.lastgroup is None or self._tokens > _MAX_TOKENS:
            raise NotUnderstoodError("LVM metadata are not well formed")
        self._position = match.end()
        self._kind, self._token = match.lastgroup, match[match.lastgroup]

    def _skip(self, sign: str) -> bool:
        found = self._kind == "sign" and self._token == sign
        if found:
            self._advance()
        return found

    def _name(self) -> str:
        if self._kind not in ("name", "number"):  # a volume may be called 2024
            raise NotUnderstoodError("LVM metadata are not well formed")
        name = self._token
        self._advance()
        return name

    def _scalar(self) -> Scalar:
        kind, token = self._kind, self._token
        self._advance()
        if kind == "number":
            return float(token) if "." in token else int(token)
        if kind == "string":
            return _ESCAPED.sub(r"\1", token[1:-1])
        raise NotUnderstoodError("LVM metadata are not well formed")

    def _list(self) -> list[Scalar]:
        found: list[Scalar] = []
        while not self._skip("]"):
            found.append(self._scalar())
            if not self._skip(",") and (self._kind, self._token) != ("sign", "]"):
                raise NotUnderstoodError("LVM metadata are not well formed")
        return found
