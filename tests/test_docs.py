"""The documents' code runs, and what they name exists."""

from __future__ import annotations

import doctest
import importlib.util
import operator
import pkgutil
import re
from pathlib import Path

import pytest

import fastrnn

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FOLDERS = ("benchmarks", "csrc", "docs", "examples", "fastrnn", "tests", "tools")
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(fastrnn.__path__, "fastrnn.")
    # The compiled libraries are none of Python's.
    if "__main__" not in m.name and "._C" not in m.name
)


# Modules that import the library they are for.
ADAPTERS = {"fastrnn._onnx_translation": "onnxscript", "fastrnn.integrations.torchrl": "torchrl"}


def code(page: Path, language: str) -> list[str]:
    """Blocks of code of this language ("" for none) on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def quoted(page: Path) -> list[str]:
    """What stands between backquotes in the prose of a page, with lines that were broken joined."""
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose(page))]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("name", ["fastrnn", *MODULES])
def test_examples_in_docstrings(name: str) -> None:
    if name in ADAPTERS:
        pytest.importorskip(ADAPTERS[name], reason=f"{ADAPTERS[name]} is not installed")
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_public_names_have_an_example() -> None:
    for name in fastrnn.__all__:
        text = getattr(fastrnn, name).__doc__
        assert ">>> " in text or name in ("Explanation", "Report", "interop"), name


@pytest.mark.parametrize("page", [page for page in PAGES if code(page, "python")], ids=page_id)
def test_python_on_a_page_runs(page: Path) -> None:
    """In the order of the page, as if typed in one after the other."""
    given: dict[str, object] = {}
    for block in code(page, "python"):
        if ">>> " not in block:
            exec(compile(block, page.name, "exec"), given)
            continue
        # What is shown was seen with one instruction set of several.
        target = fastrnn.build_info()["cpu_target"]
        block = block.replace("on avx512 in", f"on {target} in")
        test = doctest.DocTestParser().get_doctest(block, given, page.name, str(page), 0)
        assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_what_a_page_names_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", prose(page)):
        if not link.startswith("https://"):
            assert (page.parent / link).exists(), link
    for words in quoted(page):
        if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*", words):
            assert (ROOT / words).exists(), words
        if name := re.fullmatch(r"fastrnn((?:\.[A-Za-z_]\w*)+)(?:\(.*\))?", words):
            adapter = next((a for a in ADAPTERS if words.startswith(a)), None)
            if adapter is None:
                operator.attrgetter(name[1][1:])(fastrnn)
            elif importlib.util.find_spec(ADAPTERS[adapter]):
                assert hasattr(importlib.import_module(adapter), name[1].removeprefix(adapter[7:] + "."))


# How an environment variable is read, in C++, Python and shell. Macros of C++ have such names too.
READ = re.compile(
    r"""getenv\("(FASTRNN_\w+)"|environ[^\n]{0,20}?["'](FASTRNN_\w+)["']|\$\{?(FASTRNN_\w+)"""
)


def test_settings_lists_every_environment_variable() -> None:
    sources = [ROOT / "Makefile", ROOT / "setup.py", *(ROOT / ".ci").iterdir()]
    sources += [
        path
        for folder in ("benchmarks", "csrc", "fastrnn", "tests", "tools")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".h", ".cpp", ".cu", ".cuh")
    ]
    read = {
        name for source in sources for match in READ.findall(source.read_text()) for name in match if name
    }
    page = (ROOT / "docs/settings.md").read_text()
    for target in fastrnn.build_info()["cpu_targets"]:
        assert f"`{target}`" in page
    rows = re.findall(r"^\| `(FASTRNN_\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(read)
    for page in PAGES:
        assert set(re.findall(r"FASTRNN_\w+", prose(page))) <= set(rows), page


def test_reference_lists_every_public_name() -> None:
    page = (ROOT / "docs/api.md").read_text()
    listed = re.findall(r"^::: fastrnn\.(?!integrations)(?:\w+\.)*(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(fastrnn.__all__)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_on_a_page_are_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = [
        *quoted(page),
        *(line for kind in ("", "sh") for b in code(page, kind) for line in b.splitlines()),
    ]
    for words in shown:
        for target in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", words):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), words
        for script in re.findall(
            r"(?:^|\s)((?:examples|tools|benchmarks|\.ci)/[\w/]+(?:\.py)?)(?:\s|$)", words
        ):
            source = ROOT / script
            assert source.is_file(), words
            if script.startswith("examples/"):
                options = source.read_text() + (ROOT / "examples/common/cli.py").read_text()
                for option in re.findall(r"(?<=\s)--[a-z][a-z-]*", words.split(script)[1]):
                    assert f'"{option}"' in options, words
