"""`--engine torch` behind the same stages: the recorded answers over gRPC, many at a time."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ROOT, cases, checkpoint
from service.servers import serving
from service.test_golden_over_grpc import REVERSED, media_of
from videollama_converters.convert import convert
from videollama_converters.engine_options import EngineOptions


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    options = EngineOptions(engine="torch", dtype="float32", max_seq_len=4096, slots=4)
    out = convert(checkpoint("av-qwen2-siglip"), ROOT / "build/tests/av-qwen2-siglip-torch", options=options)
    with serving(out, tmp_path_factory.mktemp("torch") / "server.log") as running:
        yield running


def test_recorded_answers(server):
    wanted = [case for case in cases("av-qwen2-siglip") if case.name != REVERSED]

    def ask(case):
        with server.client() as client:
            return client.ask(
                case.facts["instruct"], **media_of(case), **case.segment, max_new_tokens=case.max_new_tokens
            )

    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(ask, wanted))
    assert [answer.output_ids for answer in answers] == [case.facts["output_ids"] for case in wanted]
    assert [answer.text for answer in answers] == [case.facts["text"] for case in wanted]
