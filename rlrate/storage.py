"""Files that survive a crash: written beside their final name, synced, then renamed."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
import time
from pathlib import Path

#: Age in seconds from which the unfinished file of a writer that was killed is taken away by the next one.
ABANDONED = 3600.0


def write_atomically(path: Path, data: bytes, *, keep: Path | None = None) -> None:
    """Replaces ``path`` by ``data``; a crash at any moment leaves the old file or the new one.

    Creates missing parent folders. A link is replaced, not followed.

    Args:
        path: The file.
        data: Its new content.
        keep: Where the old file goes, if there is one, in the same folder. A crash may leave it there with no file at
            ``path``.

    Raises:
        OSError: when the folder or the file cannot be written; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}."
    _sweep(path.parent, prefix)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        if keep is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, keep)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _sweep(folder: Path, prefix: str) -> None:
    """Takes away what killed writers left; another one may be writing now, and its file is young."""
    oldest = time.time() - ABANDONED
    for path in folder.glob(f"{glob.escape(prefix)}*.part"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
