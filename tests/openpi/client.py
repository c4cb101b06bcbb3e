"""openpi-client itself, in an environment of its own, against our server: `client.py PORT`."""

import sys

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

policy = WebsocketClientPolicy("127.0.0.1", int(sys.argv[1]), api_key="secret")
assert policy.get_server_metadata()["name"] == "counting", policy.get_server_metadata()
for number in range(20, 40):
    answer = policy.infer({"state": np.full((2, 3), number, np.float32), "prompt": "fold", "unknown": np.float32(1)})
    actions = answer["actions"]
    assert actions.shape == (7, 2), actions.shape
    assert (actions[:, 0] == number).all(), actions
    assert (actions[:, 1] == number * 1000 + np.arange(1, 8)).all(), actions
    assert answer["server_timing"]["infer_ms"] >= 0
said = ""
try:
    policy.infer({"prompt": "fold"})
except RuntimeError as error:
    said = str(error)
assert "'state' is missing" in said, said
