"""Keys, quotas, turns and deadlines over the whole service, with several web workers."""

import hashlib
import threading

import httpx
import pytest

KEYS = {"counted": "loupe_counted", "heavy": "loupe_heavy", "light": "loupe_light"}


@pytest.fixture(scope="module")
def shared(start_service, tmp_path_factory):
    """A service whose engine runs two sequences at a time, for three keys."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    tables = [
        f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
        + ("requests_per_minute = 5\n" if name == "counted" else "")
        for name, key in KEYS.items()
    ]
    file.write_text("\n".join(tables))
    return start_service(
        "--workers", "2", "--max-num-seqs", "2", "--max-queued-requests", "20", "--api-keys", file
    )


def post(service, name, body, **headers):
    headers["Authorization"] = f"Bearer {KEYS[name]}"
    with httpx.Client(base_url=service.url, timeout=60, headers=headers) as client:
        return client.post("/v1/chat", json=body)


def test_a_quota_is_one_for_all_workers(shared, ask):
    replies = [post(shared, "counted", ask("Hello!")) for _ in range(9)]

    assert sorted(reply.status_code for reply in replies) == [200] * 5 + [429] * 4
    refused = [reply for reply in replies if reply.status_code == 429]
    for reply in refused:
        assert reply.json()["code"] == "rate_limited"
        assert 1 <= int(reply.headers["retry-after"]) <= 12
        assert reply.headers["x-should-retry"] == "true"


def test_who_asks_for_little_does_not_wait_for_who_asks_for_much(shared, ask):
    """Twenty are before it in a queue of two rows; it waits for its turn, not for theirs."""
    replies: list[int] = []

    def flood() -> None:
        replies.append(post(shared, "heavy", ask("Count from 1 to 30")).status_code)

    threads = [threading.Thread(target=flood) for _ in range(20)]
    for thread in threads:
        thread.start()
    while not replies:
        threads[0].join(0.01)
    reply = post(shared, "light", ask("Count from 1 to 30"))
    num_before = len(replies)
    for thread in threads:
        thread.join()

    assert reply.status_code == 200
    assert num_before < 12
    assert set(replies) == {200}


def test_a_full_queue_turns_away_who_has_filled_it(shared, ask):
    replies: dict[str, list[httpx.Response]] = {"heavy": [], "light": []}

    def send(name: str) -> None:
        replies[name].append(post(shared, name, ask("Count from 1 to 30")))

    threads = [threading.Thread(target=send, args=["heavy"]) for _ in range(40)]
    for thread in threads:
        thread.start()
    while not replies["heavy"]:  # those beyond the queue, refused
        threads[0].join(0.01)
    send("light")
    for thread in threads:
        thread.join()

    assert [reply.status_code for reply in replies["light"]] == [200]
    statuses = [reply.status_code for reply in replies["heavy"]]
    assert set(statuses) == {200, 503}
    refused = [reply for reply in replies["heavy"] if reply.status_code == 503]
    assert {reply.json()["code"] for reply in refused} == {"overloaded"}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)


def test_a_deadline_holds_from_the_header_to_the_engine(shared, ask):
    reply = post(shared, "light", ask("Count from 1 to 30"), **{"Request-Timeout-Ms": "20"})

    assert (reply.status_code, reply.json()["code"]) in (
        (504, "deadline_exceeded"),
        (503, "deadline_unreachable"),
    )
