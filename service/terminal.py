"""A line on a terminal that is drawn over again; where there is no terminal, it is never seen."""

import contextlib
import shutil
from typing import TextIO

_CLEAR = "\r\x1b[K"
# Escape sequences of a text from elsewhere could rewrite what a terminal shows.
_CONTROLS = {
    code: "�" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(code) not in "\n\t"
}


class StatusLine:
    """The last line of the first of some streams that is a terminal.

    The cursor stays at its beginning, so that whatever is printed next writes over it.
    """

    def __init__(self, *streams: TextIO) -> None:
        self._terminal = next((stream for stream in streams if is_terminal(stream)), None)
        self._is_shown = False

    def show(self, text: str) -> None:
        """Draw a text, cut to the terminal's width."""
        if self._terminal is None:
            return
        width = shutil.get_terminal_size().columns - 1
        self._write(f"{_CLEAR}{text[:width]}\r")
        self._is_shown = True

    def clear(self) -> None:
        """Take it away."""
        if self._is_shown:
            self._write(_CLEAR)
            self._is_shown = False

    def _write(self, text: str) -> None:
        if self._terminal is None:
            return
        with contextlib.suppress(OSError, UnicodeEncodeError):
            self._terminal.write(text)
            self._terminal.flush()


def is_terminal(stream: TextIO) -> bool:
    """Tell whether a person may be reading."""
    return not stream.closed and stream.isatty()


def harmless(text: str) -> str:
    """Replace what would command a terminal instead of being shown."""
    return text.translate(_CONTROLS)
