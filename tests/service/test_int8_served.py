"""`--quantize int8` behind the same stages: tiny-shapes answers as with float32 weights, except where rounding decides."""

from concurrent.futures import ThreadPoolExecutor

from conftest import HELD_OUT, TINY_SHAPES, convert_once
from service.servers import serving
from videollama_benchmarks.sources import service
from videollama_benchmarks.tasks.shapes import TASKS, load_shapes, read_shapes
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.specs import DECODER


def test_held_out_questions(server_of, bundle_of, tmp_path):
    made = convert_once(TINY_SHAPES, "tiny-shapes-int8", quantization="int8")
    items = load_shapes(HELD_OUT)[::4]

    def answers(server) -> list[str]:
        with server.client() as client, ThreadPoolExecutor(8) as pool:
            ask = service(client, TASKS[0].max_new_tokens, 60.0, None)
            return list(pool.map(lambda item: ask(item, item.questions[0]), items))

    plain = answers(server_of("tiny-shapes"))
    with serving(made, tmp_path / "server.log") as server:
        quantized = answers(server)
    right = [
        sum(bool(read_shapes(item, [text]).right) for item, text in zip(items, of, strict=True))
        for of in (plain, quantized)
    ]
    assert right[1] >= right[0] - 0.02 * len(items)
    assert sum(one == other for one, other in zip(plain, quantized, strict=True)) >= 0.95 * len(items)

    size = [
        Bundle.open(root).graph(f"{DECODER.name}").with_suffix(".onnx.data").stat().st_size
        for root in (bundle_of("tiny-shapes"), made)
    ]
    assert size[1] < 0.35 * size[0]
