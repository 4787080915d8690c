"""Executed notebooks as HTML pages that need no network."""

import re
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

_FROM_A_NETWORK = re.compile(r"<script[^>]*\bsrc=\"https?://[^>]*>\s*</script>")


def write_pages(notebooks: Path, folder: Path) -> None:
    """Write a page `<name>.html` for every executed notebook of a folder, figures inside."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_write_page, folder), sorted(notebooks.glob("*.ipynb"))))


def _write_page(folder: Path, notebook: Path) -> None:
    from nbconvert import HTMLExporter

    html, _ = HTMLExporter(mathjax_url="", require_js_url="").from_filename(str(notebook))
    (folder / f"{notebook.stem}.html").write_text(_FROM_A_NETWORK.sub("", html), encoding="utf-8")
