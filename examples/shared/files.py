"""Files that are read with care and written whole."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.lib import format as npy


class FileError(SystemExit, ValueError):
    """A file that cannot be used; a script ends with this one line."""


# All that arrays, and dictionaries of arrays, are pickled with.
_HARMLESS = {
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
}


class _OnlyArrays(pickle.Unpickler):
    """Refuses to import anything but what arrays are made with, so no file can run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"it wants to import {module}.{name}")
        return super().find_class(module, name)


def read_archive(path: Path, name: str) -> Any:
    """Read an array or a pickled dictionary of arrays from an .npz file.

    Raises:
        FileError: No such file, or one that is cut off, of another kind, or holds other objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stream = io.BytesIO(archive.read(f"{name}.npy"))
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if not dtype.hasobject:
            stream.seek(0)
            return npy.read_array(stream, allow_pickle=False)
        content = _OnlyArrays(stream, encoding="latin1").load()
        return content.item() if shape == () else content
    except FileNotFoundError:
        problem = "there is no such file"
    except (
        OSError,
        KeyError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        problem = f"expected an .npz file with {name}, whole and of arrays only ({error})"
    except Exception as error:  # a pickle can raise anything
        problem = f"its {name} cannot be read ({type(error).__name__}: {error})"
    raise FileError(f"{path}: {problem}. Download or make it again (docs/examples.md).")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write in one move: after an interruption, or on a full disk, the old file is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
