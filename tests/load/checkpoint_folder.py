"""Where the checkpoint to measure with lies; it is made when it is not there yet.

Apart from `checkpoints.py`, which loads torch: the load generator does not.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from checkout import HERE, ROOT

DEMO = ROOT / "inference" / "demo" / "checkpoint"
CACHE = Path(tempfile.gettempdir()) / "loupe-bench"


def checkpoint_folder(model: str, max_pixels: int | None = None) -> Path:
    """Find or make `demo`, `mid`, `mid-moe` or a folder's checkpoint.

    max_pixels: another bound for the area of pictures, in a copy that shares the weights.
    """
    if model == "demo":
        folder = DEMO
    elif model in ("mid", "mid-moe"):
        folder = CACHE / model
        subprocess.run([sys.executable, str(HERE / "checkpoints.py"), model, folder], check=True)
    else:
        folder = Path(model).resolve()
    return folder if max_pixels is None else _bounded(folder, max_pixels)


def _bounded(folder: Path, max_pixels: int) -> Path:
    copy = CACHE / f"{folder.name}-{max_pixels}"
    copy.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        link = copy / file.name
        link.unlink(missing_ok=True)
        if file.name == "preprocessor_config.json":
            fields = json.loads(file.read_text())
            fields["size"]["longest_edge"] = max_pixels
            link.write_text(json.dumps(fields))
        else:
            link.symlink_to(file.resolve())
    return copy
