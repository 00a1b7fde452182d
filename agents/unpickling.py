"""The one door through which a pickle comes in: the zip file of a Stable-Baselines3 model.

SB3 stores parts of a model as pickles, and unpickling runs whatever code the file's author put there. rlrate unpickles
nowhere else (tests/reliability/test_static.py sees to it), and here only when told to trust the file.
"""

from __future__ import annotations

import pickle
import stat
import zipfile
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm

from rlrate.errors import ConfigError, unknown_name

#: Most bytes that the members of a model's zip file may unpack to.
MAX_UNPACKED = 256 * 2**20

_MEMBERS = {"data", "_stable_baselines3_version", "system_info.txt"}


def load_zip(path: Path, algo: str = "ppo", *, trust: bool = False) -> BaseAlgorithm:
    """The model in a zip file that SB3's ``model.save`` wrote; opening it runs code that the file contains.

    Args:
        path: The zip file.
        algo: The algorithm that was saved, one of :data:`rlrate.agents.ALGORITHMS`.
        trust: Must be True. Say so only of a file that you wrote yourself.

    Raises:
        ConfigError: when the file is not trusted, is no such zip file, or has members that SB3 does not write; these
            are looked for before anything is unpickled.
    """
    from rlrate.agents.model import ALGORITHM_CLASSES

    if not trust:
        raise ConfigError(
            f"{path.name} is a zip file of Stable-Baselines3, which runs code when it is opened; export the folder of "
            "your training instead (its checkpoint holds no code), or pass trust=True (--trust) if you saved this "
            "file yourself"
        )
    if algo not in ALGORITHM_CLASSES:
        raise ConfigError(unknown_name("algorithm", algo, ALGORITHM_CLASSES))
    _inspect(path)
    try:
        return ALGORITHM_CLASSES[algo].load(path, device="cpu")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path.name} is not a {algo} model that this SB3 can open: {error}") from None


def _inspect(path: Path) -> None:
    """Refuses an archive that SB3 has not written, from its table of contents alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path.name} is not a zip file that can be read: {error}") from None
    names = [member.filename for member in members]
    odd = sorted({name for name in names if name not in _MEMBERS and not _weights(name)})
    if odd or len(set(names)) < len(names) or "data" not in names:
        raise ConfigError(f"{path.name} is not a model that SB3 saved: unknown, doubled or missing members {odd[:3]}")
    if any(stat.S_ISLNK(member.external_attr >> 16) for member in members):
        raise ConfigError(f"{path.name} is not a model that SB3 saved: it holds a link")
    size = sum(member.file_size for member in members)
    if size > MAX_UNPACKED:
        raise ConfigError(f"{path.name} unpacks to {size:,} bytes; a policy has at most {MAX_UNPACKED:,}")


def _weights(name: str) -> bool:
    return name.endswith(".pth") and name.replace(".", "").replace("_", "").isalnum()
