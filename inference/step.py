"""One step's work, as the scheduler plans it and the runner does it."""

from dataclasses import dataclass, field

from inference.embeddings import EmbeddingKey
from inference.sequence import Request, Sequence


@dataclass(slots=True, frozen=True)
class Chunk:
    """Tokens [start, end) of one sequence to run through the model."""

    sequence: Sequence
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        """Tokens to run."""
        return self.end - self.start

    @property
    def completes(self) -> bool:
        """The chunk reaches the newest token, so the next one can be chosen."""
        return self.end == self.sequence.num_tokens


@dataclass(slots=True, frozen=True)
class Encoding:
    """A picture to encode before this step's chunks run."""

    request: Request
    vision: int

    @property
    def key(self) -> EmbeddingKey:
        """Under which its features are kept."""
        return self.request.embedding_key(self.vision)


@dataclass(slots=True)
class Step:
    """One step's work: single-token chunks of decoding sequences, prefill chunks, pictures."""

    decodes: list[Chunk] = field(default_factory=list[Chunk])
    prefills: list[Chunk] = field(default_factory=list[Chunk])
    encodings: list[Encoding] = field(default_factory=list[Encoding])

    @property
    def chunks(self) -> list[Chunk]:
        """All chunks, decodes first: the order of the batch's rows."""
        return self.decodes + self.prefills

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens of the prefill chunks."""
        return sum(chunk.num_tokens for chunk in self.prefills)

    def parts(self) -> "list[Step]":
        """The same work in pieces: first the decodes, then each prefill with its pictures."""
        if self.decodes and self.prefills:
            parts = [Step(decodes=self.decodes)]
        else:
            parts = [Step(decodes=[chunk]) for chunk in self.decodes]
        for chunk in self.prefills:
            request = chunk.sequence.request
            # Two chunks may need one picture: whichever runs first encodes it.
            keys = {
                request.embedding_key(span.vision)
                for span in request.spans
                if span.start < chunk.end and span.end > chunk.start
            }
            needed = [encoding for encoding in self.encodings if encoding.key in keys]
            parts.append(Step(prefills=[chunk], encodings=needed))
        return parts
