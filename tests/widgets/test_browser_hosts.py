"""The bench's colours on pages that set colours as VS Code, Colab or nobody does; their own front ends are not run."""

from collections.abc import Iterator

import pytest
from page import Page, browsing

from widgets.parts.style import CSS

LIGHTS = ":root { --jp-layout-color1: white; --jp-ui-font-color1: rgba(0, 0, 0, .87); --jp-widgets-color: black }"
VSCODE = "body { --vscode-editor-background: #1f1f1f; --vscode-editor-foreground: #cccccc }"
BENCH = "<div class='wb-bench'><div class='wb-card'><p id='text'>Variants</p></div></div>"
SHOWN = """() => [".wb-card", "#text"].map((each, at) =>
  getComputedStyle(document.querySelector(each))[at ? "color" : "backgroundColor"])"""
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browsing() as window:
        yield window.new_page()


@pytest.mark.parametrize(
    ("html", "body", "css", "scheme", "shown"),
    [
        ("", "", "", "light", ["rgb(255, 255, 255)", "rgb(33, 33, 33)"]),
        ("", "", "", "dark", ["rgb(33, 33, 33)", "rgb(255, 255, 255)"]),
        ("", "", LIGHTS, "dark", ["rgb(255, 255, 255)", "rgba(0, 0, 0, 0.87)"]),
        ("theme=dark", "", LIGHTS, "light", ["rgb(33, 33, 33)", "rgb(255, 255, 255)"]),
        ("", "class=vscode-dark", LIGHTS + VSCODE, "light", ["rgb(31, 31, 31)", "rgb(204, 204, 204)"]),
    ],
    ids=["nobody-light", "nobody-dark", "page-wins", "colab-dark", "vscode-dark"],
)
def test_text_stands_out_from_its_ground(
    page: Page, html: str, body: str, css: str, scheme: str, shown: list[str]
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_content(f"<html {html}><body {body}><style>{css}{CSS}</style>{BENCH}</body></html>")
    assert page.evaluate(SHOWN) == shown
