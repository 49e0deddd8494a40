import os

import msgspec
import pytest

from service.config import Settings, usable_cores
from service.processes.threads import plan_threads, variables_set


def settings(**values: object) -> Settings:
    return msgspec.convert(values, Settings)


def test_threads_spin_briefly_while_they_wait_unless_told_otherwise():
    plan = plan_threads(settings(), {})

    assert plan.variables == {
        "OMP_NUM_THREADS": str(usable_cores()),
        "GOMP_SPINCOUNT": "1000",
    }
    assert "bounded" in plan.reason


@pytest.mark.parametrize(
    ("wait", "variables"),
    [
        ("passive", {"OMP_WAIT_POLICY": "PASSIVE"}),
        ("bounded", {"GOMP_SPINCOUNT": "1000"}),
        ("active", {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_the_setting_chooses_how_threads_wait(wait, variables):
    plan = plan_threads(settings(thread_wait=wait, engine={"num_threads": 3}), {})

    assert plan.variables == {"OMP_NUM_THREADS": "3"} | variables
    assert plan.reason == f"3 threads, as set; waiting {wait}, as set"


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_a_way_of_waiting_that_the_operator_set_is_kept(name):
    plan = plan_threads(settings(thread_wait="active"), {name: "7"})

    assert set(plan.variables) == {"OMP_NUM_THREADS"}
    assert name in plan.reason


def test_a_number_of_threads_that_the_operator_set_is_kept():
    assert "OMP_NUM_THREADS" not in plan_threads(settings(), {"OMP_NUM_THREADS": "5"}).variables


def test_variables_are_set_inside_the_block_alone(monkeypatch):
    monkeypatch.setenv("LOUPES_OLD", "before")
    monkeypatch.delenv("LOUPES_NEW", raising=False)

    with variables_set({"LOUPES_OLD": "inside", "LOUPES_NEW": "inside"}):
        inside = (os.environ["LOUPES_OLD"], os.environ["LOUPES_NEW"])

    assert inside == ("inside", "inside")
    assert os.environ["LOUPES_OLD"] == "before"
    assert "LOUPES_NEW" not in os.environ


def test_usable_cores_are_at_most_those_of_the_affinity():
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_a_container_limit_cuts_the_cores(monkeypatch, tmp_path):
    limit = tmp_path / "cpu.max"
    limit.write_text("150000 100000\n")
    monkeypatch.setattr("service.config._CGROUP_CPU_LIMIT", limit)

    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("workers", "image_processes"),
    [pytest.param(None, None, id="chosen"), pytest.param(3, 2, id="set")],
)
def test_process_counts_follow_the_settings_or_the_cores(workers, image_processes):
    chosen = settings(workers=workers, image_processes=image_processes)

    assert chosen.num_workers == (workers or min(4, usable_cores()))
    assert chosen.num_image_processes >= 1
    assert image_processes in (None, chosen.num_image_processes)
