"""Random numbers that belong to a seed, a stream, an iteration and a sample, never to a rank or a worker.

The generator is Philox4x32-10 [Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011]: four
32-bit words of output are a pure function of four counter words and a 64-bit key. Here

    key     = blake2b(seed, stream name), 64 bits
    counter = (block, sample id low, sample id high, iteration t)

so that a row of a batch gets the same numbers whichever other rows are in the batch. A whole-batch draw uses
the id 2^64 - 1, which no sample can have. Everything is integer arithmetic, or float64 arithmetic restricted
to the operations that IEEE 754 rounds correctly, hence the same bits on every device.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Words = TypeVar("Words", np.ndarray, Tensor)

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
# Blocks computed at once: small enough for the second-level cache, large enough to hide the cost of a call.
TILE = 8192
# Devices that compute their own numbers. For the CPU numpy is quicker; other accelerators lack float64, so
# theirs are computed on the CPU and copied.
NATIVE = ("cuda",)
# Random bits that a dtype represents exactly in [0, 1).
DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def draw(
    seed: int, stream: str, t: int, ids: Tensor | None = None, device: torch.device | str | None = None
) -> Draw:
    """Open the source of random numbers that belongs to (seed, stream, t) and, with ids, to each sample.

    Args:
        seed: the run's seed, any integer >= 0.
        stream: name of the use, e.g. "flip"; different names give independent numbers.
        t: iteration, 0 <= t < 2^32.
        ids: (B,) integer global sample ids, >= 0. None: one source for the whole batch. Ids on the CPU are
            checked without waiting for the device.
        device: where results live; default the device of ids, else the CPU.

    Returns:
        A source whose i-th row depends only on (seed, stream, t, ids[i]) and on the calls made before.

    Raises:
        ValueError: seed or t out of range, ids not (B,) integers >= 0.

    Example:
        >>> both = draw(7, "flip", t=3, ids=torch.tensor([12, 40])).uniform()
        >>> alone = draw(7, "flip", t=3, ids=torch.tensor([40])).uniform()
        >>> bool(both[1] == alone[0])
        True
    """
    return Draw(seed, stream, t, ids, device)


def permutation(seed: int, stream: str, t: int, n: int) -> Tensor:
    """Return the permutation (n,) int64 of 0..n-1 that belongs to (seed, stream, t).

    Example:
        >>> sorted(permutation(7, "order", 0, 5).tolist())
        [0, 1, 2, 3, 4]
    """
    return draw(seed, stream, t).permutation(n)


def reseed(seed: int, t: int, rank: int = 0) -> None:
    """Seed the global generators of python, numpy and torch (all devices) from (seed, t, rank).

    For code that draws from global state: dropout and foreign modules.

    Args:
        seed: the run's seed, >= 0.
        t: iteration, >= 0.
        rank: process rank, >= 0.
    """
    data = hashlib.blake2b(f"{seed}/{t}/{rank}".encode(), digest_size=32, person=b"leanlabel-global").digest()
    random.seed(data[:8])
    np.random.seed(np.frombuffer(data[8:24], dtype="<u4"))  # noqa: NPY002  the global generator is the point
    torch.manual_seed(int.from_bytes(data[24:], "little") >> 1)


class Draw:
    """Source of random numbers for one (seed, stream, t); see :func:`draw`.

    Every call continues where the one before stopped, so two calls differ, and what a call returns depends on
    what was asked before. With ids of shape (B,) every result is (B, *shape), otherwise `shape`. No result
    carries gradient.
    """

    def __init__(
        self,
        seed: int,
        stream: str,
        t: int,
        ids: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}")
        if not 0 <= t <= WORD:
            raise ValueError(f"t must be in [0, 2^32), got {t}")
        if ids is not None:
            if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
                raise ValueError(f"ids must be (B,) integers, got {tuple(ids.shape)} of {ids.dtype}")
            if len(ids) and int(ids.min()) < 0:
                raise ValueError(f"ids must be >= 0, got {int(ids.min())}")
            device = ids.device if device is None else device
        self.device = torch.device("cpu" if device is None else device)
        self._key = stream_key(seed, stream)
        self._t = t
        self._rows = None if ids is None else len(ids)
        self._native = self.device.type in NATIVE
        low, high = (WORD, WORD) if ids is None else (ids.long() & WORD, ids.long() >> 32)
        self._id = [self._column(low), self._column(high)]
        self._used = 0  # words consumed per row
        self._start = 0  # index of the first word in the store
        self._store = torch.empty(1 if self._rows is None else self._rows, 0, dtype=torch.long)

    def uniform(self, shape: int | tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw from [0, 1): all multiples of 2^-d with equal probability, d = significant bits of `dtype`.

        Args:
            shape: shape per sample, or of the whole draw without ids.
            dtype: float16, bfloat16, float32 or float64.

        Example:
            >>> draw(0, "demo", 0).uniform((2, 3)).shape
            torch.Size([2, 3])
        """
        digits = _digits(dtype)
        shape, count = _size(shape)
        if digits > 32:
            words = self._words(2 * count).unflatten(1, (count, 2))
            whole = (words[..., 0] << (digits - 32)) | (words[..., 1] >> (64 - digits))
        else:
            whole = self._words(count) >> (32 - digits)
        return self._finish(whole.to(dtype) * 2.0**-digits, shape)

    def normal(self, shape: int | tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw from the standard normal distribution, |value| <= 6.66.

        Box-Muller in float64, then rounded to `dtype`: sqrt(-2 ln u) (cos 2 pi v, sin 2 pi v), u in (0, 1],
        v in [0, 1) with 32 random bits each.

        Args:
            shape: shape per sample, or of the whole draw without ids.
            dtype: float16, bfloat16, float32 or float64.
        """
        _digits(dtype)
        shape, count = _size(shape)
        pairs = -(-count // 2)
        values = box_muller(self._words(2 * pairs).unflatten(1, (pairs, 2)))
        return self._finish(values.flatten(1)[:, :count].to(dtype), shape)

    def integers(self, low: int, high: int, shape: int | tuple[int, ...] = ()) -> Tensor:
        """Draw int64 values from low <= value < high.

        value = low + floor(w (high - low) / 2^64) with 64 random bits w, in exact integer arithmetic, so that
        probabilities differ from equal by at most 2^-33 of themselves.

        Args:
            low: smallest value.
            high: one above the largest value, low < high <= low + 2^31.
            shape: shape per sample, or of the whole draw without ids.

        Raises:
            ValueError: the range is empty or wider than 2^31.
        """
        width = high - low
        if not 0 < width <= 1 << 31:
            raise ValueError(f"integers needs low < high <= low + 2^31, got low {low}, high {high}")
        shape, count = _size(shape)
        words = self._words(2 * count).unflatten(1, (count, 2))
        return self._finish(((words[..., 0] * width + (words[..., 1] * width >> 32)) >> 32) + low, shape)

    def permutation(self, n: int) -> Tensor:
        """Return a permutation (n,) int64 of 0..n-1; only for a whole-batch draw.

        Raises:
            ValueError: the draw has ids, or n < 0.
        """
        if self._rows is not None:
            raise ValueError(f"a permutation belongs to the whole batch, but this draw has {self._rows} ids")
        if n < 0:
            raise ValueError(f"n must be >= 0, got {n}")
        words = self._words(2 * n).unflatten(1, (n, 2))[0]
        keys = (words[:, 0] << 31) | (words[:, 1] >> 1)
        return torch.argsort(keys, stable=True).to(self.device)

    def _column(self, value: Tensor | int) -> np.ndarray | Tensor:
        """Return a counter word as (rows, 1), on the device of the arithmetic."""
        column = value if isinstance(value, Tensor) else torch.tensor([value])
        return column[:, None].to(self.device) if self._native else column[:, None].cpu().numpy()

    def _words(self, count: int) -> Tensor:
        """Return the next `count` 32-bit words of every row, (rows, count) int64."""
        begin, end = self._used, self._used + count
        if end > self._start + self._store.shape[1]:
            rows = max(1, len(self._store))
            # Words of later small calls are computed along: one block costs the same as hundreds.
            ahead = min(16, 1024 // rows)
            first, last = begin // 4, -(-end // 4) + ahead
            if last > WORD:
                raise ValueError(f"a draw gives at most 2^34 words per row, asked for word {end}")
            self._store = self._blocks(first, last)
            self._start = 4 * first
        self._used = end
        return self._store[:, begin - self._start : end - self._start]

    def _blocks(self, first: int, last: int) -> Tensor:
        """Return the output words of blocks first..last-1 of every row, (rows, 4 (last - first)) int64."""
        low, high = self._id
        if isinstance(low, Tensor) and isinstance(high, Tensor):
            blocks = torch.arange(first, last, device=self.device)[None]
            return torch.stack(philox((blocks, low, high, self._t), self._key), 2).flatten(1)
        assert isinstance(low, np.ndarray)
        assert isinstance(high, np.ndarray)
        rows, count = len(low), last - first
        out = np.empty((rows, count, 4), dtype=np.int64)
        across = min(count, TILE)
        down = max(1, TILE // max(1, across))
        for top in range(0, rows, down):
            part = slice(top, top + down)
            for left in range(0, count, across):
                blocks = np.arange(first + left, min(first + left + across, last), dtype=np.int64)[None]
                words = philox((blocks, low[part], high[part], self._t), self._key)
                for position, word in enumerate(words):
                    out[part, left : left + across, position] = word
        return torch.from_numpy(out.reshape(rows, 4 * count))

    def _finish(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Give (rows, count) values their final shape and device."""
        shape = shape if self._rows is None else (self._rows, *shape)
        return values.reshape(shape).to(self.device)


def philox(counter: tuple[Words, Words, Words, int], key: tuple[int, int]) -> tuple[Words, ...]:
    """Encrypt counters with Philox4x32-10.

    Each round takes (c0, c1, c2, c3) to (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)) and
    adds the Weyl constants to the key [Salmon et al. 2011, section 3.3]. A 32 x 32 bit product may wrap
    around in int64; its low word, and its high word after the shift, are exact once masked.

    Args:
        counter: four 32-bit words in int64, three arrays or tensors that broadcast, and one integer.
        key: two 32-bit words.

    Returns:
        Four arrays or tensors of 32-bit words in int64, of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) & WORD) ^ c1 ^ k0, ((p0 >> 32) & WORD) ^ c3 ^ k1
        c1, c3 = p1 & WORD, p0 & WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3  # pyright: ignore[reportReturnType]


@functools.lru_cache(maxsize=1024)
def stream_key(seed: int, stream: str) -> tuple[int, int]:
    """Return the two 32-bit key words of (seed, stream)."""
    data = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8, person=b"leanlabel-stream").digest()
    return int.from_bytes(data[:4], "little"), int.from_bytes(data[4:], "little")


def box_muller(words: Tensor) -> Tensor:
    """Turn pairs of 32-bit words into pairs of independent standard normal values.

    Logarithm, sine and cosine are power series in float64: library versions differ in the last bit between
    devices, additions and multiplications do not.

    Args:
        words: (..., 2) int64, values in [0, 2^32).

    Returns:
        (..., 2) float64.
    """
    # ln u = e ln 2 + 2 artanh((m - 1) / (m + 1)), u = m 2^e, sqrt(1/2) <= m < sqrt(2)
    mantissa, exponent = torch.frexp((words[..., 0] + 1).double() * 2.0**-32)
    small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(small, mantissa * 2, mantissa)
    exponent = (exponent - small.int()).double()
    s = (mantissa - 1) / (mantissa + 1)
    # The angle is a number of quarter turns plus a rest in [-pi/4, pi/4).
    quarter = (words[..., 1] + (1 << 29)) >> 30
    rest = (words[..., 1] - (quarter << 30)).double() * (math.pi * 2.0**-31)
    squares = torch.stack([s * s, rest * rest, rest * rest])
    table = _series(words.device).reshape(-1, 3, *[1] * s.ndim)
    series = torch.zeros_like(squares)
    for row in table:
        series.mul_(squares).add_(row)
    log = exponent * math.log(2) + s * series[0]
    cosine, sine = series[1], rest * series[2]
    odd = (quarter & 1) == 1
    values = torch.stack([torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)], -1)
    signs = 1 - (torch.stack([quarter + 1, quarter], -1) & 2)
    return (log * -2).clamp_min(0).sqrt()[..., None] * values * signs


@functools.cache
def _series(device: torch.device) -> Tensor:
    """Return (11, 3) coefficients, highest power first: 2 artanh(s)/s in s^2, cos x and sin(x)/x in x^2."""
    rows = [
        (
            2 / (2 * k + 1),
            (-1) ** k / math.factorial(2 * k),
            (-1) ** k / math.factorial(2 * k + 1),
        )
        for k in reversed(range(11))
    ]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def _digits(dtype: torch.dtype) -> int:
    if dtype not in DIGITS:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DIGITS))}, got {dtype}")
    return DIGITS[dtype]


def _size(shape: int | tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return shape as a tuple, and its number of elements."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(side < 0 for side in shape):
        raise ValueError(f"shape must not be negative, got {shape}")
    return shape, math.prod(shape)
