import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from service.processes.restart_budget import RestartBudget

ROOT = Path(__file__).parents[3]
PATIENCE_SECONDS = 30


class FakeService:
    """A supervisor with fake children, run as a program, and what it wrote."""

    def __init__(self, folder: Path, scenario: str, port: int = 0) -> None:
        self._journal = folder / "journal"
        self._journal.touch()
        self._output = folder / "stdout"
        self._stderr = folder / "stderr"
        self.runtime = folder / "runtime"
        self.runtime.mkdir()
        with self._output.open("wb") as output, self._stderr.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "tests/service/fake_service.py", scenario, str(port)],
                stdout=output,
                stderr=log,
                start_new_session=True,
                env=os.environ
                | {
                    "PYTHONPATH": str(ROOT),
                    "FAKE_JOURNAL": str(self._journal),
                    "TMPDIR": str(self.runtime),
                },
            )

    def journal(self) -> list[str]:
        return self._journal.read_text().splitlines()

    def pids(self, name: str) -> list[int]:
        """Every pid that the child has had, in order."""
        starts = [line.rsplit(" ", 1) for line in self.journal()]
        return [int(pid) for what, pid in starts if what == f"start {name}"]

    def all_pids(self) -> list[int]:
        return [int(line.rsplit(" ", 1)[1]) for line in self.journal() if line.startswith("start")]

    def output(self) -> str:
        return self._output.read_text()

    def log(self) -> str:
        return self._stderr.read_text()

    def wait_until_ready(self) -> str:
        wait_until(lambda: "is ready" in self.output(), self.log)
        found = re.search(r"http://\S+", self.output())
        assert found is not None
        return found[0]

    def wait(self) -> int:
        return self.process.wait(PATIENCE_SECONDS)


def wait_until(condition, explain=lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def start(tmp_path):
    services: list[FakeService] = []

    def start(scenario: str = "well", port: int = 0) -> FakeService:
        folder = tmp_path / str(len(services))
        folder.mkdir()
        services.append(FakeService(folder, scenario, port))
        return services[-1]

    yield start
    for service in services:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


@pytest.fixture
def start_in_terminal(start, monkeypatch):
    """Start a service in a terminal of its own; gives what closes the terminal."""

    def start_in_terminal() -> tuple[FakeService, Callable[[], None]]:
        ours, theirs = os.openpty()
        monkeypatch.setenv("FAKE_TERMINAL", os.ttyname(theirs))
        service = start()
        os.close(theirs)
        return service, lambda: os.close(ours)

    return start_in_terminal


def test_ready_line_comes_once_every_child_has_started_and_names_the_address(start):
    service = start()

    url = service.wait_until_ready()

    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    assert f"{url}/docs" in service.output()
    assert len(service.all_pids()) == 3


def test_processes_carry_readable_titles(start):
    service = start()

    service.wait_until_ready()

    titles = {
        pid: Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
        for pid in [service.process.pid, *service.all_pids()]
    }
    assert sorted(titles.values()) == [
        "loupe inference",
        "loupe supervisor",
        "loupe worker 0",
        "loupe worker 1",
    ]


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_lets_the_workers_finish_before_the_engine_ends(start, stop_signal):
    service = start()
    service.wait_until_ready()

    service.process.send_signal(stop_signal)

    assert service.wait() == 0
    ends = [line for line in service.journal() if line.startswith("end")]
    assert sorted(ends[:2]) == ["end worker 0", "end worker 1"]
    assert ends[2:] == ["end inference"]
    assert list(service.runtime.iterdir()) == []


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_is_still_an_ordered_stop(start, stop_signal):
    service = start()
    service.wait_until_ready()

    os.killpg(service.process.pid, stop_signal)

    assert service.wait() == 0
    assert [line for line in service.journal() if line.startswith("end")][2:] == ["end inference"]


def test_a_second_signal_ends_everything_at_once(start):
    service = start("ignores-stop")
    service.wait_until_ready()
    service.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "end worker 0" in service.journal())

    service.process.send_signal(signal.SIGTERM)

    assert service.wait() == 128 + signal.SIGTERM
    assert not any(map(is_alive, service.all_pids()))


def test_an_engine_that_ignores_the_stop_is_killed(start):
    service = start("ignores-stop")
    service.wait_until_ready()

    service.process.send_signal(signal.SIGTERM)

    assert service.wait() == 0
    assert not any(map(is_alive, service.all_pids()))


def test_a_service_that_is_still_loading_stops_in_order_too(start):
    service = start("loads-for-long")
    wait_until(lambda: '"stage":"loading the weights"' in service.log())

    service.process.send_signal(signal.SIGTERM)

    assert service.wait() == 0
    assert service.output() == ""
    assert not any(map(is_alive, service.all_pids()))


def test_a_killed_worker_is_replaced_again_and_again_and_the_engine_stays(start):
    service = start()
    service.wait_until_ready()

    for lost in range(1, 4):  # more often than the restart budget of 1
        os.kill(service.pids("worker 1")[-1], signal.SIGKILL)
        wait_until(lambda lost=lost: len(service.pids("worker 1")) == lost + 1, service.log)
        wait_until(lambda lost=lost: service.log().count('"process_ready"') == 3 + lost)

    assert len(service.pids("inference")) == 1
    assert len(service.pids("worker 0")) == 1


def test_a_hang_up_replaces_the_workers_one_after_another(start):
    service = start()
    service.wait_until_ready()
    engine = service.pids("inference")

    service.process.send_signal(signal.SIGHUP)

    wait_until(lambda: [*service.journal()[-1:]] == ["end worker 1"], service.log)
    assert [line.rpartition(" ")[0] for line in service.journal()[-4:-1]] == [
        "start worker 0",
        "end worker",
        "start worker 1",
    ]
    assert service.pids("inference") == engine
    assert service.process.poll() is None
    old, new = service.pids("worker 0")
    wait_until(lambda: not is_alive(old))
    assert is_alive(new)


def test_a_worker_that_asks_for_it_is_replaced_alone(start):
    service = start("worker-0-has-done-its-share")

    wait_until(lambda: "end worker 0" in service.journal(), service.log)

    assert len(service.pids("worker 0")) == 2
    assert len(service.pids("worker 1")) == 1


def test_workers_go_on_when_their_successors_cannot_start(start):
    service = start("successors-crash")
    service.wait_until_ready()

    service.process.send_signal(signal.SIGHUP)

    wait_until(lambda: "successor_lost" in service.log(), service.log)
    assert [len(service.pids(name)) for name in ("worker 0", "worker 1")] == [2, 1]
    assert is_alive(service.pids("worker 0")[0])
    assert service.process.poll() is None


def test_a_service_can_be_stopped_while_its_workers_are_replaced(start):
    service = start()
    service.wait_until_ready()
    service.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(service.pids("worker 0")) == 2, service.log)

    service.process.send_signal(signal.SIGTERM)

    assert service.wait() == 0
    assert not any(map(is_alive, service.all_pids()))


def test_a_closed_terminal_ends_the_service(start_in_terminal):
    service, close_terminal = start_in_terminal()
    service.wait_until_ready()

    close_terminal()

    assert service.wait() == 0
    assert not any(map(is_alive, service.all_pids()))


def test_an_engine_lost_while_the_workers_finish_is_replaced(start):
    service = start("finishes-with-the-second-engine")
    service.wait_until_ready()
    service.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in service.log(), service.log)

    os.kill(service.pids("inference")[0], signal.SIGKILL)

    assert service.wait() == 0
    ends = [line for line in service.journal() if line.startswith("end")]
    assert sorted(ends[:2]) == ["end worker 0", "end worker 1"]
    assert ends[2:] == ["end inference"]
    assert len(service.pids("inference")) == 2


def test_an_engine_that_is_to_be_replaced_when_the_stop_comes_is_replaced(start):
    """Requests wait for it; after the second loss it comes after a pause."""
    service = start("finishes-with-the-third-engine")
    service.wait_until_ready()
    for lost in (1, 2):
        os.kill(service.pids("inference")[-1], signal.SIGKILL)
        wait_until(lambda lost=lost: service.log().count('"process_ended"') == lost, service.log)
        if lost == 1:
            wait_until(lambda: len(service.pids("inference")) == 2, service.log)

    service.process.send_signal(signal.SIGTERM)

    assert service.wait() == 0
    assert len(service.pids("inference")) == 3
    assert "process_killed" not in service.log()


def test_a_killed_engine_is_replaced_and_the_workers_stay(start):
    service = start()
    service.wait_until_ready()

    os.kill(service.pids("inference")[0], signal.SIGKILL)

    wait_until(lambda: len(service.pids("inference")) == 2, service.log)
    assert [len(service.pids(name)) for name in ("worker 0", "worker 1")] == [1, 1]
    assert service.process.poll() is None


def test_an_engine_that_keeps_dying_ends_the_service_with_an_error(start):
    service = start("crashes")

    assert service.wait() == 1

    assert len(service.pids("inference")) == 2  # the first start and the budget of one restart
    assert "giving up" in service.log()
    assert not any(map(is_alive, service.all_pids()))


def test_an_engine_that_says_it_cannot_start_is_not_tried_again(start):
    service = start("cannot-start")

    assert service.wait() == 1

    assert len(service.pids("inference")) == 1
    assert "loupe: the checkpoint has no config.json" in service.log()
    assert service.output() == ""


def test_an_engine_that_falls_silent_is_killed_and_replaced(start):
    service = start("gets-stuck")

    wait_until(lambda: len(service.pids("inference")) == 2, service.log)

    assert "process_stuck" in service.log()


def test_a_service_that_was_stopped_in_its_tracks_goes_on_with_the_same_processes(start):
    service = start("is-soon-missed")
    service.wait_until_ready()
    children = service.all_pids()
    os.killpg(service.process.pid, signal.SIGSTOP)
    time.sleep(4.5)  # more than a child may be silent, and than a look may come late

    service.process.send_signal(signal.SIGCONT)
    wait_until(lambda: "supervisor_slept" in service.log(), service.log)
    os.killpg(service.process.pid, signal.SIGCONT)

    service.process.send_signal(signal.SIGHUP)  # it has looked at all of them once that is done
    wait_until(lambda: service.journal()[-1:] == ["end worker 1"], service.log)
    assert "process_stuck" not in service.log()
    assert service.all_pids()[:3] == children
    assert len(service.pids("inference")) == 1


def test_a_shortage_of_descriptors_ends_no_process_and_passes(start):
    service = start()
    service.wait_until_ready()
    supervisor = psutil.Process(service.process.pid)
    before = supervisor.rlimit(psutil.RLIMIT_NOFILE)
    in_use = {int(each.name) for each in Path(f"/proc/{supervisor.pid}/fd").iterdir()}
    lowest_free = next(number for number in range(1000) if number not in in_use)
    supervisor.rlimit(psutil.RLIMIT_NOFILE, (max(lowest_free, 10), before[1]))

    service.process.send_signal(signal.SIGHUP)
    wait_until(lambda: service.log().count("process_not_started") == 2, service.log)
    os.kill(service.pids("worker 1")[0], signal.SIGKILL)
    wait_until(lambda: service.log().count("process_not_started") > 2, service.log)

    assert len(service.all_pids()) == 3
    assert is_alive(service.pids("inference")[0])
    supervisor.rlimit(psutil.RLIMIT_NOFILE, before)
    wait_until(lambda: len(service.pids("worker 1")) == 2, service.log)
    assert service.process.poll() is None


def test_no_child_outlives_a_killed_supervisor(start):
    service = start()
    service.wait_until_ready()
    children = psutil.Process(service.process.pid).children(recursive=True)

    service.process.kill()

    wait_until(lambda: not any(is_alive(child.pid) for child in children))


def test_a_taken_port_is_reported_before_anything_starts(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = start(port=port)

        assert service.wait() == 1

    assert f"cannot listen on 127.0.0.1 port {port}" in service.log()
    assert service.journal() == []


def test_children_may_hold_many_connections(start):
    service = start()
    service.wait_until_ready()

    soft, hard = psutil.Process(service.pids("worker 0")[0]).rlimit(psutil.RLIMIT_NOFILE)

    assert soft >= min(hard, 65536)


def test_thread_variables_reach_the_engine(start, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    service = start()

    service.wait_until_ready()

    threads = next(line for line in service.journal() if line.startswith("threads"))
    assert re.fullmatch(r"threads \d+ 1000", threads)


def test_restart_budget_pauses_longer_each_time_and_runs_out():
    budget = RestartBudget(3, window_seconds=600)

    pauses = [budget.spend(now) for now in (0.0, 1.0, 2.0, 3.0)]

    assert pauses == [0.0, 1.0, 3.0, None]


def test_restart_budget_comes_back_as_old_restarts_leave_the_window():
    budget = RestartBudget(1, window_seconds=10)
    budget.spend(0.0)

    assert budget.spend(9.0) is None
    assert budget.spend(11.0) == 0.0


def start_on_a_terminal(tmp_path, scenario: str) -> str:
    """Start a service with a terminal for its log, stop it once it is ready; gives what it saw."""
    ours, theirs = os.openpty()
    (tmp_path / "journal").touch()
    with (tmp_path / "stdout").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, ROOT / "tests/service/fake_service.py", scenario, "0"],
            stdout=output,
            stderr=theirs,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "FAKE_JOURNAL": str(tmp_path / "journal")},
        )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
            if b'"message":"ready"' in shown and process.poll() is None:
                process.send_signal(signal.SIGTERM)
    except OSError:  # the terminal's other end is closed: all of the service has ended
        pass
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return shown.decode()


def test_a_terminal_shows_the_stage_and_the_seconds_until_the_service_is_ready(tmp_path):
    shown = start_on_a_terminal(tmp_path, "loads-for-a-while")

    before, ready, after = shown.partition('"message":"ready"')
    assert re.search(r"\rloading the weights … \d+ s\r", before.replace("\x1b[K", ""))
    assert "looking up qwen on the hub …" not in shown  # the download draws bars of its own
    assert ready
    assert "…" not in after
    lines = [line.rpartition("\r\x1b[K")[2].rpartition("\r")[2] for line in shown.split("\r\n")]
    assert all(line.startswith("{") for line in lines if line), "every log line begins at the left"


def test_a_log_file_has_no_progress_line(start):
    service = start("loads-for-a-while")
    service.wait_until_ready()

    assert "…" not in service.log() + service.output()
    assert "\r" not in service.log() + service.output()
