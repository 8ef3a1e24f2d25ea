"""The exponential moving average of a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanlabel.banks.teacher import Teacher, plain, rising_momentum


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def filled(value: float) -> nn.Linear:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(value)
    return layer


def test_values() -> None:
    """Three steps of m = 0.5 from 0 towards 1, then towards 3: 0.5, 0.75, 1.875."""
    teacher = Teacher(filled(0.0))
    seen = []
    for target in (1.0, 1.0, 3.0):
        teacher.follow(filled(target), 0.5)
        seen.append(float(teacher.network.weight[0, 0]))
    assert seen == [0.5, 0.75, 1.875]


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, 0.0), (0.0, 1.0)])
def test_values_at_the_ends(momentum: float, expected: float) -> None:
    teacher = Teacher(filled(0.0))
    teacher.follow(filled(1.0), momentum)
    assert float(teacher.network.bias) == expected


def test_values_of_the_schedule() -> None:
    assert rising_momentum(0, 100, 0.99) == pytest.approx(0.99)
    assert rising_momentum(25, 100, 0.99) == pytest.approx(1 - 0.01 * (2**-0.5 + 1) / 2)
    assert rising_momentum(100, 100, 0.99) == 1
    assert rising_momentum(500, 100, 0.99) == 1
    values = [rising_momentum(t, 20, 0.9) for t in range(21)]
    assert values == sorted(values)


def test_gradient() -> None:
    """None reaches the teacher, and none flows through what it says."""
    teacher = Teacher(filled(1.0))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(torch.ones(1, 2, requires_grad=True)).requires_grad


def test_buffers() -> None:
    """Running statistics follow, counters are copied."""
    student = nn.BatchNorm1d(2)
    teacher = Teacher(student)
    student(torch.tensor([[0.0, 10.0], [2.0, 10.0]]))
    teacher.follow(student, 0.5)
    expected = (student.running_mean if student.running_mean is not None else torch.zeros(2)) / 2
    torch.testing.assert_close(teacher.network.running_mean, expected)
    assert int(teacher.network.num_batches_tracked) == 1


def test_independence() -> None:
    """The teacher shares no memory with its student."""
    student = filled(0.0)
    teacher = Teacher(student)
    with torch.no_grad():
        student.weight.fill_(5)
    assert float(teacher.network.weight.sum()) == 0


def test_state() -> None:
    """Saved and loaded into a fresh object it goes on alike."""
    teacher, fresh = Teacher(filled(0.0)), Teacher(filled(9.0))
    teacher.follow(filled(1.0), 0.5)
    fresh.load_state_dict(teacher.state_dict())
    for one in (teacher, fresh):
        one.follow(filled(2.0), 0.9)
    assert torch.equal(teacher.network.weight, fresh.network.weight)


def test_wrapped() -> None:
    """A student inside wrappers counts as itself."""
    student = filled(1.0)
    assert plain(Wrapper(Wrapper(student))) is student
    teacher = Teacher(filled(0.0))
    teacher.follow(Wrapper(student), 0.0)
    assert float(teacher.network.bias) == 1


def test_errors() -> None:
    teacher = Teacher(filled(0.0))
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        teacher.follow(filled(0.0), 1.5)
    with pytest.raises(ValueError, match="differ in bias"):
        teacher.follow(nn.Linear(2, 1, bias=False), 0.5)
    with pytest.raises(ValueError, match="steps"):
        rising_momentum(0, 0, 0.9)
