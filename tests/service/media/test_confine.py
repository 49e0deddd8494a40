"""Limits, felt by real processes; what happens over the CPU limit is the pool's test."""

import subprocess
import sys

PREPARE = "from service.media.confine import *; "


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PREPARE + code]
    return subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)


def test_too_much_memory_is_an_error_and_the_process_lives():
    done = run("""
limit_memory(256 * 2**20)
try:
    bytes(512 * 2**20)
except MemoryError:
    print("lives")
""")

    assert done.stdout == "lives\n"


def test_what_a_block_left_of_its_time_does_not_count_against_the_next():
    done = run("""
with cpu_limited(1):
    pass
deadline = time.process_time() + 1.5
while time.process_time() < deadline:
    sum(range(10**5))
print("lives")
""")

    assert done.stdout == "lives\n"
