"""Hooks of MkDocs and griffe for `make docs`.

Pages keep their place in the repository, so a link works there and on the site. The site has the pages of
the root and of docs/, and the benchmark's reports; a link to any other file, such as a source, becomes
plain text. The reference is read from the sources, apart from docstrings that are made at import: for these
fastrnn must be built.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = ("*.md", "docs/*.md", "docs/images/*", "benchmarks/results/*.md", "benchmarks/results/*.png")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)[^)]*\)")


def on_files(files: Files, config: Any) -> Files:
    """Replaces the files of docs/, named from there, by files named from the root."""
    kept = [file for file in files if file.src_uri.startswith("assets/")]
    for pattern in PATTERNS:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            kept.append(File.generated(config, name, abs_src_path=str(path)))
    return Files(kept)


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    folder = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        is_source = files.get_file_from_path(path) is None and (ROOT / path).exists()
        return text if is_source else match[0]

    return _LINK.sub(link, markdown)


class DocstringsMadeAtImport(griffe.Extension):
    """Takes from the imported class a docstring that its source assigns to __doc__."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        if "__doc__" in cls.members:
            text = inspect.getdoc(griffe.dynamic_import(cls.path)) or ""
            # As in mkdocs.yml, whose options the first class does not get.
            options = griffe.GoogleOptions(warn_unknown_params=False, warn_missing_types=False)
            cls.docstring = griffe.Docstring(text, parent=cls, parser="google", parser_options=options)
