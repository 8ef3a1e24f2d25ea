"""Which tensors of a source go where, told without a run."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from leanlabel.engine.checkpoint import Checkpoint, save, save_tensors
from leanlabel.engine.method import Method
from leanlabel.engine.transfer import Source, offered, read_weights, recorded, start_from
from leanlabel.errors import InputError


class Toy(Method):
    """Two encoders with a head; the second part has no tensors."""

    parts = {"backbone": ("members.*.encoder",), "head": ("head",), "void": ("nothing",)}  # noqa: RUF012
    sources = {"backbone": "members.1.encoder"}  # noqa: RUF012

    def __init__(self, fill: float = 0.0, width: int = 2) -> None:
        super().__init__(None)
        self.members = nn.ModuleList(nn.ModuleDict({"encoder": nn.Linear(width, 2)}) for _ in range(2))
        self.head = nn.Linear(2, 1)
        self.names: Collection[str] = ()
        for k, value in enumerate(self.parameters()):
            nn.init.constant_(value, fill + k)

    def took(self, names: Collection[str]) -> None:
        self.names = names


def source(tensors: dict[str, Tensor], **parts: str) -> Source:
    return Source(Path("source"), tensors, parts)


def state(method: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def test_values_of_everything_that_fits() -> None:
    """By name and shape; the rest is told."""
    toy, given = Toy(), state(Toy(100))
    given["head.weight"] = torch.zeros(1, 3)
    given["other.weight"] = torch.zeros(4)
    del given["members.1.encoder.bias"]
    before = state(toy)
    report = start_from(toy, source(given))
    assert report.taken == (
        "members.0.encoder.weight",
        "members.0.encoder.bias",
        "members.1.encoder.weight",
        "head.bias",
    )
    assert report.missing == ("members.1.encoder.bias",)
    assert report.left == ("other.weight",)
    assert report.shape == ("head.weight",)
    after = state(toy)
    for name, value in after.items():
        assert torch.equal(value, given[name] if name in report.taken else before[name]), name
    assert toy.names == frozenset(report.taken)
    assert [line.split()[0] for line in report.lines()] == ["4", "1", "1", "1"]
    assert report.lines()[0].endswith("members.1.encoder.weight, …")


def test_values_of_a_part() -> None:
    """Into every module of the part, from the one that the source names; nothing else is touched."""
    toy, given = Toy(), state(Toy(100))
    report = start_from(toy, source(given, backbone="members.1.encoder"), "backbone")
    for k in (0, 1):
        assert torch.equal(toy.state_dict()[f"members.{k}.encoder.weight"], given["members.1.encoder.weight"])
    assert torch.equal(toy.head.weight, Toy().head.weight)
    assert len(report.taken) == 4
    assert report.left == report.missing == ()


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_values_of_a_lone_backbone(prefix: str) -> None:
    """A file that is the module itself, or holds it under another name that it tells."""
    tensors = {f"{prefix}weight": torch.full((2, 2), 7.0), f"{prefix}extra": torch.zeros(1)}
    parts = {"backbone": "encoder"} if prefix else {}
    report = start_from(toy := Toy(), source(tensors, **parts), "backbone")
    assert report.taken == ("members.0.encoder.weight", "members.1.encoder.weight")
    assert report.missing == ("members.0.encoder.bias", "members.1.encoder.bias")
    assert report.left == (f"{prefix}extra",)
    assert (toy.state_dict()["members.1.encoder.weight"] == 7).all()


def test_dtypes() -> None:
    """Other number formats are brought to the model's."""
    toy = Toy()
    start_from(toy, source({"head.weight": torch.tensor([[0.5, 2.0]], dtype=torch.float64)}))
    assert toy.head.weight.dtype == torch.float32
    assert toy.head.weight.tolist() == [[0.5, 2.0]]


def test_errors() -> None:
    """Nothing is changed by a refused source."""
    toy = Toy()
    before = state(toy)
    with pytest.raises(InputError, match=r"--part tail: .* Its parts: backbone, head, void"):
        start_from(toy, source(state(Toy())), "tail")
    with pytest.raises(
        InputError, match=r"no tensor fits the model; it holds x\. Name what it holds: --part"
    ):
        start_from(toy, source({"x": torch.zeros(1)}))
    with pytest.raises(InputError, match=r"head.weight must be \(1, 2\) there\. Give both the same model"):
        start_from(toy, source({"head.weight": torch.zeros(1, 5)}))
    with pytest.raises(InputError, match="no tensor fits"):
        start_from(toy, source(state(Toy())), "void")
    lone = {"head.bias": torch.zeros(1), "head.weight": torch.zeros(1, 3)}
    with pytest.raises(InputError, match="no tensor fits"):  # a single number says nothing
        start_from(toy, source(lone))
    after = state(toy)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert toy.names == ()


def test_values_of_files(tmp_path: Path) -> None:
    """safetensors with and without a note, a checkpoint of a run, plain torch files."""
    given = state(Toy(5))
    save_tensors(tmp_path / "noted.safetensors", given, {"parts": {"backbone": "members.0.encoder"}})
    save_file(given, tmp_path / "bare.safetensors")
    checkpoint = save(tmp_path, Checkpoint(3, given, {}, None), keep_last=1)
    torch.save(given, tmp_path / "state.pt")
    torch.save({"state_dict": given, "epoch": 3}, tmp_path / "lightning.ckpt")
    paths = [tmp_path / "noted.safetensors", tmp_path / "bare.safetensors", checkpoint]
    for path in [*paths, tmp_path / "state.pt", tmp_path / "lightning.ckpt"]:
        found = read_weights(path)
        assert found.tensors.keys() == given.keys()
        assert all(torch.equal(found.tensors[name], value) for name, value in given.items())
        assert found.parts == ({"backbone": "members.0.encoder"} if path == paths[0] else {})
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    report = start_from(Toy(), read_weights(paths[0]))
    told = recorded(read_weights(paths[0]), "given", None, report)
    assert (told["source"], told["part"], len(told["report"]["taken"])) == ("given", None, 6)


class Payload:
    def __reduce__(self) -> Any:
        return (open, (str(Payload.marker), "w"))

    marker = Path()


def test_errors_of_files(tmp_path: Path) -> None:
    """What is no file of tensors is refused, and its code does not run."""
    with pytest.raises(InputError, match="no such run, export or file of weights"):
        read_weights(tmp_path / "nowhere.safetensors")
    Payload.marker = tmp_path / "ran"
    (tmp_path / "bad.pt").write_bytes(pickle.dumps({"x": Payload()}, protocol=2))
    torch.save({"x": Payload()}, tmp_path / "worse.pt")
    for name in ("bad.pt", "worse.pt"):
        with pytest.raises(InputError, match=rf"{name}: cannot be read as a file of tensors"):
            read_weights(tmp_path / name)
    assert not Payload.marker.exists()
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    for name in ("none.pt", "tensor.pt"):
        with pytest.raises(InputError, match="holds no tensors by name"):
            read_weights(tmp_path / name)
    (tmp_path / "short.safetensors").write_bytes(b"\x08")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read_weights(tmp_path / "short.safetensors")


def test_values_of_offered() -> None:
    assert offered(Toy) == {"backbone": "members.1.encoder", "head": "head", "void": "nothing"}
