"""Kind "graph-nodes": an encoder that embeds the nodes of a graph, with or without a readout of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from leanlabel.data.graph_source import GraphFile, open_graph
from leanlabel.data.graphs import Graph, normalise
from leanlabel.errors import InputError
from leanlabel.evaluation.classifier import Classifier
from leanlabel.models.graph import GraphEncoder, pack_features
from leanlabel.sparse import Csr

BACKBONE = "encoder."


class GraphNodes:
    """A trained graph encoder that needs no run folder.

    Args:
        config: "encoder" (arguments of :class:`leanlabel.models.graph.GraphEncoder`) and "preprocessing"
            (normalise, undirected, features, as in the data section of a recipe).
        tensors: state of the encoder, names behind ``encoder.``.
        classifier: readout of the classes; None embeds only.
        provenance: what it was trained from, for people.

    Raises:
        InputError: settings and tensors do not fit each other.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        classifier: Classifier | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.classifier, self.provenance = dict(config), classifier, dict(provenance or {})
        self.preprocessing = dict(config["preprocessing"])
        state = {name.removeprefix(BACKBONE): value for name, value in tensors.items()}
        try:
            self.encoder = GraphEncoder(**config["encoder"])
            dtype = next((value.dtype for value in state.values() if value.is_floating_point()), None)
            self.encoder.to(dtype=dtype).load_state_dict(state)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"Settings and weights of the encoder do not fit: {error}.") from error
        self.encoder.eval().requires_grad_(False)

    @property
    def features(self) -> int:
        """Number of features per node that the encoder reads."""
        return int(self.config["encoder"]["in_features"])

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty without a readout."""
        return [] if self.classifier is None else list(self.classifier.classes)

    def open(self, path: str) -> Graph:
        """A graph on disk, read as the training graph was."""
        return open_graph(GraphFile(path=path, **self.preprocessing))

    @torch.no_grad()
    def embed(self, graph: Graph) -> Tensor:
        """Embeddings (N, d), float32, of all nodes.

        Raises:
            InputError: another number of features than the encoder was trained on.
        """
        if graph.num_features != self.features:
            raise InputError(
                f"{graph.name}: {graph.num_features} features per node, the model was trained on {self.features}."
            )
        dtype = next(self.encoder.parameters()).dtype
        x = pack_features(normalise(graph.x, self.preprocessing["normalise"]))
        adjacency = self.encoder.prepare(graph.edge_index, graph.num_nodes, dtype)
        return self.encoder(x.to(dtype=dtype), adjacency).float()

    def predict(self, graph: Graph) -> Tensor:
        """Class probabilities (N, C) of all nodes; rows sum to 1.

        Raises:
            InputError: it has no readout, or another number of features.
        """
        if self.classifier is None:
            raise InputError(
                "This export has no readout, it can only embed.",
                "Export the run with --format safetensors for class probabilities.",
            )
        return self.classifier.probabilities(self.embed(graph))

    def onnx_model(self) -> Any:
        """The same computation as an ONNX model; see :func:`leanlabel.export.onnx_graph.graph_model`."""
        from leanlabel.export.onnx_graph import graph_model

        return graph_model(self.encoder, self.features, self.preprocessing["normalise"], self.classifier)

    def onnx_inputs(self, graph: Graph) -> dict[str, Any]:
        """A graph as that model takes it."""
        x = graph.x.to_dense() if isinstance(graph.x, Csr) else graph.x
        return {"x": x.float().numpy(), "edge_index": graph.edge_index.numpy()}

    def onnx_outputs(self, graph: Graph) -> dict[str, Any]:
        """What that model should answer, computed by this one."""
        found = {"embedding": self.embed(graph).numpy()}
        return found if self.classifier is None else {**found, "probabilities": self.predict(graph).numpy()}

    def onnx_pipeline(self) -> dict[str, Any]:
        """What goes into that model, who prepares it, and what its outputs mean."""
        width, undirected = self.encoder.width, self.preprocessing["undirected"]
        edges = {
            True: "give every edge in both directions; the training graph had missing reverses added",
            False: "give directed edges as they are",
            None: "give an undirected edge in both directions, a directed one once",
        }[undirected]
        degrees = self.preprocessing["features"] == "degree"
        features = "node degrees" if degrees else "node features as they are in the file, not normalised"
        outputs = {"embedding": {"shape": ["N", width], "type": "float32"}}
        after = []
        if self.classifier is not None:
            outputs["probabilities"] = {"shape": ["N", len(self.classes)], "type": "float32"}
            after = [
                "probabilities: column c belongs to classes[c], rows sum to 1; the class is the argmax of a row"
            ]
        return {
            "inputs": {
                "x": {"shape": ["N", self.features], "type": "float32", "what": features},
                "edge_index": {
                    "shape": [2, "E"],
                    "type": "int64",
                    "what": "node numbers from 0 to N-1: sources in row 0, targets in row 1",
                },
            },
            "by_the_caller": [edges],
            "by_the_model": [
                f"feature rows are normalised ({self.preprocessing['normalise']})",
                "repeated edges count once; self-loops are removed",
                f"the convolution's own self-loops and weights ({self.encoder.convolution})",
            ],
            "outputs": outputs,
            "after": after,
            "classes": self.classes,
        }

    @staticmethod
    def described(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """What each tensor of the encoder is: name -> shape and meaning; names without ``encoder.``."""
        return {
            name: {"shape": list(value.shape), "what": _meaning(name.split("."))}
            for name, value in tensors.items()
        }


def _meaning(steps: list[str]) -> str:
    where = {
        "layers": f"convolution {int(steps[1]) + 1}: " if steps[1].isdigit() else "",
        "norms": f"batch normalisation after convolution {int(steps[1]) + 1}: " if steps[1].isdigit() else "",
        "activation": "activation shared by all layers: ",
    }.get(steps[0], "")
    last = ".".join(steps[2:] if steps[0] in ("layers", "norms") else steps[1:])
    if steps[0] == "layers":
        return where + _CONVOLUTION.get(last, last)
    return where + _OTHER.get(last, last)


_CONVOLUTION = {
    "weight": "W of X W, (inputs, outputs); neighbours are aggregated afterwards",
    "root": "weight of the node itself, (inputs, outputs)",
    "bias": "added after the aggregation",
    "source": "attention vector of the neighbour, (heads, width of a head)",
    "target": "attention vector of the node itself, (heads, width of a head)",
    "out.weight": "second layer of the perceptron, (outputs, inner width)",
    "out.bias": "bias of the second layer of the perceptron",
}
_OTHER = {
    "weight": "scale, or slope of a PReLU",
    "bias": "shift",
    "running_mean": "mean over the training iterations",
    "running_var": "variance over the training iterations",
    "num_batches_tracked": "iterations seen",
}
