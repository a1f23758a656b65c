"""Messages of the entry as Triton sends them."""

import struct

import numpy as np
from tritonclient.grpc import service_pb2


def message(**outputs) -> service_pb2.ModelStreamInferResponse:
    response = service_pb2.ModelStreamInferResponse()
    for name, value in outputs.items():
        if name == "output_ids":
            response.infer_response.outputs.add(name=name, datatype="INT32", shape=[len(value)])
            response.infer_response.raw_output_contents.append(np.array(value, np.int32).tobytes())
        else:
            data = value.encode()
            response.infer_response.outputs.add(name=name, datatype="BYTES", shape=[1])
            response.infer_response.raw_output_contents.append(struct.pack("<I", len(data)) + data)
    return response
