"""Constrained decoding: which tokens may come next so that the output matches its grammar.

Knows llguidance and token ids, neither tensors nor batches. Compiling happens on threads of its
own, after a trial in a process that may die of it; masks are made on the engine's thread.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from inference.grammar_trial import (
    GrammarTrial,
    TrialLostError,
    TrialResult,
    TrialSetup,
    build_matcher,
    load_tokenizer,
)
from inference.protocol import Grammar, RefusalCode

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_GRAMMAR_BYTES = 128 * 1024
MAX_COMPILE_SECONDS = 2.0
MAX_COMPILED_BYTES = 256 * 1024 * 1024
MAX_CACHED_GRAMMARS = 256
NUM_TRIALS = 2
MAX_PENDING = 64

# Whitespace between JSON tokens is optional for a model, and some never stop writing it.
_JSON_OPTIONS: "JsonCompileOptions" = {
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,64}",
    "lenient": False,
}
# Where only one text is left, llguidance would choose its tokens, special ones among them, and then
# refuse these: a schema whose constant spells an end token would fail its request.
_LARK_OPTIONS = '%llguidance {"no_forcing": true}\n'
# llguidance tells what is wrong in words only. These begin what is about size in compiling, ...
_TOO_COMPLEX_WORDS = (
    "schema too large",
    "recursion limit exceeded",
    "fuel exhausted",
    "initial lexer configuration (grammar) too big",
    "grammar size (number of symbols) too big",
    "too many expressions",
    "too many states",
    "lexer error",
    "Parser Error: Current row",
)
# ... and these tell a wrong token from a step that cost too much.
_MISFIT_WORDS = "doesn't satisfy the grammar"


class GrammarRefusedError(Exception):
    """No matcher comes of this grammar; code says why."""

    def __init__(self, code: RefusalCode) -> None:
        super().__init__(code.value)
        self.code = code


class GrammarMatcher:
    """One sequence's place in its grammar."""

    def __init__(self, matcher: LLMatcher, end_bits: NDArray[np.int32]) -> None:
        self._matcher = matcher
        self._end_bits = end_bits  # [num_words], an end token's bit set
        self._only_end_is_left = False

    @property
    def is_complete(self) -> bool:
        """True when nothing but an end token may follow: the sequence is done. False in error."""
        is_done = self._only_end_is_left or self._matcher.is_stopped()
        return is_done and not self._matcher.is_error()

    @property
    def error(self) -> RefusalCode | None:
        """Why the matcher gave up: it never recovers, and its sequence must be refused.

        GRAMMAR_TOO_COMPLEX when a step cost too much; INTERNAL when a token did not fit.
        """
        if not self._matcher.is_error():
            return None
        is_misfit = _MISFIT_WORDS in self._matcher.get_error()
        return RefusalCode.INTERNAL if is_misfit else RefusalCode.GRAMMAR_TOO_COMPLEX

    def accept(self, token_id: int) -> bool:
        """Move on by one token; False when it did not fit, and error is set."""
        return self._matcher.consume_token(token_id)

    def fill_mask(self, mask: NDArray[np.int32]) -> None:
        """Write the next token's mask, bit i of word i // 32 for token i; set means allowed.

        When the grammar is complete, or in error, only end tokens are allowed.

        Args:
            mask: int32 [num_words], contiguous; num_words = ceil(vocab_size / 32).
        """
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._only_end_is_left = not np.any(mask & ~self._end_bits)


class CompiledGrammar(NamedTuple):
    """A grammar ready for any number of sequences.

    pristine: at the grammar's start; never moved on. end_bits: int32 [num_words].
    memory_bytes: about what it holds.
    """

    pristine: LLMatcher
    end_bits: NDArray[np.int32]
    memory_bytes: int

    def matcher(self, output_token_ids: Sequence[int] = ()) -> GrammarMatcher:
        """Start a sequence, or rebuild its matcher behind tokens it has already got."""
        matcher = self.pristine.deep_copy()
        if output_token_ids:
            matcher.consume_tokens(list(output_token_ids))
        return GrammarMatcher(matcher, self.end_bits)


class GrammarCompiler:
    """Compiles grammars within budgets and remembers the outcomes, refusals too.

    A grammar may have MAX_GRAMMAR_BYTES of text, max_compile_seconds of CPU time and
    MAX_COMPILED_BYTES; the remembered ones together hold MAX_COMPILED_BYTES. Outcomes are
    forgotten least recently used first. The trial processes start with the first grammar.
    """

    def __init__(
        self,
        tokenizer_path: Path,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        max_compile_seconds: float = MAX_COMPILE_SECONDS,
    ) -> None:
        setup = TrialSetup(
            tokenizer_path=str(tokenizer_path),
            vocab_size=vocab_size,
            eos_token_ids=list(eos_token_ids),
            max_cpu_seconds=max_compile_seconds,
            max_memory_bytes=MAX_COMPILED_BYTES,
        )
        self._setup = setup
        self._tokenizer = load_tokenizer(setup)
        self._end_bits = _bits(eos_token_ids, vocab_size)
        self._threads = ThreadPoolExecutor(NUM_TRIALS, thread_name_prefix="grammar")
        self._trials = [GrammarTrial(setup) for _ in range(NUM_TRIALS)]
        self._idle_trials: SimpleQueue[GrammarTrial] = SimpleQueue()
        for trial in self._trials:
            self._idle_trials.put(trial)
        self._lock = Lock()
        self._outcomes: OrderedDict[Grammar, Future[CompiledGrammar]] = OrderedDict()

    def compile(self, grammar: Grammar) -> Future[CompiledGrammar]:
        """Start compiling, or return what an equal grammar came to; never blocks.

        The future fails with GrammarRefusedError: GRAMMAR_INVALID (not a grammar, or a part of
        JSON schema that is not supported), GRAMMAR_TOO_COMPLEX, OVERLOADED (MAX_PENDING others
        wait) or INTERNAL. The outcome is shared: do not cancel it.
        """
        with self._lock:
            self._forget_surplus()
            outcome = self._outcomes.get(grammar)
            if outcome is None:
                outcome = self._submit(grammar)
            else:
                self._outcomes.move_to_end(grammar)
            return outcome

    def close(self) -> None:
        """End threads and trial processes; grammars being compiled come to nothing."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for trial in self._trials:
            trial.close()

    def _submit(self, grammar: Grammar) -> Future[CompiledGrammar]:
        if _num_bytes(grammar) > MAX_GRAMMAR_BYTES:
            return _refused(RefusalCode.GRAMMAR_TOO_COMPLEX)
        if sum(not outcome.done() for outcome in self._outcomes.values()) >= MAX_PENDING:
            return _refused(RefusalCode.OVERLOADED)
        outcome = self._threads.submit(self._compile, grammar)
        self._outcomes[grammar] = outcome
        return outcome

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        try:
            definition = _definition(grammar)
        except ValueError as error:
            code = _refusal(TrialResult(error=str(error))) or RefusalCode.GRAMMAR_INVALID
            raise GrammarRefusedError(code) from error
        memory_bytes = self._try_out(definition)
        pristine = build_matcher(self._tokenizer, definition)
        if pristine.is_error():
            raise GrammarRefusedError(RefusalCode.INTERNAL)
        return CompiledGrammar(pristine, self._end_bits, memory_bytes)

    def _try_out(self, definition: str) -> int:
        trial = self._idle_trials.get()
        try:
            result = trial.run(definition)
        except TrialLostError as error:
            raise GrammarRefusedError(RefusalCode.INTERNAL) from error
        finally:
            self._idle_trials.put(trial)
        if code := _refusal(result):
            raise GrammarRefusedError(code)
        return result.memory_bytes

    def _forget_surplus(self) -> None:
        """Keep the newest outcomes within the budgets; passing trouble is forgotten at once."""
        num_kept, total_bytes = 0, 0
        for grammar, outcome in reversed(list(self._outcomes.items())):
            if not outcome.done():
                continue
            num_kept += 1
            total_bytes += 0 if outcome.exception() else outcome.result().memory_bytes
            is_surplus = num_kept > MAX_CACHED_GRAMMARS or total_bytes > MAX_COMPILED_BYTES
            if is_surplus or _is_passing(outcome.exception()):
                del self._outcomes[grammar]


class _Rules(msgspec.Struct, omit_defaults=True):
    """One of the grammars in a definition."""

    name: str | None = None
    lark_grammar: str | None = None
    json_schema: msgspec.Raw = msgspec.Raw(b"null")


class _Definition(msgspec.Struct):
    """llguidance's own form of a grammar; the first of its grammars may refer to the others."""

    grammars: list[_Rules]


def _definition(grammar: Grammar) -> str:
    """Write the grammar in llguidance's own form.

    Raises:
        ValueError: a schema is not JSON.
    """
    schemas = list(grammar.schemas)
    if grammar.json_schema is not None:
        lark, schemas = "start: @schema", [("schema", grammar.json_schema)]
    elif grammar.regex is not None:
        lark = _read(LLMatcher.grammar_from_regex(grammar.regex)).lark_grammar or ""
    else:
        lark = grammar.lark or ""
    grammars = [_Rules(lark_grammar=_LARK_OPTIONS + lark)]
    for name, text in schemas:
        schema = _read(LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS))
        schema.name = name
        grammars.append(schema)
    return msgspec.json.encode(_Definition(grammars)).decode()


def _read(definition: str) -> _Rules:
    return msgspec.json.decode(definition, type=_Definition).grammars[0]


def _num_bytes(grammar: Grammar) -> int:
    texts = [grammar.json_schema, grammar.regex, grammar.lark]
    return sum(len((text or "").encode()) for text in texts + [text for _, text in grammar.schemas])


def _refusal(result: TrialResult) -> RefusalCode | None:
    if result.exhausted or result.error.startswith(_TOO_COMPLEX_WORDS):
        return RefusalCode.GRAMMAR_TOO_COMPLEX
    return RefusalCode.GRAMMAR_INVALID if result.error else None


def _is_passing(error: BaseException | None) -> bool:
    """Whether something other than the grammar was at fault: another trial may end otherwise."""
    if not isinstance(error, GrammarRefusedError):
        return error is not None
    return error.code not in (RefusalCode.GRAMMAR_INVALID, RefusalCode.GRAMMAR_TOO_COMPLEX)


def _refused(code: RefusalCode) -> Future[CompiledGrammar]:
    outcome: Future[CompiledGrammar] = Future()
    outcome.set_exception(GrammarRefusedError(code))
    return outcome


def _bits(token_ids: Sequence[int], vocab_size: int) -> NDArray[np.int32]:
    bits = np.zeros(-(-vocab_size // 32), np.uint32)
    for token_id in token_ids:
        bits[token_id // 32] |= np.uint32(1 << token_id % 32)
    return bits.view(np.int32)
