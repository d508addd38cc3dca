"""Sends jobs to a Triton server with NVIDIA's own client; runs in `.venv-triton`, apart from the tests.

    python triton_client.py FOLDER

FOLDER/jobs.json: {"http": "host:port", "grpc": "host:port", "clients": N, "jobs": [JOB, ...]}, and JOB
{"protocol": "http" | "grpc", "model": name, "inputs": {name: "file.npy"}, "parameters": {...},
"cancel_after_s": seconds (gRPC)}. N threads, each with clients of its own, take turns. FOLDER/answers.json:
for each job {"outputs": {name: "file.npy"}} or {"error": text, "status": text}, and "seconds".
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Answer = dict[str, Any]


def ask(folder: Path, number: int, job: dict[str, Any], clients: dict[str, Any]) -> Answer:
    protocol = job["protocol"]
    module = getattr(tritonclient, protocol)
    inputs = []
    for name, file in job["inputs"].items():
        array = np.load(folder / file)
        inputs.append(module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    start = time.monotonic()
    try:
        if "cancel_after_s" in job:
            reply = cancelled(clients[protocol], job, inputs)
        else:
            reply = clients[protocol].infer(job["model"], inputs, parameters=job.get("parameters"))
    except InferenceServerException as error:
        answer = {"error": error.message(), "status": str(error.status())}
    else:
        outputs = {}
        described = reply.get_response()
        if protocol == "grpc":
            names = [output.name for output in described.outputs]
        else:
            names = [output["name"] for output in described["outputs"]]
        for name in names:
            outputs[name] = f"answer-{number}-{name}.npy"
            np.save(folder / outputs[name], reply.as_numpy(name))
        answer = {"outputs": outputs}
    return {**answer, "seconds": time.monotonic() - start}


def cancelled(client: Any, job: dict[str, Any], inputs: list[Any]) -> Any:
    done = threading.Event()
    told: list[Any] = []

    def callback(result: Any, error: Any) -> None:
        told.append(error or result)
        done.set()

    call = client.async_infer(job["model"], inputs, callback, parameters=job.get("parameters"))
    time.sleep(job["cancel_after_s"])
    call.cancel()
    done.wait(60)
    if isinstance(told[0], InferenceServerException):
        raise told[0]
    return told[0]


def main() -> None:
    folder = Path(sys.argv[1])
    order = json.loads((folder / "jobs.json").read_text())
    jobs, answers = order["jobs"], [Answer() for _ in order["jobs"]]
    waiting = iter(range(len(jobs)))
    lock = threading.Lock()

    def work() -> None:
        clients = {
            "http": tritonclient.http.InferenceServerClient(order["http"], network_timeout=120),
            "grpc": tritonclient.grpc.InferenceServerClient(order["grpc"]),
        }
        while True:
            with lock:
                number = next(waiting, None)
            if number is None:
                break
            answers[number] = ask(folder, number, jobs[number], clients)
        for client in clients.values():
            client.close()

    threads = [threading.Thread(target=work) for _ in range(order["clients"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (folder / "answers.json").write_text(json.dumps(answers))


main()
