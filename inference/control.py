"""Every message between the supervisor and its children, on a child's control pipe.

A leaf: it imports msgspec and nothing of ours.
"""

from typing import TypeAlias

import msgspec

# How a stage ends in which the child draws bars of its own on a terminal.
ON_THE_HUB = " on the hub"


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """Child to supervisor: what it is doing on the way to ready, for the operator's terminal."""

    stage: str


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """Child to supervisor: this child is ready to work."""


class StartFailed(msgspec.Struct, frozen=True, kw_only=True, tag="start_failed"):
    """Child to supervisor: starting again would fail the same way; the message is for a person."""

    message: str


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag="heartbeat"):
    """Child to supervisor, about once a second: the main loop turned since the last one."""


class ReplaceMe(msgspec.Struct, frozen=True, kw_only=True, tag="replace_me"):
    """Child to supervisor: this child has done its share; another is to take its place."""


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """Supervisor to child: finish what runs within drain_seconds, then end.

    delay_seconds: before that, take what still comes, and say that it will not be for long.
    is_replaced: another child has taken its place already.
    """

    drain_seconds: float
    delay_seconds: float = 0.0
    is_replaced: bool = False


ChildMessage: TypeAlias = Progress | Started | StartFailed | Heartbeat | ReplaceMe
