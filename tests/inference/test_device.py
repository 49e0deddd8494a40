from pathlib import Path

import pytest

from inference.device import (
    DeviceError,
    DeviceMemory,
    MemoryWatch,
    default_brink,
    device_memory,
    host_memory,
    resident_bytes,
    resolve_device,
)

MEBIBYTE = 1024**2
GIBIBYTE = 1024**3
NOT_LIMITED = str(2**63 - 4096)


class Machine:
    """A machine's files under /proc and /sys/fs/cgroup, made in a folder."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.cgroup = folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(
            "MemTotal:       16777216 kB\nMemFree:         1048576 kB\n"
            "MemAvailable:    8388608 kB\nHugePages_Total:       0\n"
        )

    def is_in_group(self, line: str) -> None:
        (self.proc / "self" / "cgroup").write_text(f"5:cpu,cpuacct:/other\n{line}\n")

    def write(self, folder: str, **files: str) -> None:
        target = self.cgroup / folder
        target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (target / name.replace("__", ".")).write_text(content)

    def memory(self) -> DeviceMemory:
        return host_memory(self.proc, self.cgroup)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_container_the_kernels_available_memory_counts(machine):
    assert machine.memory() == (8 * GIBIBYTE, 16 * GIBIBYTE)


def test_a_containers_smaller_limit_counts_and_its_file_cache_is_free(machine):
    machine.is_in_group("0::/")
    machine.write(
        "",
        memory__max=str(2 * GIBIBYTE),
        memory__current=str(1536 * MEBIBYTE),
        memory__stat=f"anon 5\ninactive_file {512 * MEBIBYTE}\n",
    )

    assert machine.memory() == (GIBIBYTE, 2 * GIBIBYTE)


def test_the_limit_of_a_parent_group_counts_too(machine):
    machine.is_in_group("0::/pod/container")
    machine.write(
        "pod", memory__max=str(GIBIBYTE), memory__current="0", memory__stat="inactive_file 0\n"
    )
    machine.write(
        "pod/container", memory__max="max", memory__current="0", memory__stat="inactive_file 0\n"
    )

    assert machine.memory() == (GIBIBYTE, GIBIBYTE)


def test_a_group_path_of_the_host_falls_back_to_the_root_of_the_older_groups(machine):
    machine.is_in_group("7:memory:/docker/abc")
    machine.write(
        "memory",
        memory__limit_in_bytes=str(4 * GIBIBYTE),
        memory__usage_in_bytes=str(GIBIBYTE),
        memory__stat="total_inactive_file 0\n",
    )

    assert machine.memory() == (3 * GIBIBYTE, 4 * GIBIBYTE)


def test_an_unlimited_group_changes_nothing(machine):
    machine.is_in_group("7:memory:/")
    machine.write(
        "memory",
        memory__limit_in_bytes=NOT_LIMITED,
        memory__usage_in_bytes=str(GIBIBYTE),
        memory__stat="total_inactive_file 0\n",
    )

    assert machine.memory() == (8 * GIBIBYTE, 16 * GIBIBYTE)


def test_a_full_container_has_nothing_free(machine):
    machine.is_in_group("0::/")
    machine.write("", memory__max="100", memory__current="200", memory__stat="inactive_file 0\n")

    assert machine.memory().free_bytes == 0


def test_this_machine_has_memory():
    memory = device_memory("cpu")

    assert 0 < memory.free_bytes <= memory.total_bytes


@pytest.mark.parametrize("name", ["mps", "cuda:x", "cuda:", "gpu"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(DeviceError, match="is unknown"):
        resolve_device(name)


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(DeviceError, match=r"--device cpu|GPU\(s\)"):
        resolve_device("cuda:99")


def test_auto_finds_a_device_whose_memory_can_be_read():
    device = resolve_device("auto")

    assert device in {"cpu", "cuda"}
    assert device_memory(device).total_bytes > 0


class Readings:
    """A clock and a memory that a test turns by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.free_bytes = GIBIBYTE
        self.count = 0

    def read(self) -> DeviceMemory:
        self.count += 1
        return DeviceMemory(self.free_bytes, GIBIBYTE)


def plenty() -> DeviceMemory:
    return DeviceMemory(GIBIBYTE, GIBIBYTE)


def test_memory_under_the_brink_is_noticed_wherever_it_is_and_so_is_its_end():
    readings = Readings()
    watch = MemoryWatch(reads=[plenty, readings.read], clock=lambda: readings.now)
    short = [watch.is_short()]
    for free_bytes in (64 * MEBIBYTE - 1, 64 * MEBIBYTE):
        readings.free_bytes = free_bytes
        readings.now += 1.0
        short.append(watch.is_short())

    assert short == [False, True, False]


def test_a_watch_reads_at_most_once_a_second():
    readings = Readings()
    watch = MemoryWatch(reads=[readings.read], clock=lambda: readings.now)
    for _ in range(100):
        watch.is_short()
        readings.now += 0.03125

    assert readings.count == 1 + 4


def test_a_machine_with_memory_is_not_short_of_it():
    assert not MemoryWatch("cpu").is_short()


@pytest.mark.parametrize(
    ("total", "brink"),
    [
        pytest.param(GIBIBYTE, 64 * MEBIBYTE, id="small"),
        pytest.param(10_000 * MEBIBYTE, 200 * MEBIBYTE, id="middle"),
        pytest.param(512 * GIBIBYTE, GIBIBYTE, id="large"),
    ],
)
def test_the_brink_is_a_small_share_within_bounds(total, brink):
    assert default_brink(DeviceMemory(0, total)) == brink


def test_this_process_is_resident_and_grows_with_what_it_holds():
    before = resident_bytes()

    held = bytearray(b"\1" * 64 * 1024 * 1024)

    assert resident_bytes() - before > 32 * 1024 * 1024
    assert len(held) == 64 * 1024 * 1024
