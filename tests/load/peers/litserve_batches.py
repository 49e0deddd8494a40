"""LitServe with batches of up to 8 around `generate`: its documented way to serve many at once.

Usage: litserve_batches.py MODEL PORT. The native dialect's `/v1/chat`; in batches it cannot stream.
"""

import sys
from typing import Any

import litserve  # pyright: ignore[reportMissingImports]
from transformers_model import Answer, Model, Question

MAX_BATCH_SIZE = 8
BATCH_TIMEOUT_SECONDS = 0.05


class ChatApi(litserve.LitAPI):
    """One copy of the model in one worker process."""

    def __init__(self, folder: str) -> None:
        super().__init__(
            max_batch_size=MAX_BATCH_SIZE,
            batch_timeout=BATCH_TIMEOUT_SECONDS,
            api_path="/v1/chat",
        )
        self._folder = folder

    def setup(self, device: str) -> None:
        self._model = Model(self._folder)

    def decode_request(self, request: dict[str, Any]) -> Question:
        return self._model.read(request)

    def batch(self, inputs: list[Question]) -> list[Question]:
        return inputs

    def predict(self, x: list[Question]) -> list[Answer]:
        return self._model.answer(x)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    def encode_response(self, output: Answer) -> dict[str, Any]:
        usage = {
            "input_tokens": output.num_prompt_tokens,
            "output_tokens": output.num_output_tokens,
        }
        return {"success": True, "message": "ok", "result": output.text, "usage": usage}


if __name__ == "__main__":
    server = litserve.LitServer(
        ChatApi(sys.argv[1]), accelerator="cpu", workers_per_device=1, timeout=600
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning"
    )
