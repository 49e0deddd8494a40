"""Compiles unknown grammars where they can do no harm: a process of its own, forked per grammar.

A few hundred bytes of JSON schema can ask for minutes and gigabytes, and threads cannot be stopped.
Run as `python -m inference.grammar_trial`; ends when its standard input does. Knows llguidance,
never torch.
"""

import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MAX_ERROR_CHARACTERS = 300


class TrialSetup(msgspec.Struct, frozen=True, kw_only=True):
    """First line to the process: the tokenizer and what one grammar may cost."""

    tokenizer_path: str
    vocab_size: int
    eos_token_ids: list[int]
    max_cpu_seconds: float
    max_memory_bytes: int


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line per grammar.

    error: llguidance's words, for classifying only; empty when the grammar is good.
    exhausted: the process died of the grammar: too slow or too large.
    memory_bytes: what holding it takes, about.
    """

    error: str = ""
    exhausted: bool = False
    memory_bytes: int = 0


class TrialLostError(Exception):
    """The trial process itself is gone; the grammar on trial need not be the cause."""


def load_tokenizer(setup: TrialSetup) -> LLTokenizer:
    """Read tokenizer.json for masks of vocab_size bits; ids past the tokenizer's own stay unset."""
    definition = Path(setup.tokenizer_path).read_text(encoding="utf-8")
    return LLTokenizer(definition, n_vocab=setup.vocab_size, eos_token=setup.eos_token_ids)


def build_matcher(tokenizer: LLTokenizer, definition: str) -> LLMatcher:
    """Compile a definition in llguidance's own form; errors wait in the matcher.

    A step's fuel bounds what one mask can hold up the engine: about 10 ms.
    """
    limits = LLParserLimits(
        step_lexer_fuel=100_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        verbose_errors=False,
    )
    return LLMatcher(tokenizer, definition, log_level=0, limits=limits)


class GrammarTrial:
    """The engine's end: one process, one grammar at a time. Started at the first grammar."""

    def __init__(self, setup: TrialSetup) -> None:
        self._setup = setup
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, definition: str) -> TrialResult:
        """Compile a definition out of harm's way.

        Raises:
            TrialLostError: the process died; the next call starts another.
        """
        process = self._process or self._start()
        try:
            stdin, stdout = cast("BinaryIO", process.stdin), cast("BinaryIO", process.stdout)
            _write_line(stdin, definition)
            return msgspec.json.decode(stdout.readline(), type=TrialResult)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            self.close()
            raise TrialLostError from error

    def close(self) -> None:
        """End the process, whatever it is doing. Safe to call twice, from any thread."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # what was not written is nobody's loss
                    cast("BinaryIO", pipe).close()
            process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        # The child imports what this process imports, installed or not. A session of its own keeps
        # the terminal's Ctrl-C away; the closed pipe ends it.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "inference.grammar_trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        _write_line(cast("BinaryIO", self._process.stdin), self._setup)
        return self._process


def _write_line(pipe: BinaryIO, message: TrialSetup | str) -> None:
    pipe.write(msgspec.json.encode(message) + b"\n")
    pipe.flush()


def _reply(result: TrialResult) -> None:
    # One write of less than PIPE_BUF arrives whole or not at all, also from a child that dies.
    os.write(sys.stdout.fileno(), msgspec.json.encode(result) + b"\n")


def _compile_in_fork(tokenizer: LLTokenizer, setup: TrialSetup, definition: str) -> None:
    """The forked child's life: limits, compile, first mask, one reply."""
    signal.setitimer(signal.ITIMER_PROF, setup.max_cpu_seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    allowed = _address_space_bytes() + setup.max_memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    build_matcher(tokenizer, LLMatcher.grammar_from_regex("a"))  # pages the library in
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    matcher = build_matcher(tokenizer, definition)
    if not matcher.is_error():
        matcher.compute_bitmask()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    _reply(
        TrialResult(
            error=matcher.get_error()[:MAX_ERROR_CHARACTERS],
            memory_bytes=grown * 1024,
        )
    )


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def main() -> None:
    """Serve grammars from standard input, line by line, until it ends."""
    setup = msgspec.json.decode(sys.stdin.buffer.readline(), type=TrialSetup)
    tokenizer = load_tokenizer(setup)
    for line in sys.stdin.buffer:
        definition = msgspec.json.decode(line, type=str)
        child = os.fork()
        if child == 0:
            try:
                _compile_in_fork(tokenizer, setup, definition)
            finally:
                os._exit(0 if sys.exception() is None else 1)
        _, status = os.waitpid(child, 0)
        if status != 0:
            _reply(TrialResult(exhausted=True))


if __name__ == "__main__":
    main()
