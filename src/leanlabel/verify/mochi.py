"""Cases of MoCHi and of MoCo under it: two queries, their keys and a queue of five, computed by independent scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from leanlabel.banks.queue import FeatureQueue
from leanlabel.banks.teacher import Teacher
from leanlabel.config import OptimSettings
from leanlabel.engine.optim import factor
from leanlabel.evaluation.collapse import alignment, same_class_alignment, uniformity
from leanlabel.evaluation.negatives import hardness_curve, proxy_accuracy
from leanlabel.losses.contrastive import contrast, unit
from leanlabel.losses.mixing import Mixing, MixingDraws, hardest, mixed_logits
from leanlabel.verify.case import Case, wide

MOCO = "He et al., CVPR 2020, {}; in float64 by an independent script"
MOCHI = "Kalantidis et al., NeurIPS 2020, {}; in float64 by an independent script"
SPHERE = "Wang and Isola, ICML 2020, {}; in float64 by an independent script"
TAU = 0.2

# Small integers, exact in every precision, to be scaled to norm 1.
QUERY = [[1, 2, 2], [2, -1, 2]]
OWN = [[2, 2, 1], [1, 0, 1]]
QUEUE = [[0, 3, 4], [4, 0, 3], [-1, 2, 2], [1, 1, -1], [2, 1, -1]]
POINTS = [[1, 0], [0, 1], [-1, 0], [3, 4]]
PARTNERS = [[1, 1], [0, 1], [-1, 1], [4, 3]]
MIXING = Mixing(n=3, s=2, s2=1)

Run = Callable[[torch.device, torch.dtype], Tensor]


def cases() -> list[Case]:
    """All cases of MoCHi."""
    return [*_queue_cases(), *_mixing_cases(), *_memory_cases(), *_sphere_cases(), *_schedule_cases()]


def _case(name: str, run: Run, values: Sequence, source: str) -> Case:
    return Case("mochi", name, run, torch.tensor(values, dtype=torch.float64), source)


def _rows(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Unit queries with gradient, own keys and queue, as a step makes them of what an encoder gives."""
    query, own, queue = (unit(torch.tensor(part, dtype=dtype, device=device)) for part in (QUERY, OWN, QUEUE))
    return query.requires_grad_(), own, queue


def _draws(device: torch.device, dtype: torch.dtype) -> MixingDraws:
    """Positions in the ranking, hardest first, and shares."""
    places = ([[0, 1], [0, 2]], [[1, 2], [2, 1]], [[0], [1]])
    first, second, partner = (torch.tensor(part, device=device) for part in places)
    alpha, beta = (
        torch.tensor(part, device=device, dtype=wide(dtype))
        for part in ([[0.25, 0.5], [0.7, 0.9]], [[0.4], [0.1]])
    )
    return MixingDraws(first, second, alpha, partner, beta)


def _losses(device: torch.device, dtype: torch.dtype, mixed: bool) -> tuple[Tensor, Tensor]:
    query, own, queue = _rows(device, dtype)
    extra = mixed_logits(query, queue, MIXING, _draws(device, dtype), tau=TAU) if mixed else None
    return contrast(query, queue, own=own, extra=extra, tau=TAU, reduction="none"), query


def _loss_run(mixed: bool) -> Run:
    return lambda device, dtype: _losses(device, dtype, mixed)[0]


def _mean_run(mixed: bool) -> Run:
    return lambda device, dtype: _losses(device, dtype, mixed)[0].mean()[None]


def _gradient_run(mixed: bool) -> Run:
    def run(device: torch.device, dtype: torch.dtype) -> Tensor:
        losses, query = _losses(device, dtype, mixed)
        return torch.autograd.grad(losses.sum(), query)[0]

    return run


def _queue_cases() -> list[Case]:
    def ranked(device: torch.device, dtype: torch.dtype) -> Tensor:
        query, _, queue = _rows(device, dtype)
        return hardest(query, queue, 5).similarity / TAU

    def accuracy(device: torch.device, dtype: torch.dtype) -> Tensor:
        query, own, queue = _rows(device, dtype)
        return torch.tensor([proxy_accuracy(query, queue, own).plain])

    def curve(device: torch.device, dtype: torch.dtype) -> Tensor:
        query, own, queue = _rows(device, dtype)
        return hardness_curve(query, queue, own, tau=TAU, top=2)

    positive = torch.tensor([[4.4444444444], [4.7140452079]], dtype=torch.float64)
    negatives = [
        [4.6666666667, 3.8888888889, 3.3333333333, 1.3608276349, 0.9622504486],
        [4.6666666667, 1.6666666667, 0.6804138174, 0.0, -0.9622504486],
    ]
    shares = torch.cat([positive, torch.tensor(negatives, dtype=torch.float64)], 1).softmax(1)
    slope = [[-2.1037377388, -0.4914276811, 1.2388427406], [0.1161331622, 0.1075093757, -0.3009284435]]
    source = MOCO.format("eq. 1")
    return [
        _case("logits of the queue, hardest first", ranked, negatives, source),
        _case("contrast with a queue, per query", _loss_run(False), [1.1719645118, 0.7086829208], source),
        _case("contrast with a queue", _mean_run(False), [0.9403237163], source),
        _case("gradient of the contrast with a queue", _gradient_run(False), slope, source),
        _case("accuracy of the proxy task", accuracy, [0.5], MOCHI.format("section 3.2")),
        _case(
            "hardness of the negatives", curve, shares[:, 1:3].mean(0).tolist(), MOCHI.format("section 3.2")
        ),
    ]


def _mixing_cases() -> list[Case]:
    def ranking(device: torch.device, dtype: torch.dtype) -> Tensor:
        query, _, queue = _rows(device, dtype)
        return hardest(query, queue, 3).index.double()

    def logits(device: torch.device, dtype: torch.dtype) -> Tensor:
        query, _, queue = _rows(device, dtype)
        return mixed_logits(query, queue, MIXING, _draws(device, dtype), tau=TAU)

    def in_blocks(device: torch.device, dtype: torch.dtype) -> Tensor:
        query, _, queue = _rows(device, dtype)
        return mixed_logits(query, queue, MIXING, _draws(device, dtype), tau=TAU, chunk=2)

    mixed = [[4.1353524156, 4.7970806300, 4.8786937691], [4.0038174464, 0.8681196401, 2.1320071636]]
    slope = [[-2.4253606881, -0.4963556378, 1.7718088802], [0.2105617909, 0.3132684627, -0.5976114518]]
    source = MOCHI.format("section 4.1 and 4.2")
    return [
        _case("ranking of the negatives", ranking, [[0, 2, 1], [1, 0, 4]], source),
        _case("logits of mixed negatives", logits, mixed, source),
        _case("logits of mixed negatives, ranked in blocks", in_blocks, mixed, source),
        _case(
            "contrast with mixed negatives, per query", _loss_run(True), [1.9357239955, 0.9631104508], source
        ),
        _case("contrast with mixed negatives", _mean_run(True), [1.4494172231], source),
        _case("gradient with the mixtures constant", _gradient_run(True), slope, source),
    ]


def _memory_cases() -> list[Case]:
    def averages(device: torch.device, dtype: torch.dtype) -> Tensor:
        student = torch.nn.Linear(2, 1, bias=False, device=device, dtype=wide(dtype))
        with torch.no_grad():
            student.weight.copy_(torch.tensor([[1.0, 2.0]]))
            teacher, seen = Teacher(student), []
            student.weight.copy_(torch.tensor([[3.0, -2.0]]))
            for _ in range(3):
                teacher.follow(student, 0.9)
                seen.append(next(teacher.network.parameters())[0].clone())
                student.weight.add_(1.0)
        return torch.stack(seen)

    def slots(device: torch.device, dtype: torch.dtype) -> Tensor:
        queue, start, seen = FeatureQueue(5, 1).to(device), 0, []
        for count in (2, 2, 2, 4):
            numbers = torch.arange(start, start + count, device=device)
            queue.push(numbers[:, None].to(dtype), numbers)
            start += count
            held = queue.read()[:, 0].where(queue.ids_read() >= 0, -1.0)
            seen.append(torch.cat([held.double(), torch.stack([queue.pointer, queue.filled]).double()]))
        return torch.stack(seen)

    followed = [[1.2, 1.6], [1.48, 1.34], [1.832, 1.206]]
    # Five slots, -1 for noise; pointer; number of real rows.
    written = [[0, 1, -1, -1, -1, 2, 2], [0, 1, 2, 3, -1, 4, 4], [5, 1, 2, 3, 4, 1, 5], [5, 6, 7, 8, 9, 0, 5]]
    return [
        _case("moving average of the key network", averages, followed, MOCO.format("eq. 2")),
        _case("slots of the queue", slots, written, "He et al., CVPR 2020, section 3.2; counted by hand"),
    ]


def _sphere_cases() -> list[Case]:
    def read(compute: Callable[[Tensor, Tensor], float]) -> Run:
        def run(device: torch.device, dtype: torch.dtype) -> Tensor:
            views = (torch.tensor(part, dtype=dtype, device=device) for part in (POINTS, PARTNERS))
            return torch.tensor([compute(*views)], dtype=torch.float64)

        return run

    labels = torch.tensor([0, 0, 1, 1])
    return [
        _case("alignment", read(alignment), [0.3128932188], SPHERE.format("section 4.1")),
        _case(
            "alignment, alpha = 1",
            read(lambda x, y: alignment(x, y, alpha=1.0)),
            [0.4533941105],
            SPHERE.format("section 4.1"),
        ),
        _case(
            "alignment of a class",
            read(lambda x, _: same_class_alignment(x, labels)),
            [2.6],
            MOCHI.format("section 5"),
        ),
        _case("uniformity", read(lambda x, _: uniformity(x)), [-2.1630350864], SPHERE.format("section 4.1")),
    ]


def _schedule_cases() -> list[Case]:
    def rates(device: torch.device, dtype: torch.dtype) -> Tensor:
        settings = OptimSettings(name="sgd", lr=0.03, schedule="cosine")
        return torch.tensor([0.03 * factor(settings, t, 200) for t in (0, 50, 100, 199)], dtype=torch.float64)

    values = [0.03, 0.0256066017, 0.015, 1.8505127751e-6]
    return [_case("cosine learning rate", rates, values, MOCO.format("official code"))]
