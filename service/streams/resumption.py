"""What a request that may go on in another process leaves behind, and what one that does finds.

Between the engine and the answer: everything the engine gives is kept before anybody sees it. To go
on, the whole way from tokens to events is gone again with what was kept, so that no dialect needs
to know of it, and the engine is asked only for the rest.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeAlias

import anyio
import anyio.to_thread
import msgspec

from inference.protocol import Delta, Generate, Vision
from service.full_disk import full_disk_told
from service.streams.stream_journal import Kept, OwnedJournal
from service.text.answer import Engine
from service.text.prompt import Prompt

if TYPE_CHECKING:
    from service.errors import ServiceError

NewJournal: TypeAlias = Callable[[bytes, Prompt, Generate], OwnedJournal]


class Resumption:
    """One request's journal, from the moment when there is something to keep.

    journal: None until there is one. kept: what earlier owners left; None for a request that begins
    here. render_error: how its dialect tells a last error.
    """

    def __init__(
        self,
        new_journal: NewJournal | None = None,
        max_body_bytes: int = 0,
        journal: OwnedJournal | None = None,
        kept: Kept | None = None,
    ) -> None:
        """new_journal: begins one, for a request that begins here; blocks.

        max_body_bytes: of a request that any dialect takes.
        """
        self._new_journal = new_journal
        self._body: list[bytes] = []
        self._room_bytes = max_body_bytes
        self.render_error: Callable[[ServiceError], bytes] | None = None
        self.journal = journal
        self.kept = kept

    @property
    def prepared(self) -> tuple[Prompt, list[Vision]] | None:
        """What an earlier owner had prepared: pictures need not be there any more."""
        if self.kept is None:
            return None
        return self.kept.request.prompt, self.kept.request.generate.visions

    def add_body(self, piece: bytes) -> None:
        """Remember what was read of the request, unless it is no question but an upload."""
        self._room_bytes -= len(piece)
        if self._room_bytes < 0:
            self._body.clear()
        else:
            self._body.append(piece)

    def around(self, engine: Engine, prompt: Prompt) -> Engine:
        """Make the engine that this request asks: it keeps what comes."""
        return _KeepingEngine(engine, prompt, self)

    async def begin(self, prompt: Prompt, request: Generate) -> None:
        """Have a journal.

        Raises:
            Overloaded: too many are kept already. StorageFull: the disk is.
        """
        if self._new_journal is None:
            raise RuntimeError("This request has a journal.")
        body = b"".join(self._body)
        self._body.clear()
        # Shielded, or nobody would close it.
        with full_disk_told(), anyio.CancelScope(shield=True):
            self.journal = await anyio.to_thread.run_sync(self._new_journal, body, prompt, request)


class _KeepingEngine:
    def __init__(self, engine: Engine, prompt: Prompt, resumption: Resumption) -> None:
        self._engine = engine
        self._prompt = prompt
        self._resumption = resumption

    async def generate(self, request: Generate) -> AsyncGenerator[Delta, None]:
        kept = self._resumption.kept
        rest: Generate | None = request
        if kept is not None:
            for delta in kept.deltas:
                yield msgspec.structs.replace(delta, request_id=request.request_id)
            rest = kept.rest(request.request_id)
        if rest is None:
            return
        if self._resumption.journal is None:
            await self._resumption.begin(self._prompt, request)
        journal = self._resumption.journal
        async with aclosing(self._engine.generate(rest)) as deltas:
            async for delta in deltas:
                if journal is not None:
                    journal.add_delta(delta)
                yield delta

    def cancel(self, request_id: str) -> None:
        self._engine.cancel(request_id)
