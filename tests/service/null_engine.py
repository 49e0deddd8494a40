"""A scripted engine on the real wire, run as a program: no model, any answer, any fault.

Usage: null_engine.py ADDRESS CHECKPOINT SCRIPT LIFE, with SCRIPT in JSON and the key of the wire in
NULL_ENGINE_KEY as hexadecimal. It prints one line when it listens.

A request's own script may come as JSON in its `tenant`; it replaces the program's. Token k of
sequence i is token_ids[(k + i) % len(token_ids)], whatever was lost in between. A request's queue
took as many seconds as there were connections before.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from threading import Thread
from typing import Literal

import msgspec

from inference.frames import MAX_FRAME_BYTES, decode_worker_message, encode
from inference.protocol import (
    PROTOCOL_VERSION,
    Admission,
    Cancel,
    Delta,
    Finish,
    FinishReason,
    Generate,
    Isolated,
    Limits,
    ModelFacts,
    Outputs,
    Ready,
    RefusalCode,
    Refused,
    Stats,
    TokenLogprob,
)

Fault = Literal["none", "die", "garbage", "hang_up", "stall", "violate", "refuse"]


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a request is answered.

    num_tokens: of sequence 0, each further one has num_more more; None is max_tokens.
    tokens_per_delta: 0 is all at once. start_seconds: before the engine is ready.
    fault: happens when a sequence has fault_after tokens, on the first fault_lives connections.
        A connection refuses the same request only once.
    """

    token_ids: tuple[int, ...] = (65, 66, 67, 68, 69, 70, 71)
    num_tokens: int | None = None
    num_more: int = 0
    tokens_per_delta: int = 1
    step_seconds: float = 0.0
    start_seconds: float = 0.0
    fault: Fault = "none"
    fault_after: int = 0
    fault_lives: int = 1
    refusal: RefusalCode = RefusalCode.OVERLOADED
    protocol_version: int = PROTOCOL_VERSION


class Sequence:
    """One sequence as it is told."""

    def __init__(self, index: int, prefix: list[int], script: Script, max_tokens: int) -> None:
        self.index = index
        self.num_told = len(prefix)
        self.is_first = True
        length = max_tokens if script.num_tokens is None else script.num_tokens
        self.length = min(length + index * script.num_more, max_tokens)
        self.reason = FinishReason.STOP if self.length < max_tokens else FinishReason.LENGTH
        self._tokens = islice(cycle(script.token_ids), index + self.num_told, None)

    def tell(self, request: Generate, script: Script, num_before: int) -> Delta:
        count = min(script.tokens_per_delta or self.length, self.length - self.num_told)
        self.num_told += count
        token_ids = list(islice(self._tokens, count))
        wants_logprobs = request.sampling.logprobs is not None
        is_first, self.is_first = self.is_first, False
        return Delta(
            request_id=request.request_id,
            index=self.index,
            token_ids=token_ids,
            logprobs=[TokenLogprob(token_id=t, logprob=-0.5) for t in token_ids * wants_logprobs],
            admission=self.admission(request, num_before) if is_first else None,
            finish=self.finish() if self.is_over else None,
        )

    @property
    def is_over(self) -> bool:
        return self.num_told >= self.length

    def admission(self, request: Generate, num_before: int) -> Admission:
        return Admission(
            num_cached_tokens=len(request.prompt_token_ids) // 2,
            queue_seconds=num_before,
            prefill_seconds=0.01,
        )

    def finish(self) -> Finish:
        return Finish(reason=self.reason, num_output_tokens=self.num_told, decode_seconds=0.02)


class Told:
    """One request and how far it is told."""

    def __init__(self, request: Generate, script: Script) -> None:
        self.request = request
        self.script = script
        indices = request.sequence_indices or range(request.num_sequences)
        prefixes = request.output_prefixes or [[]] * request.num_sequences
        self.open = [
            Sequence(index, prefix, script, request.sampling.max_tokens)
            for index, prefix in zip(indices, prefixes, strict=True)
        ]

    def step(self, num_before: int) -> Iterator[Delta]:
        for sequence in self.open:
            yield sequence.tell(self.request, self.script, num_before)
        self.open = [sequence for sequence in self.open if not sequence.is_over]

    def is_at_fault(self, num_before: int) -> bool:
        return (
            self.script.fault != "none"
            and num_before < self.script.fault_lives
            and max((sequence.num_told for sequence in self.open), default=0)
            >= self.script.fault_after
        )


class Conversation:
    """One worker's connection; num_before it were, in this process or in those that died."""

    def __init__(self, connection: Connection, script: Script, num_before: int) -> None:
        self.connection = connection
        self.script = script
        self.num_before = num_before
        self.told: dict[str, Told] = {}
        self.suspects: list[Generate] = []
        self.held: list[Generate] = []
        self.is_isolating = False
        self.refused: set[str] = set()

    def run(self, ready: Ready) -> None:
        try:
            self.connection.send_bytes(encode(ready))
            while True:
                self._listen()
                self._step()
                time.sleep(self.script.step_seconds)
        except (EOFError, OSError):
            self.connection.close()

    def _listen(self) -> None:
        self._isolate()
        while not self.told or self.connection.poll():
            message = decode_worker_message(self.connection.recv_bytes(MAX_FRAME_BYTES))
            match message:
                case Generate():
                    self._sort(message)
                    self._isolate()
                case Cancel():
                    self._end(self.told.pop(message.request_id, None))
                    for held in (self.suspects, self.held):
                        held[:] = [r for r in held if r.request_id != message.request_id]
                    self._isolate()
                    self.connection.send_bytes(encode(Stats(num_running=len(self.told))))

    def _end(self, told: Told | None) -> None:
        if told is None:
            return
        deltas = [
            Delta(
                request_id=told.request.request_id,
                index=sequence.index,
                finish=Finish(reason=FinishReason.CANCELLED, num_output_tokens=sequence.num_told),
            )
            for sequence in told.open
        ]
        self.connection.send_bytes(encode(Outputs(deltas=deltas)))

    def _sort(self, request: Generate) -> None:
        if request.is_suspect:
            self.suspects.append(request)
        elif self.is_isolating:
            self.held.append(request)
        else:
            self._take(request)

    def _isolate(self) -> None:
        """Go from one suspect, which runs alone, to the others and then to the next one."""
        if self.told:
            return
        self.is_isolating = False
        while self.held:
            self._take(self.held.pop(0))
        if self.suspects and not self.told:
            suspect = self.suspects.pop(0)
            self.connection.send_bytes(encode(Isolated(request_id=suspect.request_id)))
            self.is_isolating = True
            self._take(suspect)

    def _take(self, request: Generate) -> None:
        script = msgspec.json.decode(request.tenant, type=Script) if request.tenant else self.script
        told = Told(request, script)
        is_new = request.request_id not in self.refused
        if script.fault == "refuse" and is_new and told.is_at_fault(self.num_before):
            self.refused.add(request.request_id)
            code = script.refusal
            refused = Refused(
                request_id=request.request_id,
                code=code,
                retry_after_seconds=0.05 if code == RefusalCode.OVERLOADED else None,
                needed=len(request.prompt_token_ids),
                allowed=7,
            )
            self.connection.send_bytes(encode(refused))
        else:
            self.told[request.request_id] = told

    def _step(self) -> None:
        deltas: list[Delta] = []
        strays: list[Told] = []
        for told in self.told.values():
            if told.script.fault == "violate" and told.is_at_fault(self.num_before):
                strays.append(told)
            elif told.script.fault != "refuse" and told.is_at_fault(self.num_before):
                self._fail(told)
            else:
                deltas.extend(told.step(self.num_before))
        self.told = {request_id: told for request_id, told in self.told.items() if told.open}
        for told in strays:
            told.script = msgspec.structs.replace(told.script, fault="none")
            deltas.insert(0, Delta(request_id=told.request.request_id, index=99, token_ids=[1]))
        if deltas:
            self.connection.send_bytes(encode(Outputs(deltas=deltas)))
        if strays:
            self._step()  # what follows at once is without fault

    def _fail(self, told: Told) -> None:
        match told.script.fault:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "garbage":
                self.connection.send_bytes(b"\xc1 no message")
            case "hang_up":
                self.connection.close()
            case _:
                time.sleep(0.001)  # stalls


def model_facts(checkpoint: Path) -> ModelFacts:
    """Read what an engine would say of a checkpoint, without loading it."""
    config = msgspec.json.decode((checkpoint / "config.json").read_bytes())
    size = msgspec.json.decode((checkpoint / "preprocessor_config.json").read_bytes())["size"]
    return ModelFacts(
        name="null",
        path=str(checkpoint),
        model_type=config["model_type"],
        dtype="bfloat16",
        device="cpu",
        num_parameters=0,
        vocab_size=config["text_config"]["vocab_size"],
        max_model_len=config["text_config"]["max_position_embeddings"],
        image_token_id=config["image_token_id"],
        video_token_id=config["video_token_id"],
        vision_start_token_id=config["vision_start_token_id"],
        vision_end_token_id=config["vision_end_token_id"],
        eos_token_ids=[config["text_config"]["eos_token_id"]],
        patch_size=config["vision_config"]["patch_size"],
        merge_size=config["vision_config"]["spatial_merge_size"],
        temporal_patch_size=config["vision_config"]["temporal_patch_size"],
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
    )


def main(address: str, checkpoint: str, script_json: str, life: str) -> None:
    script = msgspec.json.decode(script_json, type=Script)
    ready = Ready(
        protocol_version=script.protocol_version,
        engine_id=f"null-{life}",
        model=model_facts(Path(checkpoint)),
        limits=Limits(
            block_size=16,
            num_blocks=4096,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            max_queued_requests=256,
        ),
    )
    time.sleep(script.start_seconds)
    Path(address).unlink(missing_ok=True)
    key = bytes.fromhex(os.environ["NULL_ENGINE_KEY"])
    with Listener(address, family="AF_UNIX", backlog=16, authkey=key) as listener:
        print("listening", flush=True)
        num_accepted = 0
        while True:
            try:
                connection = listener.accept()
            except (AuthenticationError, EOFError, OSError):
                continue
            conversation = Conversation(connection, script, int(life) + num_accepted)
            num_accepted += 1
            Thread(target=conversation.run, args=(ready,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
