"""The service with nothing behind its web workers: the supervisor is real, the engine a script.

Usage: null_service.py PORT CHECKPOINT TOKENS_PER_DELTA. One worker; its engine answers every
request at once, TOKENS_PER_DELTA at a time, 0 for all together.
"""

import os
import runpy
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

import msgspec

from inference.config import EngineConfig
from inference.control import Heartbeat, Started
from inference.frames import encode
from inference.ledger import Place
from inference.log import LogConfig
from service.config import Settings
from service.processes.launcher import ENTRIES, Entries
from service.processes.supervisor import serve

_NULL_ENGINE = Path(__file__).parents[1] / "service" / "null_engine.py"


def run_null_engine(
    control: Connection,
    *,
    config: EngineConfig,
    address: str,
    authkey: bytes,
    logging: LogConfig,
    place: Place,
) -> None:
    """Stand in for the inference process, as far as its arguments go as well."""
    os.environ["NULL_ENGINE_KEY"] = authkey.hex()
    script = msgspec.json.encode({"tokens_per_delta": int(os.environ["TOKENS_PER_DELTA"])})
    run = runpy.run_path(str(_NULL_ENGINE))["main"]
    arguments = (address, config.model, script.decode(), "0")
    Thread(target=run, args=arguments, daemon=True).start()
    control.send_bytes(encode(Started()))
    while not control.poll(1.0):
        control.send_bytes(encode(Heartbeat()))


if __name__ == "__main__":
    os.environ["TOKENS_PER_DELTA"] = sys.argv[3]
    settings = Settings(
        port=int(sys.argv[1]), workers=1, log_format="json", engine=EngineConfig(model=sys.argv[2])
    )
    raise SystemExit(serve(settings, Entries(worker=ENTRIES.worker, inference=run_null_engine)))
