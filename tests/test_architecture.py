"""What the linters cannot see of the architecture: fresh interpreters, the wire, the top level."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("service/**/*.py"), *ROOT.glob("inference/**/*.py")])

IMPORT_THEM = """
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
    for heavy in {heavy!r}:
        if heavy in sys.modules:
            sys.exit(f"{{module}} loads {{heavy}}")
"""


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _first_offence(modules: list[str], heavy: list[str]) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", IMPORT_THEM.format(modules=modules, heavy=heavy)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return finished.stderr.strip()


def test_no_module_of_the_web_side_loads_torch():
    modules = [_module_name(path) for path in SOURCES if path.is_relative_to(ROOT / "service")]

    assert "service" in modules
    assert _first_offence(modules, ["torch", "transformers", "accelerate"]) == ""


@pytest.mark.parametrize(
    "module",
    ["protocol", "control", "frames", "quota", "config", "ledger", "log", "main", "metrics"],
)
def test_what_the_web_side_may_import_loads_no_torch(module: str):
    assert _first_offence([f"inference.{module}"], ["torch", "transformers", "accelerate"]) == ""


@pytest.mark.parametrize("module", ["sequence", "scheduler", "blocks"])
def test_scheduling_loads_no_torch(module: str):
    assert _first_offence([f"inference.{module}"], ["torch", "transformers"]) == ""


def _unpickling(node: ast.AST, awaited: set[ast.AST]) -> bool:
    """Tell whether a node can execute what a peer or a file sends."""
    match node:
        case ast.Import(names=names):
            return any(name.name.split(".")[0] in {"pickle", "marshal", "shelve"} for name in names)
        case ast.ImportFrom(module=str(module), names=names):
            queues = {"Queue", "JoinableQueue", "SimpleQueue", "Manager"}
            return module.split(".")[0] in {"pickle", "marshal", "shelve"} or (
                module.startswith("multiprocessing") and any(n.name in queues for n in names)
            )
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=words):
            return not any(word.arg == "weights_only" for word in words)
        case ast.Call(func=ast.Attribute(attr="recv"), args=[]):
            return True  # a socket's recv, which gives bytes, is told how many
        case ast.Call(func=ast.Attribute(attr="send"), args=[_]):
            return node not in awaited  # what is awaited is a stream of anyio's, not a connection
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="multiprocessing"), attr="Queue" | "SimpleQueue")
        ):
            return True
        case _:
            return False


def _offences(tree: ast.AST) -> Iterator[int]:
    nodes = list(ast.walk(tree))
    awaited: set[ast.AST] = {node.value for node in nodes if isinstance(node, ast.Await)}
    return (getattr(node, "lineno", 0) for node in nodes if _unpickling(node, awaited))


def test_nothing_is_unpickled():
    """Frames are bytes of msgpack: `send` and `recv` of a connection would pickle."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        for line in _offences(ast.parse(path.read_text()))
    ]

    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "from multiprocessing import Queue",
        "connection.recv()",
        "connection.send(message)",
        "torch.load(path)",
        "multiprocessing.Queue()",
    ],
)
def test_the_search_for_unpickling_finds(code: str):
    assert list(_offences(ast.parse(code))) == [1]


def test_inference_is_synchronous():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        if path.is_relative_to(ROOT / "inference")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.AsyncFunctionDef)
    ]

    assert found == []


def test_the_top_level_holds_nothing_new():
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top_level = {path.split("/")[0] for path in listed}

    visible = {name for name in top_level if not name.startswith(".")}
    assert visible <= {
        "service",
        "inference",
        "tests",
        "deploy",
        "pyproject.toml",
        "justfile",
        "README.md",
        "LICENSE",
        "requirements.lock",
    }
