"""The packages of a medium and their versions: told, pinned, compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imager.errors import ImagerError, UsageError

_LISTED = 6


@dataclass(frozen=True)
class Manifest:
    """Which version of each package; a line each: package, version, architecture."""

    versions: dict[str, str]
    text: str

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in a file; UsageError, which names the line, where it is none."""
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read as a manifest: {error}") from error
        versions = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if line.startswith("#") or not words:
                continue
            if len(words) != 3:
                raise UsageError(
                    f"{path}, line {number}: not a package, a version, an architecture"
                )
            versions[words[0]] = words[1]
        return cls(versions, text)

    def preferences(self) -> str:
        """The apt preferences that take exactly these versions."""
        return "".join(
            f"Package: {package}\nPin: version {version}\nPin-Priority: 1001\n\n"
            for package, version in self.versions.items()
        )

    def differences(self, other: Manifest) -> list[str]:
        """How `other` differs, a clause a package."""
        found = []
        for package in sorted(self.versions.keys() | other.versions.keys()):
            wanted, got = self.versions.get(package), other.versions.get(package)
            if wanted != got:
                found.append(f"{package} {wanted or 'not listed'} -> {got or 'missing'}")
        return found

    def require_same(self, other: Manifest) -> None:
        """Raise ImagerError, naming what differs, unless `other` has exactly these versions."""
        found = self.differences(other)
        if found:
            more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
            raise ImagerError(
                "the versions that the manifest pins are not to be had: "
                f"{'; '.join(found[:_LISTED])}{more}"
            )
