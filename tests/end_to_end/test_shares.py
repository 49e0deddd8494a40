"""Keys, quotas, turns and deadlines over the whole service, with several web workers."""

import contextlib
import hashlib
import threading

import httpx
import pytest

KEYS = {
    "counted": "loupe_counted",
    "seldom": "loupe_seldom",
    "heavy": "loupe_heavy",
    "light": "loupe_light",
}
QUOTAS = {"counted": "requests_per_minute = 5\n", "seldom": "tokens_per_minute = 1\n"}


@pytest.fixture(scope="module")
def shared(start_service, tmp_path_factory):
    """A service whose engine runs two sequences at a time, for four keys."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    tables = [
        f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
        + QUOTAS.get(name, "")
        for name, key in KEYS.items()
    ]
    file.write_text("\n".join(tables))
    return start_service(
        "--workers", "2", "--max-num-seqs", "2", "--max-queued-requests", "20", "--api-keys", file
    )


def post(service, name, body, path="/v1/chat", timeout=60, time_ms="120000"):
    headers = {"Authorization": f"Bearer {KEYS[name]}", "Request-Timeout-Ms": time_ms}
    with httpx.Client(base_url=service.url, timeout=timeout, headers=headers) as client:
        return client.post(path, json=body)


def test_a_quota_is_one_for_all_workers(shared, ask):
    replies = [post(shared, "counted", ask("Hello!")) for _ in range(9)]

    assert sorted(reply.status_code for reply in replies) == [200] * 5 + [429] * 4
    refused = [reply for reply in replies if reply.status_code == 429]
    for reply in refused:
        assert reply.json()["code"] == "rate_limited"
        assert 1 <= int(reply.headers["retry-after"]) <= 12
        assert reply.headers["x-should-retry"] == "true"


def test_a_quota_outlives_the_engine(shared, ask, wait_until):
    first = post(shared, "seldom", ask("Hello!"))
    engine = shared.inference()
    engine.kill()
    engine.wait()
    wait_until(lambda: shared.is_whole(num_workers=2), explain=shared.log)

    replies = [post(shared, name, ask("Hello!")) for name in ("seldom", "heavy")]

    assert first.status_code == 200
    assert [reply.status_code for reply in replies] == [429, 200]


def test_who_asks_for_little_does_not_wait_for_who_asks_for_much(shared, ask):
    """Twenty are before it in a queue of two rows; it waits for its turn, not for theirs."""
    replies: list[dict] = []

    def flood() -> None:
        replies.append(post(shared, "heavy", ask("Count from 1 to 30")).json())

    threads = [threading.Thread(target=flood) for _ in range(20)]
    for thread in threads:
        thread.start()
    while not replies:
        threads[0].join(0.01)
    reply = post(shared, "light", ask("Count from 1 to 30")).json()
    for thread in threads:
        thread.join()

    assert all(each["success"] for each in (reply, *replies))
    longest = max(each["timings_ms"]["queue"] for each in replies)
    assert reply["timings_ms"]["queue"] < longest / 2


def test_a_full_queue_turns_away_who_has_filled_it(shared, ask):
    replies: list[httpx.Response] = []
    endless = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Count from 1 to 30"}],
        "ignore_eos": True,
        "repetition_detection": False,
        "max_tokens": 1900,
    }

    def flood() -> None:
        with contextlib.suppress(httpx.ReadTimeout):  # those that were let in leave
            reply = post(shared, "heavy", endless, path="/v1/chat/completions", timeout=6)
            replies.append(reply)

    threads = [threading.Thread(target=flood) for _ in range(40)]
    for thread in threads:
        thread.start()
    while not replies:  # of those beyond the queue
        threads[0].join(0.01)
    reply = post(shared, "light", ask("Hello!"))
    for thread in threads:
        thread.join()

    assert reply.status_code == 200
    refused = [reply for reply in replies if reply.status_code == 503]
    codes = {reply.json()["error"]["code"] for reply in refused}
    # Or the wait is predicted to be longer than the service's own time limit.
    assert codes
    assert codes <= {"overloaded", "deadline_unreachable"}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)


def test_a_deadline_holds_from_the_header_to_the_engine(shared, ask):
    reply = post(shared, "light", ask("Count from 1 to 30"), time_ms="20")

    assert (reply.status_code, reply.json()["code"]) in (
        (504, "deadline_exceeded"),
        (503, "deadline_unreachable"),
    )
