"""What every web worker pays for."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

START = """
import sys
from pathlib import Path
import service.processes.worker
from service.app import create_app
from service.config import Settings
from service.files.file_store import FileStore
from service.media.pool import ImagePool

settings = Settings()
files = FileStore(settings.files, Path("/nowhere"))
create_app(settings, None, ImagePool(settings.media, num_processes=1), files)
print(*sys.modules)
"""


def test_a_worker_loads_nothing_heavy_that_it_does_not_use():
    done = subprocess.run(
        [sys.executable, "-c", START], cwd=ROOT, capture_output=True, text=True, check=True
    )

    loaded = set(done.stdout.split())
    assert "litestar" in loaded
    assert loaded & {"PIL", "pydantic", "numpy", "torch", "transformers", "accelerate"} == set()
