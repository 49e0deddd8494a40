"""The declarations of what web workers and the supervisor count; the engine's are beside it."""

from inference.ledger import Family

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0),
)
_TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)
_TOKENS = tuple(float(2**power) for power in range(19))
_PIXELS = tuple(float(2**power) for power in range(12, 27))


def _seconds(name: str, text: str, bounds: tuple[float, ...] = _SECONDS) -> Family:
    return Family("histogram", f"loupe_{name}_seconds", text, bounds=bounds)


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family("counter", f"loupe_{name}_total", text, labels)


TIME_TO_FIRST_TOKEN = _seconds(
    "time_to_first_token", "From a request's arrival to its first token."
)
INTER_TOKEN_LATENCY = _seconds(
    "inter_token_latency", "From one token of an answer to its next one.", _TOKEN_SECONDS
)
E2E_LATENCY = _seconds(
    "e2e_request_latency", "From a request's arrival to its last byte, where it was answered."
)
INFERENCE_TIME = _seconds(
    "request_inference_time", "From handing a request to the engine to its last token."
)
QUEUE_TIME = _seconds("request_queue_time", "Waiting in the engine until a request first ran.")
PREFILL_TIME = _seconds(
    "request_prefill_time", "From the queue's end to the first token, without the pictures'."
)
DECODE_TIME = _seconds("request_decode_time", "From the first token to the last.")
VISION_TIME = _seconds("vision_encode", "Encoding a request's pictures in the engine.")
IMAGE_FETCH_TIME = _seconds("image_fetch", "Getting a request's files from where URLs point.")
IMAGE_DECODE_TIME = _seconds("image_decode", "Decoding and resizing a request's pictures.")
PROMPT_TIME = _seconds("prompt", "Making a request's tokens.")

PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens of requests that reached a first token.")
CACHED_TOKENS = _counter("cached_tokens", "Of these, tokens that came from the prefix cache.")
IMAGE_TOKENS = _counter("image_tokens", "Of the prompt tokens, those of pictures.")
OUTPUT_TOKENS = _counter("output_tokens", "Tokens of answers, as usage counts them.")
REQUEST_PROMPT_TOKENS = Family(
    "histogram", "loupe_request_prompt_tokens", "Prompt tokens of a request.", bounds=_TOKENS
)
REQUEST_OUTPUT_TOKENS = Family(
    "histogram", "loupe_request_output_tokens", "Output tokens of a request.", bounds=_TOKENS
)
IMAGES = _counter("images", "Pictures, pages and videos that the engine saw.")
IMAGE_PIXELS = Family(
    "histogram", "loupe_image_pixels", "Pixels of a picture as the model sees it.", bounds=_PIXELS
)

REQUESTS = _counter("requests", "Responses that were sent whole.", "route", "status")
REFUSED = _counter("requests_refused", "Requests that ended with an error code.", "code")
IMAGES_REFUSED = _counter("images_refused", "Requests whose media could not be used.", "reason")
DISCONNECTS = _counter(
    "client_disconnects", "Requests whose client left, by what was being done.", "stage"
)
DEADLINES_MISSED = _counter(
    "deadline_missed", "Requests whose time ran out, by what was being done.", "stage"
)
ANSWERS = _counter("answers", "Answers that ended.", "finish_reason")
REPLAYS = _counter("requests_replayed", "Requests that outlived an engine.")
IN_FLIGHT = Family("gauge", "loupe_requests_in_flight", "Requests whose response is not complete.")
OPEN_STREAMS = Family("gauge", "loupe_open_streams", "Event streams being written.")

KEY_REQUESTS = _counter("key_requests", "Responses by API key.", "key", "status")
KEY_PROMPT_TOKENS = _counter("key_prompt_tokens", "Prompt tokens by API key.", "key")
KEY_OUTPUT_TOKENS = _counter("key_output_tokens", "Output tokens by API key.", "key")

ENGINE_RESTARTS = _counter("engine_restarts", "Inference processes that were replaced.")
WORKER_RESTARTS = _counter("web_worker_restarts", "Web workers that were replaced.", "process")
WORKER_RSS = Family("gauge", "loupe_web_worker_rss_bytes", "Main memory of a worker.", ("process",))
DECODERS_RSS = Family(
    "gauge", "loupe_decoders_rss_bytes", "Main memory of a worker's decoders.", ("process",)
)
SUPERVISOR_RSS = Family("gauge", "loupe_supervisor_rss_bytes", "Main memory of the supervisor.")

REQUEST_FAMILIES = (
    TIME_TO_FIRST_TOKEN,
    INTER_TOKEN_LATENCY,
    E2E_LATENCY,
    INFERENCE_TIME,
    QUEUE_TIME,
    PREFILL_TIME,
    DECODE_TIME,
    VISION_TIME,
    IMAGE_FETCH_TIME,
    IMAGE_DECODE_TIME,
    PROMPT_TIME,
    PROMPT_TOKENS,
    CACHED_TOKENS,
    IMAGE_TOKENS,
    OUTPUT_TOKENS,
    REQUEST_PROMPT_TOKENS,
    REQUEST_OUTPUT_TOKENS,
    IMAGES,
    IMAGE_PIXELS,
    REQUESTS,
    REFUSED,
    IMAGES_REFUSED,
    DISCONNECTS,
    DEADLINES_MISSED,
    ANSWERS,
    REPLAYS,
    IN_FLIGHT,
    OPEN_STREAMS,
    KEY_REQUESTS,
    KEY_PROMPT_TOKENS,
    KEY_OUTPUT_TOKENS,
)
PROCESS_FAMILIES = (
    ENGINE_RESTARTS,
    WORKER_RESTARTS,
    WORKER_RSS,
    DECODERS_RSS,
    SUPERVISOR_RSS,
)
