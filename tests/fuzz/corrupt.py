"""Damage to bytes, and the judge of what a reader makes of it.

A reader has two ways out: a value that keeps the promises of its type, or an error of the package that names the file.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanlabel.errors import InputError, RunError

QUICK = 300
"""Inputs per reader of the fast tests."""
MANY = {"graphs": 3_400, "published": 2_400, "recipes": 2_200, "checkpoints": 2_200}
"""Inputs per file of the slow tests; together more than 10,000."""
SECONDS = 2.0
"""Processor time that one input may cost."""
MEGABYTES = 400
"""Memory that a whole test may add to the peak of the process."""

Value = TypeVar("Value")
Reader = Callable[[Path], tuple[Callable[[Any], object], st.SearchStrategy[Any]]]
"""Given a folder: what reads one input there, and the inputs."""


def attempt(call: Callable[[], Value], *named: object) -> Value | None:
    """What ``call`` returns, or None where it refuses its input by name; any other end is a failure.

    Args:
        call: reads one input.
        named: words of which the message must hold one, such as the path.
    """
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)  # of numpy: noise to a user
            return call()
    except (InputError, RunError) as error:
        text = str(error)
        assert any(str(name) in text for name in named), f"the error names none of {named}: {text}"
        assert len(text) < 20_000, "an error is a sentence, not the file"
        text.encode()  # it can be printed
        return None
    finally:
        seconds = time.process_time() - start
        assert seconds < SECONDS, f"{seconds:.1f} s of processor time for one input"


def sweep(check: Callable[[Any], object], inputs: st.SearchStrategy[Any], count: int) -> int:
    """Hand ``count`` inputs to ``check``, the same ones as long as the code is the same; returns how many it saw."""
    seen = 0

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),  # type: ignore[arg-type]
    )
    @given(inputs)
    def each(one: Any) -> None:
        nonlocal seen
        seen += 1
        check(one)

    each()
    return seen


def hold(reader: Reader, folder: Path, count: int) -> int:
    """Put a reader through ``count`` inputs, three folders down so that whatever climbs out of there is seen.

    Args:
        reader: the reader and its inputs.
        folder: a folder for this reader alone.
        count: number of inputs.

    Returns:
        How many inputs there were.
    """
    inside = folder / "a" / "b" / "inside"
    inside.mkdir(parents=True)
    here, peak = Path.cwd(), peak_megabytes()
    os.chdir(inside)
    try:
        seen = sweep(*reader(inside), count)
    finally:
        os.chdir(here)
    outside = {name for name in tree(folder) if not name.startswith("a/b/inside/")}
    assert outside == {"a", "a/b", "a/b/inside"}, "something was written elsewhere"
    assert not (inside / "escaped").exists(), "code was run"
    more = peak_megabytes() - peak
    assert more < MEGABYTES, f"{more:.0f} MB of memory"
    return seen


def peak_megabytes() -> float:
    """Largest resident memory of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def tree(folder: Path) -> set[str]:
    """Everything below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# ------------------------------------------------------------------------------------------------- bytes

WORDS = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b'"', b"'", b",", b";", b"\t", b" ",
    b"nan", b"-1", b"1e308", b"1e999", b"inf", b"0x1", b"1_0", b"99999999999999999999999",
    b"\xd9\xa1\xd9\xa2", b"\xe2\x80\xa8", b"-100", b"4294967295", b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x80", b"../../escaped", b"[", b"{", b"]", b"}", b"&a", b"*a", b"!!",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One damage to a file.

    Args:
        kind: what happens.
        place: where, as a share of the length.
        size: how many bytes are concerned.
        value: which bit, byte or word.
    """

    kind: str
    place: float
    size: int
    value: int

    def apply(self, content: bytearray) -> None:
        if not content:
            return
        at = int(self.place * len(content))
        end = min(at + self.size, len(content))
        if self.kind == "flip":
            content[at] ^= 1 << self.value % 8
        elif self.kind == "set":
            content[at] = self.value
        elif self.kind == "zero":
            content[at:end] = bytes(end - at)
        elif self.kind == "drop":
            del content[at:end]
        elif self.kind == "repeat":
            content[at:at] = content[at:end]
        elif self.kind == "swap":
            other = (at * 7 + self.value) % len(content)
            content[at], content[other] = content[other], content[at]
        elif self.kind == "word":
            content[at:at] = WORDS[self.value % len(WORDS)]
        elif self.kind == "cut":
            del content[at:]


CHANGES = st.lists(
    st.builds(
        Change,
        st.sampled_from(["flip", "set", "zero", "drop", "repeat", "swap", "word", "word", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 64),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=5,
)


def damaged(content: bytes, changes: list[Change]) -> bytes:
    """A copy of ``content`` with every change made, one after the other."""
    result = bytearray(content)
    for change in changes:
        change.apply(result)
    return bytes(result)
