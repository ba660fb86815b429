"""The text of a file, whatever it is: PDF, HTML, DOCX, mail, a notebook, Markdown, or plain text.

What a file is, its first bytes say; its name only helps where they leave it open. Files come from strangers: what is
unpacked is bounded, nothing in them is run or fetched, and what cannot be read is told in a few words.
"""

import contextlib
import email
import email.policy
import json
import logging
import re
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from workbench.core.errors import InvalidInput, NotAvailable, first_line
from workbench.core.optional import library

MOST_TEXT = 20_000_000  # characters of a document
MOST_UNPACKED = 200_000_000  # bytes of an archive
MOST_SECONDS = 120.0  # for the pages of one PDF
HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.{0,2000}?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S
)
XML_HEAD = re.compile(r"\s*<\?xml[^>]*\?>")
MAIL = re.compile(rb"(?:[\w-]+:[^\r\n]*\r?\n(?:[ \t][^\r\n]*\r?\n)*)+\r?\n")
MAIL_NAMES = (b"message-id:", b"received:", b"mime-version:")
FRONT = re.compile(r"---[ \t]*\n((?:[^\n]*\n){0,200}?)(?:---|\.\.\.)[ \t]*(?:\n|\Z)")
TITLE = re.compile(r"^title:[ \t]*[\"']?(.+?)[\"']?[ \t]*$", re.MULTILINE)
LINE, PARAGRAPH = "\v", "\f"  # breaks, until it is known how many of them meet
GAP = re.compile(f" ?(?:[{LINE}{PARAGRAPH}] ?)+")
BETWEEN = {
    **dict.fromkeys(("td", "th"), " "),
    **dict.fromkeys(("caption", "dd", "dt", "li", "tbody", "tfoot", "thead", "tr"), LINE),
    **dict.fromkeys(
        ("address", "article", "aside", "blockquote", "body", "details", "div", "dl", "fieldset"), PARAGRAPH
    ),
    **dict.fromkeys(
        ("figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header"), PARAGRAPH
    ),
    **dict.fromkeys(("hr", "html", "main", "ol", "p", "pre", "section", "summary", "table", "title", "ul"), PARAGRAPH),
}
UNSAID = frozenset(  # of the page, not of its text
    ("button", "canvas", "iframe", "math", "nav", "noscript", "object", "script", "select", "style", "svg", "template")
)
HARD = "\u00a0"  # for the spaces that lay out a text; those of a page itself become plain ones
WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


def text_of(data: bytes, name: str) -> str:
    """The text that a file says.

    Args:
        data: the whole file.
        name: of the file.

    Raises:
        InvalidInput: it holds no text, is damaged, or unpacks to too much.
        NotAvailable: the library that reads such files is not installed.
    """
    start, ending = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip(), name.lower().rpartition(".")[2]
    if start.startswith(b"%PDF-"):
        text = _read("PDF", _pdf, data)
    elif start.startswith(b"PK\x03\x04"):
        text = _read("DOCX", _docx, data)
    elif start.startswith(b"{\\rtf"):
        raise InvalidInput("an RTF file: save it as DOCX or as text")
    elif HTML.match(start) or (ending in ("html", "htm", "xhtml") and b"<" in data):
        text = _read("HTML", _html, data)
    elif _is_mail(data) or ending == "eml":
        text = _read("mail", _mail, data)
    else:
        text = plain_text(data)
        text = _notebook(text) if text.lstrip()[:1] == "{" and '"nbformat"' in text else _without_front(text)
    if len(text) > MOST_TEXT:
        raise InvalidInput(f"more than {MOST_TEXT // 1_000_000} million characters")
    return text


def _read(kind: str, reader: Any, data: bytes) -> str:
    try:
        text = str(reader(data))
    except (InvalidInput, NotAvailable):
        raise
    except Exception as error:  # parsers of damaged files raise whatever they stumble over
        raise InvalidInput(f"{kind} that cannot be read ({first_line(error, 80)})") from None
    if not text.strip():
        raise InvalidInput("PDF without text: scanned pages must be recognized first" if kind == "PDF" else "empty")
    return text


def plain_text(data: bytes) -> str:
    """A file that is text as it is, in UTF-8, or in UTF-16 with its mark.

    Raises:
        InvalidInput: it is not.
    """
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"not UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise InvalidInput("not text")
    return text


def _pdf(data: bytes) -> str:
    pypdf = library("pypdf", "Reading PDF")
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it tells of every oddity
    reader, pages, held = pypdf.PdfReader(BytesIO(data)), list[str](), 0
    if reader.is_encrypted and not reader.decrypt(""):
        raise InvalidInput("PDF that only a password opens")
    started = time.monotonic()
    for page in reader.pages:
        pages.append(page.extract_text())
        held += len(pages[-1])
        if held > MOST_TEXT or time.monotonic() - started > MOST_SECONDS:
            raise InvalidInput("PDF that is too long to be read: split it")
    return "\n\n".join(pages)


def _docx(data: bytes) -> str:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        if "word/document.xml" not in archive.namelist():
            raise InvalidInput("an archive, of which only DOCX is read")
        if sum(each.file_size for each in archive.infolist()) > MOST_UNPACKED:
            raise InvalidInput(f"an archive that unpacks to more than {MOST_UNPACKED // 1_000_000} MB")
    body = library("docx", "Reading DOCX", "python-docx").Document(BytesIO(data)).element.body
    lines, row = list[str](), None
    for paragraph in body.iter(f"{WORD}p"):
        text = "".join(_pieces(paragraph))
        cell = paragraph.getparent()
        inside = cell.getparent() if cell.tag == f"{WORD}tc" else None
        if inside is not None and inside is row:
            lines[-1] += f" | {text}"
        else:
            lines.append(("" if inside is None else "\n") + text if row is None else text)
        row = inside
    return "\n".join(lines)


def _pieces(paragraph: Any) -> Iterator[str]:
    for each in paragraph.iter(f"{WORD}t", f"{WORD}tab", f"{WORD}br", f"{WORD}cr"):
        yield (each.text or "") if each.tag == f"{WORD}t" else "\t" if each.tag == f"{WORD}tab" else "\n"


def _html(data: bytes | str) -> str:
    etree = library("lxml.etree", "Reading HTML")
    if isinstance(data, bytes):
        with contextlib.suppress(UnicodeDecodeError):  # else the page says in which characters it is written
            data = data.decode("utf-8-sig")
    if isinstance(data, str):
        data = data[len(head[0]) if (head := XML_HEAD.match(data)) else 0 :]
    page = _Page()
    # Events, not a tree: a page may be nested as deep as it likes.
    etree.fromstring(data, etree.HTMLParser(target=page, huge_tree=True, no_network=True))
    text = GAP.sub(_gap, re.sub(" +", " ", "".join(page.said)))
    return text.strip().replace(HARD, " ")


def _gap(found: re.Match[str]) -> str:
    """One break between two blocks, however many of them begin and end there."""
    return "\n\n" if PARAGRAPH in found[0] else "\n"


class _Page:
    """What a page says, blocks apart, while it is read."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._unsaid = self._laid_out = 0  # elements that are open

    def start(self, tag: str, attributes: Any) -> None:
        self.said.append("\n" if tag == "br" else BETWEEN.get(tag, ""))
        self._unsaid += tag in UNSAID
        self._laid_out += tag == "pre"

    def end(self, tag: str) -> None:
        self.said.append(BETWEEN.get(tag, ""))
        self._unsaid -= tag in UNSAID
        self._laid_out -= tag == "pre"

    def data(self, text: str) -> None:
        if not self._unsaid:
            self.said.append(text.replace(" ", HARD) if self._laid_out else re.sub(r"\s+", " ", text))

    def close(self) -> None:
        """Nothing is left to do."""


def _is_mail(data: bytes) -> bool:
    found = MAIL.match(data[:65_536])
    head = found[0].lower() if found else b""
    return any(name in head for name in MAIL_NAMES) and b"from:" in head


def _mail(data: bytes) -> str:
    """Subject, sender and date, and what a mail says; attachments are left out."""
    found: Any = email.message_from_bytes(data, policy=email.policy.default)
    body = found.get_body(("plain", "html"))
    text = "" if body is None else body.get_content()
    if body is not None and body.get_content_subtype() == "html":
        text = _html(text)
    head = [f"{name}: {found[name]}" for name in ("Subject", "From", "Date") if found[name]]
    return "\n".join(head) + f"\n\n{text}"


def _notebook(text: str) -> str:
    """What is written in a notebook's cells; what they printed is left out."""
    try:
        found = json.loads(text)
        sheets = found.get("worksheets") or [found]
        cells = [cell for sheet in sheets for cell in sheet["cells"]]
        sources = [cell.get("source", cell.get("input", "")) for cell in cells]
        return "\n\n".join("".join(each) for each in sources)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return text  # something else that has the word in it


def _without_front(text: str) -> str:
    """Markdown without the settings above it, but for the title."""
    text = text.replace("\r\n", "\n") if text.startswith("---") else text
    found = FRONT.match(text)
    if not found or not re.match(r"[\w-]+:", found[1]):
        return text
    title = TITLE.search(found[1])
    rest = text[found.end() :]
    return f"# {title[1]}\n\n{rest.lstrip()}" if title and title[1] not in rest[:1000] else rest
