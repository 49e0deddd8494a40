"""What the inference process counts: the metrics' declarations, and their cells in its ledger.

A leaf beside `inference.ledger`; it knows figures, not where the engine keeps them. What a client
can count as well, such as tokens, is the web workers' to count.
"""

from inference.ledger import Counter, Family, Slab
from inference.protocol import Stats

_SIZES = tuple(float(2**power) for power in range(15))

STEP_SEQUENCES = Family(
    "histogram", "loupe_step_sequences", "Sequences that ran in a step.", bounds=_SIZES[:11]
)
STEP_TOKENS = Family(
    "histogram", "loupe_step_tokens", "Tokens that went through the model in a step.", bounds=_SIZES
)
PREEMPTIONS = Family(
    "counter", "loupe_preemptions_total", "Sequences put back in the queue for want of KV blocks."
)
PREFIX_CACHE_QUERIES = Family(
    "counter", "loupe_prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."
)
PREFIX_CACHE_HITS = Family(
    "counter", "loupe_prefix_cache_hits_total", "Prompt tokens found in the prefix cache."
)
EMBEDDING_CACHE_QUERIES = Family(
    "counter", "loupe_embedding_cache_queries_total", "Images looked up in the embedding cache."
)
EMBEDDING_CACHE_HITS = Family(
    "counter", "loupe_embedding_cache_hits_total", "Images found in the embedding cache."
)
RUNNING = Family("gauge", "loupe_num_requests_running", "Sequences that the engine runs.")
WAITING = Family("gauge", "loupe_num_requests_waiting", "Sequences that wait in the engine.")
QUEUED_TOKENS = Family(
    "gauge", "loupe_queued_tokens", "Prompt tokens of requests that have not begun."
)
QUEUED_PATCHES = Family(
    "gauge", "loupe_queued_patches", "Vision patches of requests that have not begun."
)
PREDICTED_WAIT = Family(
    "gauge", "loupe_predicted_wait_seconds", "Time until a request that comes now would begin."
)
KV_CACHE_USAGE = Family(
    "gauge", "loupe_kv_cache_usage_ratio", "Share of the KV blocks that sequences hold, 0 to 1."
)
GPU_MEMORY = Family("gauge", "loupe_gpu_memory_used_bytes", "Device memory that the engine holds.")
ENGINE_RSS = Family("gauge", "loupe_engine_rss_bytes", "Main memory of the inference process.")

FAMILIES = (
    STEP_SEQUENCES,
    STEP_TOKENS,
    PREEMPTIONS,
    PREFIX_CACHE_QUERIES,
    PREFIX_CACHE_HITS,
    EMBEDDING_CACHE_QUERIES,
    EMBEDDING_CACHE_HITS,
    RUNNING,
    WAITING,
    QUEUED_TOKENS,
    QUEUED_PATCHES,
    PREDICTED_WAIT,
    KV_CACHE_USAGE,
    GPU_MEMORY,
    ENGINE_RSS,
)


class Total:
    """A counter that follows a total of this process."""

    __slots__ = ("_counter", "_noted")

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._noted: int | None = None

    def follow(self, total: int) -> None:
        """Count what has come since the last time; the first time says where it starts."""
        if self._noted is not None and total != self._noted:
            self._counter.add(total - self._noted)
        self._noted = total


class EngineMetrics:
    """The engine's figures in a slab.

    The totals are to be followed once when the engine is warm, and then before a step's answers
    leave the process: what was answered is counted, however this process ends.
    """

    def __init__(self, slab: Slab) -> None:
        self.preemptions = Total(slab.counter(PREEMPTIONS))
        self.prefix_cache_queries = Total(slab.counter(PREFIX_CACHE_QUERIES))
        self.prefix_cache_hits = Total(slab.counter(PREFIX_CACHE_HITS))
        self.embedding_cache_queries = Total(slab.counter(EMBEDDING_CACHE_QUERIES))
        self.embedding_cache_hits = Total(slab.counter(EMBEDDING_CACHE_HITS))
        self._sequences = slab.histogram(STEP_SEQUENCES)
        self._tokens = slab.histogram(STEP_TOKENS)
        self._running = slab.gauge(RUNNING)
        self._waiting = slab.gauge(WAITING)
        self._queued_tokens = slab.gauge(QUEUED_TOKENS)
        self._queued_patches = slab.gauge(QUEUED_PATCHES)
        self._predicted_wait = slab.gauge(PREDICTED_WAIT)
        self._kv_cache_usage = slab.gauge(KV_CACHE_USAGE)
        self._gpu_memory = slab.gauge(GPU_MEMORY)
        self._rss = slab.gauge(ENGINE_RSS)

    def note_step(self, num_sequences: int, num_tokens: int) -> None:
        """Count a step's sequences and tokens."""
        self._sequences.observe(num_sequences)
        self._tokens.observe(num_tokens)

    def note(self, stats: Stats, num_blocks: int) -> None:
        """Say how things are. num_blocks: of the KV pool."""
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._queued_tokens.set(stats.num_queued_tokens)
        self._queued_patches.set(stats.num_queued_patches)
        self._predicted_wait.set(stats.predicted_wait_seconds)
        self._kv_cache_usage.set(1 - stats.num_free_blocks / num_blocks)
        self._gpu_memory.set(stats.gpu_memory_used_bytes)
        self._rss.set(stats.resident_memory_bytes)
