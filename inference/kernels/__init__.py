"""Our CPU kernels: compiled once per machine with its C compiler, used where there is one.

A service without a compiler runs on torch's operators alone, slower; the log says which it is. The
compiled library is kept in the user's cache folder under a name made of its source, flags and the
processor's features. Its threads are torch's own: it is linked to nothing, so that its OpenMP calls
meet the library that torch has loaded.
"""

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import structlog
import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("cpu.c")
_FLAGS = (
    "-O3", "-march=native", "-fopenmp", "-fPIC", "-ffinite-math-only", "-fno-math-errno",
    "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math",
)  # fmt: skip
_SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}
_COMPILE_SECONDS = 120

_log = structlog.get_logger()


def load_kernels(dtype: torch.dtype) -> "CpuKernels | None":
    """Compile and load the kernels for a storage type; None where that cannot be had."""
    if dtype not in _SUFFIXES:
        return None
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("no CPU kernels; torch's operators do their work", reason=type(error).__name__)
        return None
    return CpuKernels(library, _SUFFIXES[dtype])


class CpuKernels:
    """`Ops` in C, and attention of decoding rows over the paged pool.

    Attention wants head_dim and block_size in multiples of LANES and groups of at most MAX_GROUP.
    """

    LANES = 16
    MAX_GROUP = 8

    def __init__(self, library: ctypes.CDLL, suffix: str) -> None:
        """Bind the functions of one storage type."""

        def bind(name: str, *types: type) -> "ctypes._NamedFuncPointer":
            function = library[f"{name}_{suffix}"]
            function.argtypes = types
            function.restype = None
            return function

        p, n, f = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self._rms_norm = bind("rms_norm", p, p, p, n, n, f)
        self._silu_mul = bind("silu_mul", p, p, n, n)
        self._norm_rotate = bind("norm_rotate", p, n, p, p, p, n, n, n, f)
        self._softmax = bind("softmax", p, n, n, n, f, n)
        self._store_keys = bind("store_keys", p, p, n, p, n, n, n, n)
        self._store_values = bind("store_values", p, p, n, p, n, n, n, n)
        self._decode = bind("decode_attention", p, n, p, p, p, p, p, n, n, n, n, n, n, f)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops`."""
        x = x.contiguous()
        out = torch.empty_like(x)
        rows, width = x.shape
        self._rms_norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, width, eps)
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Ops`."""
        gate_up = gate_up.contiguous()
        rows, width = len(gate_up), gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, width)
        return out

    def norm_rotate(
        self, heads: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float
    ) -> Tensor:
        """See `Ops`; works in place."""
        rows, num_heads, dim = heads.shape
        _check(heads.stride()[1:] == (dim, 1) and cos.is_contiguous() and sin.is_contiguous())
        self._norm_rotate(
            heads.data_ptr(),
            heads.stride(0),
            None if weight is None else weight.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            rows,
            num_heads,
            dim,
            eps,
        )
        return heads

    def softmax(self, scores: Tensor, scale: float, first: int | None) -> Tensor:
        """See `Ops`; works in place."""
        _check(scores.is_contiguous())
        rows, columns = scores.shape[-2:]
        matrices = scores.numel() // (rows * columns)
        first = -1 if first is None else first
        self._softmax(scores.data_ptr(), matrices, rows, columns, scale, first)
        return scores

    def store(self, keys: Tensor, values: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Copy k and v [num_tokens, num_kv_heads, head_dim] to slots of one layer's pools."""
        rows, heads, dim = k.shape
        _check(k.stride()[1:] == v.stride()[1:] == (dim, 1))
        size = values.shape[2]
        for function, pool, x in (
            (self._store_keys, keys, k),
            (self._store_values, values, v),
        ):
            function(
                pool.data_ptr(), x.data_ptr(), x.stride(0), slots.data_ptr(), rows, heads, size, dim
            )

    def decode_attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        tables: Tensor,
        lengths: Tensor,
        scale: float,
    ) -> Tensor:
        """Attend with one query token a row over its blocks.

        Args:
            q: [num_rows, num_heads, head_dim].
            keys: one layer's pool, [num_blocks, num_kv_heads, head_dim, block_size].
            values: the same, [num_blocks, num_kv_heads, block_size, head_dim].
            tables: int64 [num_rows, table_width].
            lengths: int64 [num_rows], tokens of each row, the newest included.
            scale: of the scores.

        Returns:
            [num_rows, num_heads * head_dim].
        """
        rows, num_heads, dim = q.shape
        _check(q.stride()[1:] == (dim, 1))
        _, kv_heads, block_size, _ = values.shape
        out = q.new_empty(rows, num_heads * dim)
        self._decode(
            q.data_ptr(),
            q.stride(0),
            keys.data_ptr(),
            values.data_ptr(),
            tables.data_ptr(),
            lengths.data_ptr(),
            out.data_ptr(),
            rows,
            tables.shape[1],
            kv_heads,
            num_heads // kv_heads,
            block_size,
            dim,
            scale,
        )
        return out


def _check(layout_fits: bool) -> None:
    """Pointers carry no strides: a tensor of another layout must not get through."""
    if not layout_fits:
        raise ValueError("a tensor's layout is not what the kernel reads")


def _compiled() -> Path:
    """The compiled library, made if it is not there.

    Raises:
        OSError: no compiler, no OpenMP library of torch's, or nowhere to write.
        subprocess.SubprocessError: the compiler failed.
    """
    _share_openmp()
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    recipe = _SOURCE.read_bytes() + " ".join((compiler, *_FLAGS, _processor())).encode()
    library = _cache_folder() / f"cpu-{hashlib.sha256(recipe).hexdigest()[:16]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            unlinked, linked = f"{folder}/cpu.o", f"{folder}/cpu.so"
            _run(compiler, *_FLAGS, "-c", "-o", unlinked, str(_SOURCE))
            _run(compiler, "-shared", "-o", linked, unlinked)
            Path(linked).rename(library)
    return library


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)  # noqa: S603


def _share_openmp() -> None:
    """Make torch's OpenMP library visible to ours.

    Raises:
        OSError: torch brings none of the kind that the compiler's calls need.
    """
    ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libgomp.so.1"), mode=ctypes.RTLD_GLOBAL)


def _processor() -> str:
    """What tells processors with other instructions apart."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return ""


def _cache_folder() -> Path:
    """A folder only this user writes to: what is loaded from it runs.

    Raises:
        OSError: it cannot be made, or is another user's.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "loupe"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError("the cache folder is another user's")
    return folder
