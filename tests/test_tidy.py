"""The habits of CONTRIBUTING.md that a machine can hold us to."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
LINE_MAX = 100
SKIPPED = {".venv", "build", "dist", ".git", "__pycache__", ".tools", "node_modules"}

# Spelled in halves, so that this file does not hold what it forbids.
BANNED_MARKS = ("FIX" + "ME", "X" + "XX", "HA" + "CK")
BANNED_NAMES = {"handle_data", "on_update", "process_data", "do_it", "foo", "bar", "baz", "utils"}
BANNED_PATHS = ("/wo" + "rk/", "/ro" + "ot/", ".libr" + "ary/")


def files(*suffixes: str) -> Iterator[Path]:
    """Every file of ours with one of these endings."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if path.suffix in suffixes and path.is_file() and not SKIPPED & set(parts):
            yield path


@cache
def trees() -> dict[Path, tuple[str, ast.Module]]:
    """Text and syntax tree of every Python file."""
    texts = {path: path.read_text(encoding="utf-8") for path in files(".py")}
    return {path: (text, ast.parse(text)) for path, text in texts.items()}


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[Function]:
    """Every function of a module, inner ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def where(path: Path, line: int = 1) -> str:
    """`file:line`, as editors open it."""
    return f"{path.relative_to(ROOT)}:{line}"


def length(function: Function) -> int:
    """Lines of a function with its signature, without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def long_functions(tree: ast.Module) -> Iterator[Function]:
    """Functions beyond the limit."""
    return (function for function in functions(tree) if length(function) > FUNCTION_LINES_MAX)


def sentence(text: str | None) -> bool:
    """A docstring whose first paragraph is one that ends as a sentence does."""
    first = (text or "").strip().split("\n\n")[0]
    return len(first) > 10 and first.rstrip()[-1] in ".!?"


def test_functions_are_short() -> None:
    """No function is longer than 70 lines."""
    found = [
        f"{where(path, function.lineno)} {function.name}: {length(function)} lines"
        for path, (_text, tree) in trees().items()
        for function in long_functions(tree)
    ]
    assert not found, "\n".join(found)


def test_modules_are_short() -> None:
    """No module is longer than 500 lines."""
    found = [
        f"{where(path)}: {len(text.splitlines())} lines"
        for path, (text, _tree) in trees().items()
        if len(text.splitlines()) > MODULE_LINES_MAX
    ]
    assert not found, "\n".join(found)


def test_every_module_says_what_it_is() -> None:
    """Every module that holds something has a docstring."""
    found = [
        where(path)
        for path, (text, tree) in trees().items()
        if text and not ast.get_docstring(tree)
    ]
    assert not found, "\n".join(found)


def test_every_test_says_what_it_holds() -> None:
    """Every test has a docstring that is a sentence."""
    found = [
        f"{where(path, function.lineno)} {function.name}"
        for path, (_text, tree) in trees().items()
        if "tests" in path.relative_to(ROOT).parts and path.name.startswith("test_")
        for function in functions(tree)
        if function.name.startswith("test_") and not sentence(ast.get_docstring(function))
    ]
    assert not found, "\n".join(found)


def test_nothing_is_left_for_later() -> None:
    """No mark of unfinished work stands in the code: that is what issues are for."""
    found = [
        f"{where(path, number)} {mark}"
        for path in files(".py", ".c", ".md", ".toml", ".yaml", ".yml", ".js")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for mark in BANNED_MARKS
        if re.search(rf"\b{mark}\b", line)
    ]
    assert not found, "\n".join(found)


def test_names_say_something() -> None:
    """No function, class or module has a name that says nothing."""
    found = [
        f"{where(path, node.lineno)} {node.name}"
        for path, (_text, tree) in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.name.lower() in BANNED_NAMES
    ]
    found += [where(path) for path in trees() if path.stem in BANNED_NAMES]
    assert not found, "\n".join(found)


def test_no_path_of_a_developers_machine() -> None:
    """Nothing names the place where it was written."""
    found = [
        f"{where(path, number)} {line.strip()[:80]}"
        for path in files(".py", ".c", ".md", ".toml", ".yaml", ".yml", ".sh", ".js", ".html")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(re.search(rf"(?<![\w.}}]){re.escape(name)}", line) for name in BANNED_PATHS)
    ]
    assert not found, "\n".join(found)


def test_no_error_is_swallowed() -> None:
    """No handler catches everything and does nothing."""
    found = [
        where(path, node.lineno)
        for path, (_text, tree) in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and swallows(node)
    ]
    assert not found, "\n".join(found)


def swallows(handler: ast.ExceptHandler) -> bool:
    """`except:` or `except Exception:` whose body is `pass`."""
    name = handler.type.id if isinstance(handler.type, ast.Name) else ""
    broad = handler.type is None or name in ("Exception", "BaseException")
    return broad and all(isinstance(node, ast.Pass) for node in handler.body)


def test_one_file_imports_ryu() -> None:
    """Only one file knows ryu: dunlin/openflow/codec.py; tests hold it to os-ken."""
    found = [
        where(path)
        for path, (text, _tree) in trees().items()
        if "tests" not in path.relative_to(ROOT).parts
        and re.search(r"^\s*(from|import) ryu\b", text, re.MULTILINE)
    ]
    assert found == ["dunlin/openflow/codec.py:1"]


@pytest.mark.parametrize(
    ("text", "finds"),
    [
        ("def f():\n" + "    x = 1\n" * 70, 1),
        ("def f():\n" + "    x = 1\n" * 69, 0),
        ('def f():\n    """A.\n' + "\n" * 60 + '    """\n' + "    x = 1\n" * 20, 0),
    ],
)
def test_the_length_test_can_fail(text: str, finds: int) -> None:
    """The oracle counts: 71 lines are found, 70 are not, docstrings do not count."""
    assert len(list(long_functions(ast.parse(text)))) == finds


def test_the_swallow_test_can_fail() -> None:
    """The oracle sees a swallowed error and lets a narrow one pass."""
    for text, expected in (
        ("try:\n    f()\nexcept Exception:\n    pass", True),
        ("try:\n    f()\nexcept:\n    pass", True),
        ("try:\n    f()\nexcept KeyError:\n    pass", False),
        ("try:\n    f()\nexcept Exception:\n    raise", False),
    ):
        (handler,) = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ExceptHandler))
        assert swallows(handler) is expected


def test_the_docstring_test_can_fail() -> None:
    """The oracle wants a sentence."""
    assert sentence("One address is given once.")
    for text in (None, "", "Adds.", "adds two numbers together"):
        assert not sentence(text)
