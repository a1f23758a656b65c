"""The null model of the overhead measurement and its reader: a wrong answer is detected before it is timed."""

import json

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from counting_runner import Listener, run
from videollama_benchmarks.overhead.callers import TimedStream, spread
from videollama_benchmarks.overhead.free_model import COUNT, FIRST, FreeSteps, expected_ids
from videollama_benchmarks.overhead.served import POSITIONS, with_free_model
from videollama_core.generation.request import GenerationRequest
from videollama_core.generation.scheduler import Scheduler
from videollama_core.protocol.errors import StageFailed
from videollama_core.protocol.messages import ResolvedSampling


def test_answers_step_through_the_vocabulary():
    scheduler, listeners = Scheduler(FreeSteps(64, 1000)), [Listener() for _ in range(3)]
    for place, listener in enumerate(listeners):
        sampling = ResolvedSampling(9, True, 1.0, 0, 1.0, 1.0, 0)
        ids = np.array([5, 90 + place], np.int64)
        scheduler.submit(GenerationRequest(str(place), ids, sampling, (), listener.step, listener.fail))
    run(scheduler)
    for place, listener in enumerate(listeners):
        assert listener.last and listener.ids == expected_ids(FIRST + (95 + place) % COUNT, 9)
    assert scheduler.counters.most_in_one_step == 3


def message(ids, summary=None) -> bytes:
    envelope = service_pb2.ModelStreamInferResponse()
    response = envelope.infer_response
    for name, datatype, shape, raw in (
        ("text", "BYTES", [1], b"\x01\0\0\0x"),
        ("output_ids", "INT32", [len(ids)], np.array(ids, np.int32).tobytes()),
        *([("summary", "BYTES", [1], len(summary).to_bytes(4, "little") + summary)] if summary else []),
    ):
        response.outputs.add(name=name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(raw)
    return envelope.SerializeToString()


def test_the_reader_refuses_an_answer_that_the_model_did_not_give():
    counts = {"prompt_tokens": 1, "media_tokens": 0, "completion_tokens": 4}
    summary = json.dumps({"usage": counts, "finish_reason": "length", "seconds": {}}).encode()
    ids = expected_ids(FIRST + COUNT - 2, 4)
    assert ids[1:] == [FIRST + COUNT - 1, FIRST, FIRST + 1]
    good = TimedStream([message(ids[:1]), message(ids[1:], summary)], [0.5, 2.0])
    assert good.answer(4)._ids == ids and good.first_text == 0.5
    assert spread([good, TimedStream([b""], [3.0])]) == 1.5
    with pytest.raises(StageFailed, match="not the free model's"):
        TimedStream([message(ids[1:2]), message([*ids[:1], *ids[2:]], summary)], [1, 2]).answer(4)


def test_a_bundle_keeps_everything_but_its_language_model(tmp_path):
    bundle, free = tmp_path / "bundle", tmp_path / "free"
    free.mkdir()
    for name in ("llm/a", "model_repository/tensorrt_llm/1/model.py", "model_repository/videollama2/config.pbtxt"):
        (bundle / name).parent.mkdir(parents=True)
        (bundle / name).write_text("old")
    (bundle / "model_repository/tensorrt_llm/config.pbtxt").write_text("config")
    files = {"llm/a": {}, "model_repository/tensorrt_llm/1/model.py": {}}
    (bundle / "manifest.json").write_text(json.dumps({"files": files}))
    with_free_model(bundle, free)
    assert "FreeLanguageModelStage" in (free / "model_repository/tensorrt_llm/1/model.py").read_text()
    assert (free / "model_repository/videollama2").readlink() == bundle / "model_repository/videollama2"
    assert json.loads((free / "manifest.json").read_text()) == {"files": {"llm/a": {}}, "max_seq_len": POSITIONS}
