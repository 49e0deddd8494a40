"""Every message between web workers and the inference process.

Text stays on the web side: prompts cross as token ids, pictures as upright, resized uint8 RGB
pixels.
"""

from enum import StrEnum
from typing import TypeAlias

import msgspec

from inference.quota import Quota, QuotaKind

PROTOCOL_VERSION = 1


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # an end-of-sequence or stop token, or the grammar is complete
    LENGTH = "length"  # max_tokens, or the repetition guard
    CANCELLED = "cancelled"  # the request's owner asked, or went away
    DEADLINE = "deadline"  # the request's time ran out, queued or running


class RefusalCode(StrEnum):
    """Why the engine did not take a request, or gave one up. Codes, because nobody parses text."""

    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INPUT_INVALID = "input_invalid"
    DUPLICATE_REQUEST_ID = "duplicate_request_id"
    OVERLOADED = "overloaded"
    RATE_LIMITED = "rate_limited"
    DEADLINE_UNREACHABLE = "deadline_unreachable"
    DRAINING = "draining"
    OUT_OF_MEMORY = "out_of_memory"
    GRAMMAR_INVALID = "grammar_invalid"
    GRAMMAR_TOO_COMPLEX = "grammar_too_complex"
    INTERNAL = "internal"


class Grammar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the output must match: exactly one of the first three is set.

    json_schema: a JSON schema as JSON text; `{}` admits any JSON value.
    regex: a regular expression for the whole output.
    lark: rules in llguidance's Lark, the first called `start`, for outputs made of parts. In a rule
        `<tool_call>` is the token of that spelling, which no string or regex there ever matches;
        `@name` is one of `schemas`.
    schemas: with lark, pairs of a name and a JSON schema as JSON text.
    """

    json_schema: str | None = None
    regex: str | None = None
    lark: str | None = None
    schemas: tuple[tuple[str, str], ...] = ()


class SamplingParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """How the next token is chosen and when a sequence ends. Values arrive already validated.

    max_tokens: most tokens to generate; at least 1.
    temperature: 0 is greedy; never divided by when 0.
    top_p, top_k, min_p: nucleus, count and relative-probability cuts; 1.0, 0 and 0.0 are off.
    repetition_penalty: over prompt and output, as in transformers; 1.0 is off.
    presence_penalty, frequency_penalty: over the output only, as in the OpenAI API; 0.0 is off.
    logit_bias: added to the logits of these token ids.
    seed: makes the sequence repeatable whatever runs beside it; None draws from the engine's own.
    min_tokens: before this many, no end-of-sequence or stop token is chosen.
    stop_token_ids: end the sequence as the end-of-sequence ids do.
    ignore_eos: an end-of-sequence token is a token like others; stop_token_ids still end.
    logprobs: None is off; k adds the chosen token's log probability and the k most likely ones.
    repetition_guard: end a sequence that loops over the same tokens (`length`, detail
        `repetition`).
    grammar: constrains every token; None is off.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    min_tokens: int = 0
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    logprobs: int | None = None
    repetition_guard: bool = True
    grammar: Grammar | None = None


class Vision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One picture, or one video as frames of equal size; its placeholders are in the prompt.

    height, width: pixels; multiples of patch_size x merge_size.
    pixels: uint8 RGB, C order [num_frames, height, width, 3]; on arrival a view of the frame.
    num_frames: 1 for a picture; even for a video (pad an odd count by repeating the last frame).
    video: True when the prompt holds video placeholders: one run per pair of frames.
    content_hash: 32 bytes over pixels and shape, made by `service.media`; keys the engine's caches.
    """

    height: int
    width: int
    pixels: memoryview
    num_frames: int = 1
    video: bool = False
    content_hash: bytes


class Generate(
    msgspec.Struct, frozen=True, kw_only=True, tag="generate", forbid_unknown_fields=True
):
    """Worker to engine: run this request; the answer is `Outputs`, `Refused` or both in order.

    request_id: unique among the sending worker's unfinished requests.
    prompt_token_ids: special tokens included, every visual placeholder already expanded.
    visions: pictures and videos in the order of their placeholders.
    num_sequences: how many independent continuations (`n`); they share the prompt's blocks.
    sequence_indices: what each is called in its deltas, and what joins its seed; empty is 0, 1, ...
        A request that goes on in a new engine keeps the indices of those still open.
    priority: lower runs first; within one, callers take fair turns, and each caller's requests run
        in order of arrival.
    tenant: separates caches; two tenants never share a block.
    caller: who turns and quotas count for: a key's name; empty is the tenant as a whole.
    quota: the caller's limits; None is without any.
    deadline_seconds: time left when this was sent; then all its sequences end with `deadline`. The
        engine counts on its own clock. None waits for ever.
    output_prefixes: per sequence, tokens already delivered before an engine was lost; generation
        goes on behind them. Empty for a fresh request.
    is_replay: an engine that was lost had taken it; no quota is charged again.
    is_suspect: on board when engines were lost, more than once; runs alone, after `Isolated`.
    traceparent: the W3C name of the request's span, for log lines; empty is none.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    visions: list[Vision] = []
    num_sequences: int = 1
    sequence_indices: list[int] = []
    priority: int = 0
    tenant: str = ""
    caller: str = ""
    quota: Quota | None = None
    deadline_seconds: float | None = None
    output_prefixes: list[list[int]] = []
    is_replay: bool = False
    is_suspect: bool = False
    traceparent: str = ""


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel", forbid_unknown_fields=True):
    """Worker to engine: nobody waits for this request any more. Unknown ids are ignored."""

    request_id: str


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """The chosen token's log probability and the most likely candidates, best first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """How a sequence came to its first token.

    num_cached_tokens: prompt tokens that came from the prefix cache.
    queue_seconds: from the request's arrival until the sequence first ran. vision_seconds: encoding
        its pictures. prefill_seconds: from then to the first token, without vision_seconds.
    """

    num_cached_tokens: int = 0
    queue_seconds: float = 0.0
    vision_seconds: float = 0.0
    prefill_seconds: float = 0.0


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """How and why one sequence ended.

    detail: with `length`, `max_tokens` or `repetition`; else empty.
    num_output_tokens: all tokens of the sequence, an end token included.
    decode_seconds: from the first token to the end.
    """

    reason: FinishReason
    detail: str = ""
    num_output_tokens: int
    decode_seconds: float = 0.0


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """New tokens of one sequence; with `finish`, its last message.

    An end-of-sequence or stop token that ended the sequence is counted but not delivered.
    admission: with a sequence's first message, unless it was cancelled before it ran.
    """

    request_id: str
    index: int = 0
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    admission: Admission | None = None
    finish: Finish | None = None


class Outputs(msgspec.Struct, frozen=True, kw_only=True, tag="outputs"):
    """Engine to worker: what one step brought for this worker's requests."""

    deltas: list[Delta]


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """Engine to worker: the request ends here; no other message for it follows.

    retry_after_seconds: with `overloaded` and `rate_limited`, when to try again.
    quota: with `rate_limited`, which of the caller's limits it was.
    needed, allowed: the two numbers behind a limit, in the limit's unit; None where there is none.
    """

    request_id: str
    code: RefusalCode
    retry_after_seconds: float | None = None
    quota: QuotaKind | None = None
    needed: int | None = None
    allowed: int | None = None


class Isolated(msgspec.Struct, frozen=True, kw_only=True, tag="isolated"):
    """Engine to worker: this suspect runs now, and nothing else does until it has ended.

    Written before its first step: an engine that is lost after this was lost under it alone.
    """

    request_id: str


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the web side must know of the loaded checkpoint.

    name: what clients call the model. path: local folder with tokenizer.json and the template.
    min_pixels, max_pixels: picture area bounds for resizing, server caps applied.
    max_model_len: prompt and output tokens together.
    temperature .. repetition_penalty: the checkpoint's generation defaults.
    """

    name: str
    path: str
    model_type: str
    dtype: str
    device: str
    num_parameters: int
    vocab_size: int
    max_model_len: int
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_ids: list[int]
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the running engine can hold: derived once, after the warm-up.

    num_blocks x block_size is the KV pool in tokens. max_num_seqs: sequences that decode together.
    max_num_batched_tokens, max_num_encoded_patches: the most prompt tokens and patches of a step.
    max_queued_requests, max_queued_tokens, max_queued_patches, max_queued_seconds: beyond any of
        them the answer is `overloaded`: what waits in sequences beyond the running ones, prompt
        tokens, vision patches and predicted time until a newcomer begins. None is no bound.
    """

    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_queued_requests: int
    max_num_encoded_patches: int = 16384
    max_queued_tokens: int | None = None
    max_queued_patches: int | None = None
    max_queued_seconds: float | None = None


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Engine to worker: warm and taking requests. First message on every connection, once warm."""

    protocol_version: int
    engine_id: str
    model: ModelFacts
    limits: Limits


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """Engine to worker, about once a second: the figures health and metrics show.

    num_queued_tokens, num_queued_patches: prompt tokens and vision patches of requests that have
        not begun. predicted_wait_seconds: for a newcomer until it begins; 0 while nothing is known.
    num_overloaded, num_rate_limited, num_deadlines_unreachable: refusals since the start.
    num_deadlines_exceeded: requests whose time ran out here, queued or running.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_queued_tokens: int = 0
    num_queued_patches: int = 0
    predicted_wait_seconds: float = 0.0
    num_free_blocks: int = 0
    gpu_memory_used_bytes: int = 0
    resident_memory_bytes: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    embedding_cache_queries: int = 0
    embedding_cache_hits: int = 0
    num_overloaded: int = 0
    num_rate_limited: int = 0
    num_deadlines_unreachable: int = 0
    num_deadlines_exceeded: int = 0


WorkerMessage: TypeAlias = Generate | Cancel
EngineMessage: TypeAlias = Ready | Outputs | Refused | Isolated | Stats
