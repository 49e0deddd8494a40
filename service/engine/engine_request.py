"""One unfinished request, as its worker sees it: what came, what was taken, what is still open.

It can be sent to one engine after another: each gets the tokens delivered so far as prefixes, and
only the sequences that are still open.
"""

import asyncio
from collections.abc import Callable

import msgspec

from inference.protocol import Delta, Finish, FinishReason, Generate
from service.errors import ServiceError


class ProtocolViolation(Exception):
    """The engine sent what no request of ours can have."""


class EngineRequest:
    """A request between its registration and its end; lives on the event loop.

    is_aboard: the engine that is connected has it. num_losses: engines it was aboard of and lost.
    is_suspect: the next engine is to run it alone. is_alone: the engine does. num_losses_alone:
    engines that were lost meanwhile. is_over: ended, and all of it taken.
    """

    def __init__(self, request: Generate, clock: Callable[[], float]) -> None:
        """Keep a request; its time runs from now on, on `clock`, whichever engine has it."""
        self.request_id = request.request_id
        self.is_aboard = False
        self.is_suspect = False
        self.is_alone = False
        self.num_losses = 0
        self.num_losses_alone = 0
        self._request = request
        self._clock = clock
        self._taken_time = clock()
        indices = request.sequence_indices or range(request.num_sequences)
        prefixes = request.output_prefixes or [[]] * request.num_sequences
        # The sequences still open, each with the tokens that a next engine would get as its prefix.
        self._open = {index: prefix.copy() for index, prefix in zip(indices, prefixes, strict=True)}
        self._not_admitted = set(self._open)
        self._untaken: dict[int, Delta] = {}
        self._error: ServiceError | None = None
        self._has_failed = False
        self._taker: asyncio.Future[None] | None = None

    @property
    def open_indices(self) -> set[int]:
        """The sequences that have not ended."""
        return set(self._open)

    @property
    def has_ended(self) -> bool:
        """Tell whether nothing more can come."""
        return not self._open or self._has_failed

    @property
    def was_admitted(self) -> bool:
        """Tell whether an engine had taken it that is lost, from this worker or from another."""
        return self.num_losses > 0 or self._request.is_replay

    @property
    def is_over(self) -> bool:
        """Tell whether there is nothing more to take."""
        return not self._open and not self._untaken

    def message(self) -> Generate:
        """Write what the next engine is to be sent."""
        seconds = self._request.deadline_seconds
        if seconds is not None:
            seconds -= self._clock() - self._taken_time
        if not self.num_losses:
            return msgspec.structs.replace(self._request, deadline_seconds=seconds)
        return msgspec.structs.replace(
            self._request,
            num_sequences=len(self._open),
            sequence_indices=list(self._open),
            output_prefixes=[token_ids.copy() for token_ids in self._open.values()],
            deadline_seconds=seconds,
            is_replay=True,
            is_suspect=self.is_suspect,
        )

    def note_loss(self) -> None:
        """Remember that the engine which had it was lost."""
        self.num_losses += 1
        self.num_losses_alone += self.is_alone
        self.is_aboard = self.is_alone = False

    def add(self, delta: Delta) -> None:
        """Take what the engine sent.

        Raises:
            ProtocolViolation: for a sequence that is not open.
        """
        index = delta.index
        if index not in self._open:
            raise ProtocolViolation("there is no such sequence, or it has ended")
        self._open[index].extend(delta.token_ids)
        if delta.finish is not None:
            del self._open[index]
        if delta.admission is not None:
            delta = self._admitted_once(delta)
        earlier = self._untaken.get(index)
        if earlier is not None:
            # A consumer slower than the engine costs one list a sequence, however slow it is.
            earlier.token_ids.extend(delta.token_ids)
            earlier.logprobs.extend(delta.logprobs)
            delta = msgspec.structs.replace(earlier, finish=delta.finish)
        self._untaken[index] = delta
        self._wake()

    def cancel(self) -> None:
        """End all open sequences as cancelled."""
        for index, token_ids in list(self._open.items()):
            finish = Finish(reason=FinishReason.CANCELLED, num_output_tokens=len(token_ids))
            self.add(Delta(request_id=self.request_id, index=index, finish=finish))

    def fail(self, error: ServiceError) -> None:
        """End the request; what came before is still given."""
        self._error, self._has_failed = error, True
        self._wake()

    async def take(self) -> list[Delta]:
        """Wait for something to come, and give all of it, merged by sequence.

        Raises:
            ServiceError: the request failed, and everything before that was taken.
        """
        while not self._untaken:
            if self._error is not None:
                error, self._error = self._error, None
                try:
                    raise error
                finally:
                    del error  # its traceback leads here: a cycle would keep the pictures
            self._taker = asyncio.get_running_loop().create_future()
            try:
                await self._taker
            finally:
                self._taker = None
        taken, self._untaken = self._untaken, {}
        return list(taken.values())

    def _admitted_once(self, delta: Delta) -> Delta:
        """Leave out what only a second engine says: the client waited for the first one's."""
        if delta.index in self._not_admitted:
            self._not_admitted.discard(delta.index)
            return delta
        return msgspec.structs.replace(delta, admission=None)

    def _wake(self) -> None:
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)
