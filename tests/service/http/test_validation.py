"""Reading JSON where memory is short, felt by a real process."""

import subprocess
import sys

READ_WITHOUT_ROOM = """
import resource
from pathlib import Path
import msgspec
from service.http.validation import decode_json

class Text(msgspec.Struct):
    text: str

body = b'{"text":"' + b"a" * 2**25 + b'"}'
num_pages = int(Path("/proc/self/statm").read_text().split()[0])
room = num_pages * resource.getpagesize() + 2**24
resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
try:
    decode_json(body, msgspec.json.Decoder(Text))
except MemoryError:
    print("lives")
"""


def test_a_text_without_memory_for_it_does_not_end_the_process():
    command = [sys.executable, "-c", READ_WITHOUT_ROOM]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)

    assert (done.stdout, done.returncode) == ("lives\n", 0)
