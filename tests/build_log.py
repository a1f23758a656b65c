"""What TensorRT-RTX's builder logs about an engine: fused attention, memory, types of the matrix products."""

import re
from collections import Counter
from dataclasses import dataclass

_LAYER = re.compile(r"Name: (?P<name>.+?), LayerType: \w+, Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*)")
_ATTENTION = re.compile(r"_gemm_mha_v\d+_myl(\d+)_")
_SCRATCH = re.compile(r"Max Scratch Memory: (\d+) bytes")
_PRODUCT = re.compile(r"\[ONNX Layer: (node_MatMul_[\d.]+)\]")


@dataclass(frozen=True)
class BuildLog:
    attention: list[int]  # fused attention kernels of each optimisation profile
    scratch_bytes: list[int]  # of each optimisation profile
    fp8_products: set[str]  # ONNX nodes whose input and weight are multiplied in fp8

    @classmethod
    def read(cls, messages: list[str]) -> "BuildLog":
        text = "\n".join(messages)
        kernels = Counter(int(place) for place in _ATTENTION.findall(" ".join(_names(text))))
        scratch = [int(size) for size in _SCRATCH.findall(text)]
        products = set()
        for layer in _LAYER.finditer(text):
            constants, _, rest = layer["constants"].partition("], Outputs: [")
            if "Datatype: FP8" in layer["inputs"] and "Datatype: FP8" in constants:
                products.update(_PRODUCT.findall(rest))
        return cls([kernels[place] for place in range(len(scratch))], scratch, products)


def _names(text: str) -> list[str]:
    return [layer["name"] for layer in _LAYER.finditer(text)]
