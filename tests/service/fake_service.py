"""A service of fake children, run as a program: the supervisor is real, the children are tiny.

Usage: fake_service.py SCENARIO PORT RESTART_BUDGET. A child appends a line `name pid` to the file
named by FAKE_JOURNAL when it starts, and its end to stop in order.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import msgspec

from inference.control import Heartbeat, Progress, ReplaceMe, Started, StartFailed
from inference.frames import decode_stop, encode
from service.config import Settings
from service.processes.launcher import Entries
from service.processes.supervisor import serve

SCENARIO = sys.argv[1] if len(sys.argv) > 1 else "well"
ENGINES_TO_FINISH = {"finishes-with-the-second-engine": 2, "finishes-with-the-third-engine": 3}


def note(*words: object) -> None:
    with Path(os.environ["FAKE_JOURNAL"]).open("a") as journal:
        journal.write(" ".join(map(str, words)) + "\n")


def num_starts(name: str) -> int:
    journal = Path(os.environ["FAKE_JOURNAL"]).read_text()
    return sum(line.startswith(f"start {name} ") for line in journal.splitlines())


def is_first(name: str) -> bool:
    return multiprocessing.current_process().name == name and num_starts(name) == 1


def work(control, *, linger_seconds: float = 0.0) -> None:
    control.send_bytes(encode(Started()))
    if SCENARIO == "worker-0-has-done-its-share" and is_first("worker 0"):
        control.send_bytes(encode(ReplaceMe()))
    while not control.poll(0.1):
        control.send_bytes(encode(Heartbeat()))
    stop = decode_stop(control.recv_bytes())
    time.sleep(min(linger_seconds, stop.drain_seconds))


def run_worker(control, **_) -> None:
    name = multiprocessing.current_process().name
    note("start", name, os.getpid())
    if SCENARIO == "successors-crash" and not is_first(name):
        os._exit(7)
    work(control, linger_seconds=0.5)
    while num_starts("inference") < ENGINES_TO_FINISH.get(SCENARIO, 0):
        time.sleep(0.05)
    note("end", name)


def run_inference(control, **_) -> None:
    note("start", "inference", os.getpid())
    note("threads", os.environ.get("OMP_NUM_THREADS"), os.environ.get("GOMP_SPINCOUNT"))
    match SCENARIO:
        case "crashes":
            os._exit(7)
        case "cannot-start":
            control.send_bytes(encode(StartFailed(message="the checkpoint has no config.json")))
            time.sleep(60)
        case "gets-stuck":
            control.send_bytes(encode(Started()))
            time.sleep(60)
        case "loads-for-long":
            control.send_bytes(encode(Progress(stage="loading the weights")))
            time.sleep(60)
        case "loads-for-a-while":
            for stage in ("looking up qwen on the hub", "loading the weights"):
                control.send_bytes(encode(Progress(stage=stage)))
                time.sleep(1.5)
            work(control)
        case "ignores-stop":
            control.send_bytes(encode(Started()))
            while True:
                time.sleep(0.1)
                control.send_bytes(encode(Heartbeat()))
        case _:
            work(control)
    note("end", "inference")


if __name__ == "__main__":
    if "FAKE_TERMINAL" in os.environ:  # a session leader takes the first one that it opens
        os.open(os.environ["FAKE_TERMINAL"], os.O_RDWR)
    settings = msgspec.convert(
        {"port": int(sys.argv[2]), "workers": 2, "restart_budget": 1, "log_format": "json"},
        Settings,
    )
    if SCENARIO == "gets-stuck":
        settings = msgspec.structs.replace(settings, heartbeat_timeout_seconds=1.0)
    if SCENARIO == "finishes-with-the-third-engine":
        settings = msgspec.structs.replace(settings, restart_budget=5)
    if SCENARIO == "is-soon-missed":
        settings = msgspec.structs.replace(settings, heartbeat_timeout_seconds=3.0)
    raise SystemExit(serve(settings, Entries(worker=run_worker, inference=run_inference)))
