"""Documents that are no plain text: what they say is taken out of them, whatever they are called."""

import json
import sys
import zipfile
from email.message import EmailMessage
from io import BytesIO
from pathlib import Path

import docx
import pytest

from workbench.core.errors import InvalidInput, NotAvailable
from workbench.retrieval.documents import read_documents
from workbench.retrieval.extract import text_of

PAGE = b"""<!-- made by hand --><!DOCTYPE html><html><head><title>The pier</title><style>p {color: red}</style></head>
<body><nav><a href="/">Home</a></nav><script>var tracking = 'x'</script><h1>Hours</h1>
<p>Opens at&nbsp;<b>eight</b>&hellip;<br>Closes   at
nine.</p><!-- secret --><table><tr><td>Mon</td><td>8</td></tr><tr><td>Tue</td><td>9</td></tr></table>
<ul><li>boats<li>nets</ul><pre>a
  b</pre></body></html>"""


def pdf(*pages: str) -> bytes:
    """A PDF written by hand: one line of text a page."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(pages):
        content = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        resources = "/Resources << /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] {resources} /Contents {5 + 2 * n} 0 R >>")
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    data, places = b"%PDF-1.4\n", []
    for n, each in enumerate(objects, start=1):
        places.append(len(data))
        data += f"{n} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{end}".encode()


def word() -> bytes:
    document, file = docx.Document(), BytesIO()
    document.add_heading("Hours")
    document.add_paragraph("Opens at eight.")
    table = document.add_table(rows=2, cols=2)
    for row, texts in zip(table.rows, (("Mon", "8"), ("Tue", "9")), strict=True):
        for cell, text in zip(row.cells, texts, strict=True):
            cell.text = text
    document.add_paragraph("Closes at nine.")
    document.save(file)
    return file.getvalue()


def mail(html: bool) -> bytes:
    message = EmailMessage()
    message["From"], message["Subject"], message["Message-ID"] = (
        "Ann <ann@example.org>",
        "Caf\u00e9 hours",
        "<1@example.org>",
    )
    message.set_content("Opens at eight.")
    if html:
        message.set_content("<html><p>Opens at <b>eight</b>.</p></html>", subtype="html")
    message.add_attachment(b"\0secret", maintype="application", subtype="octet-stream", filename="a.bin")
    return message.as_bytes()


NOTEBOOK = {
    "nbformat": 4,
    "cells": [
        {"cell_type": "markdown", "source": ["# Hours\n", "Opens at eight."]},
        {"cell_type": "code", "source": "print(8)", "outputs": [{"text": "secret"}]},
    ],
}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (PAGE, "The pier\n\nHours\n\nOpens at eight\u2026\nCloses at nine.\n\nMon 8\nTue 9\n\nboats\nnets\n\na\n  b"),
        ("<html><meta charset=latin-1>Caf\u00e9".encode("latin-1"), "Caf\u00e9"),
        (b"<html>" + b"<div>" * 20_000 + b"deep", "deep"),
        (pdf("Opens at eight.", "Closes at nine."), "Opens at eight.\n\nCloses at nine."),
        (word(), "Hours\nOpens at eight.\n\nMon | 8\nTue | 9\nCloses at nine."),
        (mail(False), "Subject: Caf\u00e9 hours\nFrom: Ann <ann@example.org>\n\nOpens at eight.\n"),
        (mail(True), "Subject: Caf\u00e9 hours\nFrom: Ann <ann@example.org>\n\nOpens at eight."),
        (json.dumps(NOTEBOOK).encode(), "# Hours\nOpens at eight.\n\nprint(8)"),
        (b"---\ntitle: 'Hours'\ntags: [a]\n---\nOpens at eight.\n", "# Hours\n\nOpens at eight.\n"),
        (b"---\nA line between rules.\n---\n", "---\nA line between rules.\n---\n"),
        (b'{"nbformat": 3', '{"nbformat": 3'),
        (b"Title: a list\n\n- one", "Title: a list\n\n- one"),
        ("caf\u00e9".encode("utf-16"), "caf\u00e9"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a"])
def test_a_file_is_what_its_bytes_say(data: bytes, text: str, name: str) -> None:
    assert text_of(data, name) == text


def test_a_page_without_its_beginning_is_known_by_its_name() -> None:
    page = b"<p>Opens at&nbsp;eight.</p><script>x()</script>"
    assert text_of(page, "a.HTML") == "Opens at eight."
    assert text_of(page, "a.md") == page.decode()


def bomb(size: int) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b" " * size)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"%PDF-1.4\nnothing more", "PDF that cannot be read"),
        (pdf(""), "PDF without text"),
        (pdf("a").replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"), "PDF"),
        (bomb(3_000_000), "an archive that unpacks to more than 1 MB"),
        (bomb(100), "DOCX that cannot be read"),
        (b"PK\x03\x04 and so on", "DOCX that cannot be read"),
        (b"<html><script>x()</script></html>", "empty"),
        (b"{\\rtf1 Opens at eight.}", "an RTF file"),
        (b"a\0b", "not text"),
        (b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
    ],
)
def test_what_says_nothing_is_told(data: bytes, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.retrieval.extract.MOST_UNPACKED", 1_000_000)
    with pytest.raises(InvalidInput, match=told):
        text_of(data, "a")


def test_a_pdf_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.retrieval.extract.MOST_TEXT", 20)
    with pytest.raises(InvalidInput, match="too long"):
        text_of(pdf("Opens at eight.", "Closes at nine."), "a")


@pytest.mark.parametrize(("module", "data"), [("pypdf", pdf("a")), ("docx", word()), ("lxml.etree", PAGE)])
def test_without_its_library_a_file_is_named_and_left_out(
    module: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NotAvailable):
        text_of(data, "a")
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b.txt").write_text("Rain.")
    found = read_documents(tmp_path)
    assert [each.id for each in found.documents] == ["b.txt"]
    assert "pip install" in found.refused[0]


def test_rows_in_lists_and_under_endings_in_capitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.retrieval.extract.MOST_TEXT", 50)  # of one document, not of a file of rows
    (tmp_path / "a.JSONL").write_text('{"id": "one", "text": "cafe\\u0301"}\n{"text": "half \\ud83d"}\n')
    (tmp_path / "b.json").write_text('[{"id": "three", "text": "Three."}, 4]')
    (tmp_path / "c.json").write_text('{"opens": 8}')
    found = read_documents(tmp_path)
    assert {each.id: each.text for each in found.documents} == {
        "one": "caf\u00e9",
        "a.JSONL:2": "half \ufffd",
        "three": "Three.",
        "c.json": '{"opens": 8}',
    }
    assert found.refused == ["b.json, line 2: no JSON object with a text"]


def test_a_path_that_is_not_there_asks_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.retrieval.documents.hub_dataset", lambda _: pytest.fail("the hub was asked"))
    with pytest.raises(NotAvailable, match="There is no file or folder"):
        read_documents("~/nowhere/at all")


def test_a_pdf_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("Opens at eight."))
    assert read_documents(tmp_path).documents[0].text == "Opens at eight."
    reads: list[str] = []
    read = "workbench.retrieval.documents.text_of"
    monkeypatch.setattr(read, lambda data, name: reads.append(name) or text_of(data, name))
    assert read_documents(tmp_path).documents[0].text == "Opens at eight."
    assert reads == []
    (tmp_path / "a.pdf").write_bytes(pdf("Opens at nine, on Sundays."))
    assert read_documents(tmp_path).documents[0].text == "Opens at nine, on Sundays."
    assert reads == ["a.pdf"]
