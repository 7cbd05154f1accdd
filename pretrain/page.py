"""Self-contained HTML pages: text, tables and embedded pictures."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from pretrain.files import write_atomically

STYLE = """
:root { color-scheme: light; }
body { margin: 2.5rem auto; max-width: 74rem; padding: 0 1.5rem; color: #1f2430; background: #fff;
       font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .35rem .8rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #e6e8ee; }
th { color: #6b7280; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; }
figcaption { color: #6b7280; font-size: .9rem; }
"""
PIXELS = 1.3  # picture pixels per page pixel, so that all pictures have the same font size
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # headers, rows


def write_page(
    out: Path,
    title: str,
    words: Sequence[str],
    tables: Sequence[Table],
    pictures: Mapping[Path, str],
) -> None:
    """Writes a page that needs no other file and no network.

    Args:
        words: paragraphs, before the tables.
        pictures: captions of PNGs, after the tables.
    """
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(each)}</p>" for each in words)]
    body += [_table(*each) for each in tables]
    body += [_figure(*each) for each in pictures.items()]
    _write(out, title, "\n".join(body))


def write_markdown_page(out: Path, text: str) -> None:
    """Writes Markdown, which begins with its title, as a self-contained page.

    Its pictures (PNG) are in the page's folder.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")  # a study may be called <i>
    body = reader.render(text)
    body = body.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
    body = _IMAGE.sub(lambda found: _figure(out.parent / found[1], found[2]), body)
    _write(out, text.partition("\n")[0].removeprefix("# "), body)


_IMAGE = re.compile(r'<p><img src="([^"]+)" alt="([^"]*)" /></p>')


def _write(out: Path, title: str, body: str) -> None:
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    write_atomically(out, page + body + "\n</body>\n</html>\n")


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in headers)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table></div>"
    )


def _figure(picture: Path, caption: str) -> str:
    content, said = picture.read_bytes(), escape(caption)
    encoded = base64.b64encode(content).decode()
    pixels = int.from_bytes(content[16:20], "big")  # a PNG's width
    return (
        f'<figure><img width="{round(pixels / PIXELS)}" alt="{said}" '
        f'src="data:image/png;base64,{encoded}">'
        f"<figcaption>{said}</figcaption></figure>"
    )
