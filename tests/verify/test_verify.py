"""Cases with known answers: they hold here, they notice what is wrong, and they are told apart."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from leanlabel import methods, verify
from leanlabel.verify import case, content_transfer, gca, prototypes
from leanlabel.verify.case import PRECISIONS, Case, deviation, system_cases
from leanlabel.verify.case import verify as run_cases

CPU = torch.device("cpu")


def fixed(value: Tensor, **changes: object) -> Case:
    """A case that computes what is given, and expects [1, 2]."""
    plain = Case("toy", "fixed", lambda device, dtype: value, torch.tensor([1.0, 2.0]).double(), "by hand")
    return dataclasses.replace(plain, **changes)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The cases are small; threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("system", verify.TABLE)
def test_values(system: str, precision: str) -> None:
    """Every case of every system holds on a CPU in every precision."""
    cases = system_cases(system)
    (outcome,) = run_cases(cases, CPU, precision)
    assert outcome.ok, outcome.failed
    assert (outcome.system, outcome.cases, outcome.device) == (system, len(cases), "cpu")
    assert outcome.largest is not None
    assert outcome.largest <= outcome.tolerance == PRECISIONS[precision][1]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("system", verify.TABLE)
def test_values_gpu(system: str, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    (outcome,) = run_cases(system_cases(system), torch.device("cuda"), precision)
    assert outcome.ok, outcome.failed


def test_values_table() -> None:
    """Every row names a system of the library and cases that are told apart and say where they come from."""
    for system in verify.TABLE:
        assert system in methods.TABLE
        cases = system_cases(system)
        assert len({one.name for one in cases}) == len(cases)
        for one in cases:
            assert one.system == system
            assert one.expected.dtype == torch.float64
            assert len(one.source) > 8
            assert one.run(CPU, torch.float64).shape == one.expected.shape


def test_values_gca_covers_its_parts() -> None:
    """All of the specification's oracle cases are there."""
    names = " ".join(one.name for one in gca.cases())
    for part in (
        "degree, sink",
        "degree, mean",
        "eigenvector, sink",
        "eigenvalue",
        "PageRank, sink",
        "PageRank as shares",
        "10 steps",
        "200 steps",
        "sparse rule",
        "dense rule",
        "contrast of every row",
        "gradient of the contrast",
        "equal similarities",
        "1 rows at a time",
        "17 rows at a time",
        "embeddings, dense",
        "embeddings, sparse",
    ):
        assert part in names


def test_values_covers_prototypes_and_content_transfer() -> None:
    """The specifications' oracle cases of prototype contrast and of content transfer are there."""
    listed = {
        prototypes: (
            "tau = 100",
            "tau = 1",
            "tau = 0.1",
            "zero pixel",
            "decay",
            "over images",
            "two parts, loss",
        ),
        content_transfer: (
            "drawn again",
            "emptiness",
            "whole",
            "share 0.06",
            "T = 0.01",
            "colours",
            "weight of 0.5",
        ),
    }
    for module, parts in listed.items():
        names = " ".join(one.name for one in module.cases())
        for part in parts:
            assert part in names


def test_values_deviation() -> None:
    expected = torch.tensor([4.0, -2.0, 0.0], dtype=torch.float64)
    assert deviation(torch.tensor([4.0, -2.0, 1.0]), expected) == 0.25
    assert deviation(torch.tensor([0.0, 0.5]), torch.zeros(2).double()) == 0.5
    assert deviation(expected, expected) == 0.0


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_values_sabotage_of_the_code(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """A part of the library that computes something else makes its cases fail, and only those."""
    right = gca.two_view_contrast
    monkeypatch.setattr(gca, "two_view_contrast", lambda *rows, **how: 1.05 * right(*rows, **how))
    (outcome,) = run_cases(gca.cases(), CPU, precision)
    assert not outcome.ok
    names = [one["name"] for one in outcome.failed]
    assert names == [one.name for one in gca.cases() if "contrast" in one.name or "similar" in one.name]
    assert outcome.failed[0]["deviation"] == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize(
    ("part", "touched"),
    [
        ("degree", "degree"),
        ("eigenvector", "eigen"),
        ("pagerank", "PageRank"),
        ("reference_walk", "walk"),
        ("drop_probabilities", "probabilities"),
        ("feature_importance", "feature"),
        ("edge_importance", "edge"),
    ],
)
def test_values_sabotage_of_a_part(monkeypatch: pytest.MonkeyPatch, part: str, touched: str) -> None:
    right = getattr(gca, part)

    def wrong(*given: object, **how: object) -> Tensor:
        value = right(*given, **how)
        return value + 0.01 * torch.arange(len(value), dtype=value.dtype)

    monkeypatch.setattr(gca, part, wrong)
    (outcome,) = run_cases(gca.cases(), CPU, "float32")
    assert any(touched in one["name"] for one in outcome.failed)


def test_values_sabotage_of_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gca._encoder

    def wrong() -> torch.nn.Module:
        encoder = right()
        encoder.activation = torch.nn.LeakyReLU(0.2)
        return encoder

    monkeypatch.setattr(gca, "_encoder", wrong)
    (outcome,) = run_cases(gca.cases(), CPU, "float32")
    assert [one["name"].split(",")[0] for one in outcome.failed] == ["embeddings", "embeddings"]


@pytest.mark.parametrize(
    ("module", "part", "touched"),
    [
        (prototypes, "prototype_contrast", "contrast, tau = 0.1"),
        (prototypes, "prototype_contrast", "two parts, loss"),
        (prototypes, "class_sums", "two parts, class mean"),
        (content_transfer, "reconstruction", "images drawn again"),
        (content_transfer, "content_drift", "zero style, content"),
        (content_transfer, "emptiness", "zero style, emptiness"),
        (content_transfer, "moments", "mean and deviation of colours"),
        (content_transfer, "rare_class_shares", "rare classes drawn, T = 0.1"),
        (content_transfer, "pixel_cross_entropy", "pasted pixels, a weight of 0.5"),
    ],
)
def test_values_sabotage_of_terms(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, part: str, touched: str
) -> None:
    """A part that is five hundredths too large is noticed, in half precision, too, and by name."""
    right = getattr(module, part)

    def wrong(*given: object, **how: object) -> object:
        value = right(*given, **how)
        return (1.05 * value[0], value[1]) if isinstance(value, tuple) else 1.05 * value

    monkeypatch.setattr(module, part, wrong)
    for precision in ("float32", "bfloat16"):
        (outcome,) = run_cases(module.cases(), CPU, precision)
        assert touched in [one["name"] for one in outcome.failed]
        assert len(outcome.failed) < outcome.cases


def test_degenerate() -> None:
    """A case that raises, gives another shape or nothing finite is a failed one, and the others go on."""

    def broken(device: torch.device, dtype: torch.dtype) -> Tensor:
        raise RuntimeError("no kernel for this device")

    told: list[int] = []
    good, wrong = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1])
    cases = [
        fixed(good),
        fixed(wrong, name="wrong"),
        fixed(good, name="raises", run=broken),
        fixed(torch.ones(3), name="shape"),
        fixed(torch.tensor([1.0, float("nan")]), name="nan"),
        fixed(good, system="other"),
    ]
    toy, other = run_cases(cases, CPU, "float32", lambda: told.append(1))
    assert len(told) == 6
    assert (toy.system, toy.cases, toy.ok) == ("toy", 5, False)
    assert toy.largest == pytest.approx(0.05, rel=1e-5)
    failed = {one["name"]: one for one in toy.failed}
    assert list(failed) == ["wrong", "raises", "shape", "nan"]
    assert failed["wrong"]["deviation"] == pytest.approx(0.05, rel=1e-5)
    assert failed["raises"]["error"] == "RuntimeError: no kernel for this device"
    assert failed["shape"]["error"] == "ValueError: result (3,), expected (2,)"
    assert failed["nan"]["error"] == "ValueError: the result is not finite"
    assert (other.system, other.ok, other.largest) == ("other", True, 0.0)
    (nothing,) = run_cases([fixed(good, run=broken)], CPU, "float64")
    assert nothing.largest is None
    assert run_cases([], CPU, "float64") == []


def test_dtypes() -> None:
    """Inputs come in the precision that was asked for; half precisions compute under autocast."""
    seen = []

    def look(device: torch.device, dtype: torch.dtype) -> Tensor:
        with case.computing_in(device, dtype):
            weight = torch.eye(2, dtype=case.wide(dtype))
            seen.append((dtype, (weight @ weight).dtype))
        return torch.tensor([1.0, 2.0])

    for precision in PRECISIONS:
        run_cases([fixed(torch.ones(2), run=look)], CPU, precision)
    assert seen == [(dtype, dtype) for dtype, _ in PRECISIONS.values()]


def test_errors() -> None:
    with pytest.raises(KeyError, match="nothing"):
        system_cases("nothing")
    with pytest.raises(KeyError, match="float8"):
        run_cases([], CPU, "float8")


def test_examples() -> None:
    assert doctest.testmod(case).failed == 0
    assert inspect.getdoc(verify)
