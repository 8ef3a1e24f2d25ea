"""Read pickles of NumPy arrays, SciPy CSR matrices and plain containers without running anything in them.

Every name in the pickle is looked up in a short list, and what it finds there are stand-ins of this module: neither
NumPy's nor SciPy's own code sees unchecked contents. Python 2 pickles are read too.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanlabel.errors import InputError


@dataclass(frozen=True)
class CsrParts:
    """A pickled CSR matrix, not yet checked for consistency.

    Args:
        data: (nnz,) values.
        indices: (nnz,) columns.
        indptr: (rows + 1,) first entry of each row.
        shape: rows and columns.
    """

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, int]


def load_pickle(data: bytes, path: Path) -> Any:
    """Rebuild plain data from a pickle.

    Args:
        data: the pickle.
        path: where it comes from, for messages.

    Returns:
        Numbers, text, tuples, lists, dictionaries (a defaultdict becomes one), NumPy arrays of numbers or text (an
        array of objects becomes a list), and :class:`CsrParts`.

    Raises:
        InputError: it names anything else, or is damaged; names what it names.
    """
    try:
        _check_memo(data)
        return _plain(_Unpickler(io.BytesIO(data), path).load())
    except InputError:
        raise
    except (
        Exception
    ) as error:  # damage surfaces as almost anything: EOFError, KeyError, UnicodeDecodeError, ...
        raise InputError(
            f"{path} is not a complete pickle: {error or type(error).__name__}.",
            "It may be cut short; copy or download it again.",
        ) from error


def _check_memo(data: bytes) -> None:
    """Refuse memo numbers that the pickle is too short for: each makes the reader reserve that much memory."""
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError(f"memo number {argument} in {len(data)} bytes")


class _Sealed(type):
    """Classes whose attributes cannot be set: a pickle may try (the BUILD operation on a class)."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise TypeError(f"{cls.__name__} cannot be changed")


class _Dtype(metaclass=_Sealed):
    """Stands for numpy.dtype: a letter, a size and a byte order."""

    def __init__(self, code: str = "", *_: object) -> None:
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    def plain(self) -> np.dtype[Any]:
        """The real one; kinds without structure only."""
        if self.code[:1] not in ("b", "i", "u", "f", "S", "U") or not self.code[1:].isdigit():
            raise ValueError(f"arrays of type {self.code!r} are not read")
        order = self.order if self.order in ("<", ">", "=") else "="
        return np.dtype(order + self.code)

    @property
    def is_object(self) -> bool:
        return self.code in ("O", "O8", "O4")


class _Part(metaclass=_Sealed):
    """Stands for a large object; made once, however often the pickle refers to it."""

    state: Any
    made: list[Any]

    def __new__(cls, *_: object) -> Any:
        part = super().__new__(cls)  # not __init__: a pickle may leave that out
        part.state, part.made = None, []
        return part

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def plain(self) -> Any:
        """What this stands for."""
        if not self.made:
            self.made.append(self.make())
        return self.made[0]

    def make(self) -> Any:
        raise NotImplementedError


class _Array(_Part):
    """Stands for numpy.ndarray and for the function that makes an empty one."""

    def make(self) -> Any:
        _, shape, dtype, fortran, content = self.state
        if not isinstance(dtype, _Dtype) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("an array has a broken description")
        if dtype.is_object:
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise ValueError(f"an array of shape {shape} does not hold as many objects")
            found = [one.plain() if isinstance(one, _Part) else one for one in content]
            return found if shape else _plain(found[0])
        if isinstance(content, str):  # Python 2 wrote bytes as text
            content = content.encode("latin1")
        kind = dtype.plain()
        if math.prod(shape) * kind.itemsize != len(content) or kind.itemsize == 0:
            raise ValueError(f"an array of shape {shape} does not fit its {len(content)} bytes")
        array = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
        return array.astype(kind.newbyteorder("="))


class _Csr(_Part):
    """Stands for scipy.sparse.csr_matrix: a bag of named parts."""

    def make(self) -> CsrParts:
        state = {str(key): value for key, value in self.state.items()}
        parts = [_plain(state[name]) for name in ("data", "indices", "indptr")]
        shape = _plain(state.get("_shape", state.get("shape")))
        if not all(isinstance(part, np.ndarray) and part.ndim == 1 for part in parts) or len(shape) != 2:
            raise ValueError("a sparse matrix has broken parts")
        return CsrParts(*parts, shape=(int(shape[0]), int(shape[1])))


class _Mapping(dict, metaclass=_Sealed):
    """Stands for collections.defaultdict; forgets the default."""

    def __init__(self, *_: object) -> None:
        super().__init__()


class _Bytes(metaclass=_Sealed):
    """Stands for the functions by which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str = "", encoding: str = "latin1") -> Any:
        return text.encode("latin1" if encoding == "latin1" else "ascii")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("scipy.sparse.csr", "csr_matrix"): _Csr,
    ("scipy.sparse._csr", "csr_matrix"): _Csr,
    ("scipy.sparse._csr", "csr_array"): _Csr,
    ("collections", "defaultdict"): _Mapping,
    ("_codecs", "encode"): _Bytes,
    ("__builtin__", "bytes"): _Bytes,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str, /) -> Any:
        """The stand-in for a name, never the thing itself."""
        if (module, name) not in _NAMES:
            raise InputError(
                f"{self.path} names {module}.{name}, which could run code when it is read.",
                "Only arrays, CSR matrices, lists and dictionaries are read; write the data in a plain format.",
            )
        return _NAMES[module, name]


def _plain(value: Any) -> Any:
    """Stand-ins replaced by what they stand for, in a dictionary among its values only."""
    if isinstance(value, _Part):
        return value.plain()
    if isinstance(value, dict):
        return {key: one.plain() if isinstance(one, _Part) else one for key, one in value.items()}
    return value
