"""Nothing in the tree runs code that came as data."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = [
    path
    for folder in ("gdfusion_ros", "launch", "benchmark")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "msg" not in path.relative_to(ROOT).parts
]
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
# The refusal of a checkpoint needs the name of the exception that torch raises.
ALLOWED_NAMES = {"UnpicklingError"}


def faults(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"import {a.name}" for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found += [
                f"from {node.module} import {a.name}" for a in node.names if a.name not in ALLOWED_NAMES
            ]
        elif isinstance(node, ast.Call):
            found += _call_faults(node)
    return found


def _call_faults(node: ast.Call) -> list[str]:
    called = node.func
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
        return [f"{called.id}()"]
    if not isinstance(called, ast.Attribute):
        return []
    owner = called.value.id if isinstance(called.value, ast.Name) else ""
    if (owner, called.attr) == ("torch", "load"):
        safe = keywords.get("weights_only")
        return (
            []
            if isinstance(safe, ast.Constant) and safe.value is True
            else ["torch.load without weights_only=True"]
        )
    if (owner, called.attr) in {("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load")}:
        return [f"yaml.{called.attr}"]
    if called.attr == "load" and owner in ("np", "numpy"):
        pickled = keywords.get("allow_pickle")
        return ["numpy.load with pickles"] if isinstance(pickled, ast.Constant) and pickled.value else []
    if (owner, called.attr) == ("os", "system") or "shell" in keywords:
        return [f"{owner}.{called.attr} with a shell"]
    return []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_unpickles_evaluates_or_calls_a_shell(path):
    assert faults(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "torch.load('a.pth')",
        "torch.load('a.pth', weights_only=False)",
        "np.load('a.npy', allow_pickle=True)",
        "yaml.load(text)",
        "os.system('rm')",
        "subprocess.run('rm', shell=True)",
    ],
)
def test_the_scan_would_find_it(code):
    assert faults(ast.parse(code))
