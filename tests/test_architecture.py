"""The shape of the house: imports run one way, files and functions stay small, nothing unpickles."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for folder in ("storydist", "shards", "launch") for p in (ROOT / folder).rglob("*.py"))
MAX_FILE, MAX_FUNCTION, MAX_COMMAND = 400, 50, 100
LOOP = ("storydist/training/trainer.py", "train")  # only the loop may be longer
# The one-way order: a room may import itself and what stands before it.
FLOORS = ["data", "model", "losses", "verdict", "training", "config", "run_folder", "cluster", "sweep"]
SHARED = {"settings", "command"}


def imports(path: Path) -> Iterator[str]:
    """Modules of this project that a file imports when it runs; imports for type checking alone are left out."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(n)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for n in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            bare = "." not in node.module  # `from storydist import command` imports a module by name
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if bare else (node.module,)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def floor_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[-2] != "storydist" or p.stem != "__init__"], ids=name)
def test_imports_point_one_way(path):
    relative = path.relative_to(ROOT)
    for module in imports(path):
        top = module.split(".")[0]
        if relative.parts[0] == "storydist":
            assert top not in ("shards", "launch", "tests"), module
            own = relative.parts[1].removesuffix(".py")
            if top == "storydist" and own in FLOORS and floor_of(module) not in SHARED:
                assert FLOORS.index(floor_of(module)) <= FLOORS.index(own), f"{own} may not import {module}"
            if own in SHARED:
                assert top != "storydist", module
        elif relative.parts[0] == "shards":
            assert top != "launch", module
            if top == "storydist":
                assert floor_of(module) in ("data", *SHARED), module


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_stay_small(path):
    source = path.read_text()
    limit = MAX_COMMAND if path.parent.name == "launch" else MAX_FILE
    assert source.count("\n") <= limit, f"{source.count(chr(10))} lines; name the second job that crept in"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and (name(path), node.name) != LOOP:
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_is_unpickled_or_run_from_data(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "cloudpickle", "marshal", "shelve"} & set(names)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system")
            assert not any(
                k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
                for k in node.keywords
            )
            assert not any(k.arg == "shell" for k in node.keywords)


def test_data_needs_no_torch_where_the_sharding_step_uses_it():
    for path in [
        ROOT / "storydist" / "data" / f"{room}.py"
        for room in (
            "markup",
            "sample",
            "index",
            "order",
            "text",
            "frames",
            "npy",
            "files",
            "storage",
            "cache",
            "download",
            "location",
            "tar",
        )
    ] + list((ROOT / "shards").rglob("*.py")):
        assert not any(module.split(".")[0] == "torch" for module in imports(path)), path
