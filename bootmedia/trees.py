"""A tree of files as a list, and as a tar archive that is the same for everybody.

Owner and times do not come from the files of whoever builds, but are set here.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

_FILE_MODE = 0o644
_PROGRAM_MODE = 0o755


@dataclass(frozen=True)
class Node:
    """A file or symbolic link of a tree; folders come of themselves."""

    path: str
    """Relative to the tree's root, with slashes."""
    content: bytes = b""
    link: str | None = None
    """Where a symbolic link points."""
    mode: int | None = None
    """None: 0755 for a script, which begins with "#!", 0644 for anything else."""


def read_tree(folder: Traversable, into: str = "") -> Iterator[Node]:
    """All files below `folder`, in order, as if they lay in `into`."""
    for child in sorted(folder.iterdir(), key=lambda entry: entry.name):
        path = f"{into}/{child.name}" if into else child.name
        if child.is_file():
            yield Node(path, child.read_bytes())
        elif child.name != "__pycache__":
            yield from read_tree(child, path)


def pack(nodes: Iterable[Node], epoch: int) -> bytes:
    """A tar archive of `nodes`, all of root's and as old as `epoch`, sorted by path."""
    by_path = {node.path: node for node in nodes}
    folders = {
        str(parent) for path in by_path for parent in PurePosixPath(path).parents if parent.name
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(folders | set(by_path)):
            node = by_path.get(path)
            entry = tarfile.TarInfo(path)
            entry.mtime = epoch
            if node is None:
                entry.type, entry.mode = tarfile.DIRTYPE, _PROGRAM_MODE
                archive.addfile(entry)
            elif node.link is not None:
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, node.link, 0o777
                archive.addfile(entry)
            else:
                entry.size, entry.mode = len(node.content), _mode(node)
                archive.addfile(entry, io.BytesIO(node.content))
    return buffer.getvalue()


def _mode(node: Node) -> int:
    if node.mode is not None:
        return node.mode
    return _PROGRAM_MODE if node.content.startswith(b"#!") else _FILE_MODE
