"""Whether everything that was asked is accounted for, and nothing is left over.

Three accounts of every request: the client's, the log's and the metrics'. And what a service holds
when nothing runs: processes, descriptors, files, blocks.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from asking import PATHS, Outcome
from running_service import Figures, RunningService, wait_until

_LEFT = 499


def lines_of(service: RunningService, prefix: str) -> dict[str, list[dict[str, Any]]]:
    """The log's request lines, by request id, of those that begin so."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in service.events():
        request_id = event.get("request_id", "")
        if request_id.startswith(prefix + "-") and "status_code" in event:
            found.setdefault(request_id, []).append(event)
    return found


def account(
    service: RunningService,
    outcomes: Sequence[Outcome],
    before: Figures,
    *,
    prefix: str,
    has_lost_workers: bool = False,
) -> list[str]:
    """Compare the three accounts of these requests; give what does not agree.

    has_lost_workers: a killed worker takes lines along that it had not written, and may have
    counted an answer that did not go out; never more than what its clients saw broken.
    """
    if not has_lost_workers:
        wait_until(lambda: _is_logged(service, outcomes, prefix), 20, lambda: "a line is missing")
    lines = lines_of(service, prefix)
    counted = service.scrape().requests() - before.requests()
    faults = [
        f"{request_id} has {len(told)} lines" for request_id, told in lines.items() if len(told) > 1
    ]
    seen: Counter[tuple[str, str]] = Counter()
    broken: Counter[str] = Counter()
    for outcome in outcomes:
        status = _status(outcome, lines.get(outcome.request_id))
        if status is None:
            broken[outcome.path] += 1
        else:
            seen[outcome.path, str(status)] += 1
            faults += _of_line(outcome, status, lines, has_lost_workers=has_lost_workers)
    for path in PATHS.values():
        more = {key: count for key, count in (counted - seen).items() if key[0] == path}
        fewer = {key: count for key, count in (seen - counted).items() if key[0] == path}
        if fewer or sum(more.values()) > (broken[path] if has_lost_workers else 0):
            faults.append(f"/metrics: {more} too many, {fewer} too few, {broken[path]} broken")
    return faults


def _is_logged(service: RunningService, outcomes: Sequence[Outcome], prefix: str) -> bool:
    lines = lines_of(service, prefix)
    return all(each.request_id in lines for each in outcomes if each.status and not each.is_broken)


def _status(outcome: Outcome, lines: list[dict[str, Any]] | None) -> int | None:
    """What the service must have counted; None where the client cannot know that it did."""
    if outcome.is_whole:
        return outcome.status
    # Who left may have been answered a moment before; the line tells which.
    return lines[0]["status_code"] if lines else None


def _of_line(
    outcome: Outcome,
    status: int,
    lines: dict[str, list[dict[str, Any]]],
    *,
    has_lost_workers: bool,
) -> list[str]:
    told = lines.get(outcome.request_id)
    if told is None:
        return [] if has_lost_workers else [f"{outcome.request_id} has no line"]
    said = told[0]["status_code"]
    if said != status or (not outcome.is_whole and said not in (_LEFT, 200)):
        return [f"{outcome.request_id}: the client saw {status}, the log says {said}"]
    return []


def leftovers(service: RunningService) -> list[str]:
    """What the engine and the workers still hold, a while after the last request."""
    held: list[str] = []

    def look() -> bool:
        figures = service.scrape()
        watched = {
            "loupe_num_requests_running{}": 0,
            "loupe_num_requests_waiting{}": 0,
            "loupe_queued_tokens{}": 0,
            "loupe_queued_patches{}": 0,
            "loupe_kv_cache_usage_ratio{}": 0,
            "loupe_requests_in_flight{}": 1,  # the scrape itself
            "loupe_open_streams{}": 0,
        }
        held[:] = [
            f"{name} is {figures.get(name)}"
            for name, expected in watched.items()
            if figures.get(name) != expected
        ]
        return not held

    wait_until(look, 20, lambda: "; ".join(held))
    return held


def files_of(service: RunningService) -> list[str]:
    """All files of the runtime folder."""
    folder = service.runtime_folder()
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if not each.is_dir())
