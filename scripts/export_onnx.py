#!/usr/bin/env python3
"""Write a BERT encoder as an ONNX graph, straight from its safetensors file.

The graph uses standard operators of opset 17 only and fuses nothing: the runtime
does that when it loads the file. Linear weights are stored transposed, because
ONNX multiplies `x @ W` where the training framework keeps `x @ W.T`. Pooling and
normalization are left to the caller. The same weights always give the same bytes.

    python export_onnx.py SOURCE_FOLDER OUTPUT_FILE
"""

import argparse
import json
import math
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
# The file format version that came with opset 17, so that older readers load it too.
IR_VERSION = 8


def read_safetensors(path):
    """Return the float32 tensors of a safetensors file by name.

    The format is an 8-byte little-endian header length, a JSON header, then raw bytes
    at the offsets that the header gives.
    """
    raw = path.read_bytes()
    header_bytes = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + header_bytes])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        begin, end = entry["data_offsets"]
        data = raw[8 + header_bytes + begin : 8 + header_bytes + end]
        tensors[name] = np.frombuffer(data, dtype="<f4").reshape(entry["shape"])
    return tensors


def check_config(config):
    """Refuse an architecture that this graph would silently get wrong."""
    expected = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
    for key, value in expected.items():
        if config.get(key) != value:
            sys.exit(f"config.json has {key} = {config.get(key)!r}; only {value!r} is supported")


class Graph:
    """Collects nodes and initializers in the order in which they are added."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.nodes = []
        self.initializers = {}

    def constant(self, name, array):
        """Add an initializer once and return its name."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def weight(self, name):
        return self.constant(name, self.tensors[name])

    def node(self, operator, inputs, output, **attributes):
        """Add a node with one output, named as its output, and return that name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def linear(self, x, prefix):
        """`x @ W.T + b`, with W stored transposed."""
        transposed = self.constant(f"{prefix}.weight_t", self.tensors[f"{prefix}.weight"].T)
        product = self.node("MatMul", [x, transposed], f"{prefix}/matmul")
        return self.node("Add", [product, self.weight(f"{prefix}.bias")], f"{prefix}/out")

    def layer_norm(self, x, prefix, epsilon):
        scale, bias = self.weight(f"{prefix}.weight"), self.weight(f"{prefix}.bias")
        return self.node(
            "LayerNormalization", [x, scale, bias], f"{prefix}/out", axis=-1, epsilon=epsilon
        )

    def gelu(self, x, prefix):
        """The exact form, `x / 2 * (1 + erf(x / sqrt(2)))`, not the tanh approximation."""
        sqrt_two = self.constant("gelu.sqrt_two", np.float32(math.sqrt(2.0)))
        one = self.constant("gelu.one", np.float32(1.0))
        half = self.constant("gelu.half", np.float32(0.5))
        scaled = self.node("Div", [x, sqrt_two], f"{prefix}/scaled")
        erf = self.node("Erf", [scaled], f"{prefix}/erf")
        shifted = self.node("Add", [erf, one], f"{prefix}/shifted")
        product = self.node("Mul", [x, shifted], f"{prefix}/product")
        return self.node("Mul", [product, half], f"{prefix}/out")


def add_embeddings(graph, config):
    """Sum of word, position and token type embeddings, normalized."""
    words = graph.node(
        "Gather", [graph.weight("embeddings.word_embeddings.weight"), "input_ids"], "words"
    )
    types = graph.node(
        "Gather",
        [graph.weight("embeddings.token_type_embeddings.weight"), "token_type_ids"],
        "types",
    )
    # Positions are 0, 1, 2 ...: the first rows of the table, as many as there are tokens.
    zero = graph.constant("index.zero", np.array([0], dtype=np.int64))
    one = graph.constant("index.one", np.array([1], dtype=np.int64))
    two = graph.constant("index.two", np.array([2], dtype=np.int64))
    shape = graph.node("Shape", ["input_ids"], "shape")
    length = graph.node("Slice", [shape, one, two], "length")
    positions = graph.node(
        "Slice",
        [graph.weight("embeddings.position_embeddings.weight"), zero, length, zero],
        "positions",
    )
    total = graph.node("Add", [words, types], "words_and_types")
    total = graph.node("Add", [total, positions], "embeddings")
    return graph.layer_norm(total, "embeddings.LayerNorm", config["layer_norm_eps"])


def add_mask_bias(graph):
    """0 where a token counts and the lowest float32 where it is padding, [batch, 1, 1, seq]."""
    axes = graph.constant("mask.axes", np.array([1, 2], dtype=np.int64))
    one = graph.constant("mask.one", np.float32(1.0))
    lowest = graph.constant("mask.lowest", np.float32(np.finfo(np.float32).min))
    mask = graph.node("Unsqueeze", ["attention_mask", axes], "mask/unsqueezed")
    mask = graph.node("Cast", [mask], "mask/float", to=TensorProto.FLOAT)
    padding = graph.node("Sub", [one, mask], "mask/padding")
    return graph.node("Mul", [padding, lowest], "mask/bias")


def add_attention(graph, x, mask_bias, prefix, heads, width):
    """Multi-head self-attention up to and including its output projection."""
    split = graph.constant("heads.split", np.array([0, 0, heads, width // heads], dtype=np.int64))
    joined = graph.constant("heads.joined", np.array([0, 0, width], dtype=np.int64))
    scale = graph.constant("heads.scale", np.float32(math.sqrt(width // heads)))

    def by_head(which, order):
        y = graph.linear(x, f"{prefix}.self.{which}")
        y = graph.node("Reshape", [y, split], f"{prefix}.{which}/split")
        return graph.node("Transpose", [y], f"{prefix}.{which}/heads", perm=order)

    query = by_head("query", [0, 2, 1, 3])
    key = by_head("key", [0, 2, 3, 1])
    value = by_head("value", [0, 2, 1, 3])
    scores = graph.node("MatMul", [query, key], f"{prefix}/scores")
    scores = graph.node("Div", [scores, scale], f"{prefix}/scaled")
    scores = graph.node("Add", [scores, mask_bias], f"{prefix}/masked")
    shares = graph.node("Softmax", [scores], f"{prefix}/shares", axis=-1)
    mixed = graph.node("MatMul", [shares, value], f"{prefix}/mixed")
    mixed = graph.node("Transpose", [mixed], f"{prefix}/by_token", perm=[0, 2, 1, 3])
    mixed = graph.node("Reshape", [mixed, joined], f"{prefix}/joined")
    return graph.linear(mixed, f"{prefix}.output.dense")


def build(config, tensors):
    """The whole encoder as a checked ONNX model."""
    graph = Graph(tensors)
    width, epsilon = config["hidden_size"], config["layer_norm_eps"]
    x = add_embeddings(graph, config)
    mask_bias = add_mask_bias(graph)
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        attended = add_attention(
            graph, x, mask_bias, f"{layer}.attention", config["num_attention_heads"], width
        )
        x = graph.node("Add", [attended, x], f"{layer}.attention/residual")
        x = graph.layer_norm(x, f"{layer}.attention.output.LayerNorm", epsilon)
        wide = graph.linear(x, f"{layer}.intermediate.dense")
        wide = graph.gelu(wide, f"{layer}.gelu")
        narrow = graph.linear(wide, f"{layer}.output.dense")
        x = graph.node("Add", [narrow, x], f"{layer}.output/residual")
        x = graph.layer_norm(x, f"{layer}.output.LayerNorm", epsilon)
    graph.node("Identity", [x], "last_hidden_state")

    def tensor(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        graph.nodes,
        "bert",
        [
            tensor("input_ids", TensorProto.INT64, ["batch", "seq"]),
            tensor("attention_mask", TensorProto.INT64, ["batch", "seq"]),
            tensor("token_type_ids", TensorProto.INT64, ["batch", "seq"]),
        ],
        [tensor("last_hidden_state", TensorProto.FLOAT, ["batch", "seq", width])],
        initializer=list(graph.initializers.values()),
    )
    model = helper.make_model(
        body,
        producer_name="refrain",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main():
    parser = argparse.ArgumentParser(description="Export a BERT encoder to ONNX.")
    parser.add_argument(
        "source", type=pathlib.Path, help="folder with config.json and model.safetensors"
    )
    parser.add_argument("output", type=pathlib.Path, help="the .onnx file to write")
    arguments = parser.parse_args()
    config = json.loads((arguments.source / "config.json").read_text(encoding="utf-8"))
    check_config(config)
    model = build(config, read_safetensors(arguments.source / "model.safetensors"))
    arguments.output.write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
