"""What a terminal shows while the service starts: the stage, and for how long already.

The log tells the stages too; this is for whoever waits and wonders.
"""

import time

from inference.control import ON_THE_HUB
from service.terminal import StatusLine


class StartLine:
    """The line, from the start to readiness or the end. Drawn as often as the caller looks.

    yields_to_bars: the bars of a download are seen on the same terminal.
    """

    def __init__(self, status: StatusLine, *, yields_to_bars: bool) -> None:
        self._status = status
        self._yields_to_bars = yields_to_bars
        self._started = time.monotonic()
        self._stage = "starting"
        self._is_over = False

    def enter(self, stage: str) -> None:
        """Note what the inference process does now."""
        self._status.clear()
        self._stage = stage

    def draw(self) -> None:
        """Show the stage and the time since the start."""
        if self._is_over or (self._yields_to_bars and self._stage.endswith(ON_THE_HUB)):
            return
        self._status.show(f"{self._stage} … {time.monotonic() - self._started:.0f} s")

    def end(self) -> None:
        """Take the line away for good."""
        self._status.clear()
        self._is_over = True
