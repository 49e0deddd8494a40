"""The figures that dashboards and autoscalers read of vLLM, as vLLM spells them.

Source: vLLM's `vllm/v1/metrics/loggers.py`. Units are the same: its `..._perc` is a share from 0 to
1, and it counts its prefix cache in tokens, too.
"""

from inference import metrics as engine
from inference.ledger import Family
from service.metrics import families as web

VLLM_NAMES: dict[str, Family] = {
    "vllm:num_requests_running": engine.RUNNING,
    "vllm:num_requests_waiting": engine.WAITING,
    "vllm:kv_cache_usage_perc": engine.KV_CACHE_USAGE,
    "vllm:prefix_cache_queries_total": engine.PREFIX_CACHE_QUERIES,
    "vllm:prefix_cache_hits_total": engine.PREFIX_CACHE_HITS,
    "vllm:mm_cache_queries_total": engine.EMBEDDING_CACHE_QUERIES,
    "vllm:mm_cache_hits_total": engine.EMBEDDING_CACHE_HITS,
    "vllm:num_preemptions_total": engine.PREEMPTIONS,
    "vllm:iteration_tokens_total": engine.STEP_TOKENS,
    "vllm:prompt_tokens_total": web.PROMPT_TOKENS,
    "vllm:prompt_tokens_cached_total": web.CACHED_TOKENS,
    "vllm:generation_tokens_total": web.OUTPUT_TOKENS,
    "vllm:request_success_total": web.ANSWERS,
    "vllm:request_prompt_tokens": web.REQUEST_PROMPT_TOKENS,
    "vllm:request_generation_tokens": web.REQUEST_OUTPUT_TOKENS,
    "vllm:time_to_first_token_seconds": web.TIME_TO_FIRST_TOKEN,
    "vllm:inter_token_latency_seconds": web.INTER_TOKEN_LATENCY,
    "vllm:e2e_request_latency_seconds": web.E2E_LATENCY,
    "vllm:request_queue_time_seconds": web.QUEUE_TIME,
    "vllm:request_prefill_time_seconds": web.PREFILL_TIME,
    "vllm:request_decode_time_seconds": web.DECODE_TIME,
    "vllm:request_inference_time_seconds": web.INFERENCE_TIME,
}
