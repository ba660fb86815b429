"""A comparison and a search as one page: complete, escaped, without scripts, and as PDF where a browser is."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import workbench as wb
from workbench.analysis.found import Search
from workbench.analysis.trials import Trial
from workbench.core.errors import InvalidInput, NotAvailable
from workbench.core.estimate import Estimate
from workbench.steps import quantize

EVIL = "<img src=x onerror=alert(1)>"


class Parsed(HTMLParser):
    """Tags and ids of a page, and whether every tag that opens closes."""

    VOID = frozenset({"meta", "line", "circle", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture
def compared(base: wb.Variant, tiny_task: wb.Task) -> wb.Comparison:
    small = base.apply(quantize.RTN(bits=3)).under(EVIL)
    return wb.compare([base, small], tiny_task, rounds=2, new_tokens=2, store=False)


def test_a_comparison_as_a_page(compared: wb.Comparison, tmp_path: Path) -> None:
    place = compared.report(tmp_path / "report.html", question=f"Which one? {EVIL}")
    text = place.read_text()
    page = Parsed(text)
    assert not page.open
    assert not {"script", "img", "iframe", "link"} & set(page.tags)
    assert page.tags.count("h1") == 1
    assert "<h1>Which one? &lt;img" in text
    for part in ("Figures", "Variants and their recipes", "Limits", "Do it again"):
        assert f"<h2>{part}</h2>" in text
    assert "quantize.RTN(bits=3" in text
    assert compared.baseline.fingerprint in text
    assert text.count('role="img"') == 5
    assert all(
        re.search(rf"aria-label=\"{name}[^\"]*llama", text) for name in ("Time per token", "Perplexity", "Weights")
    )
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'" in text


def test_a_search_as_a_page(tmp_path: Path) -> None:
    found = Search(
        "base", "weight_bytes", (), {"weight_bytes": Estimate.exact(4.0, "bytes")},
        (Trial(number=0, params={}, recipe=[quantize.RTN().to_json()], ended="refused", why=EVIL),),
    )  # fmt: skip
    text = found.report(tmp_path / "s.html").read_text()
    assert not Parsed(text).open
    assert "&lt;img src=x" in text
    assert EVIL not in text
    assert "None of 1 trials could be made" in text


def test_other_kinds_of_file(compared: wb.Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"\.html or \.pdf, not as 'report\.docx'"):
        compared.report(tmp_path / "report.docx")
    monkeypatch.delenv("WORKBENCH_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotAvailable, match="A PDF is printed by Chromium"):
        compared.report(tmp_path / "report.pdf")
    (tmp_path / "chromium").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "chromium").chmod(0o700)
    with pytest.raises(NotAvailable, match="printed nothing"):
        compared.report(tmp_path / "report.pdf")
    assert not (tmp_path / "report.pdf").exists()


@pytest.mark.browser
@pytest.mark.skipif("WORKBENCH_CHROMIUM" not in os.environ, reason="$WORKBENCH_CHROMIUM names no browser")
def test_as_pdf(compared: wb.Comparison, tmp_path: Path) -> None:
    from pypdf import PdfReader

    printed = PdfReader(compared.report(tmp_path / "report.pdf", question="Which is smaller?"))
    text = "\n".join(page.extract_text() for page in printed.pages)
    assert "Which is smaller?" in text
    assert "Do it again" in text
