"""The README's pictures, from the real bench with the model that comes with it: a screenshot, and twenty seconds."""

import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from lab import lab, workspace
from page import Page, browsing, choose, idle, opened, row, show, tab

OUT = Path(__file__).parents[1] / "notebooks" / "pictures"
SIZE = {"width": 1120, "height": 700}
BENCH = """
import workbench as wb
from widgets import Bench
base = wb.load(device="cpu", dtype="float32")
bench = Bench(base, wb.read_text("data/prose", window=128, calibration=4, test=8))
"""
SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Film:
    """Frames with their seconds; each is the window as it is."""

    def __init__(self, page: Page) -> None:
        self.page, self.frames, self.seconds = page, [], []

    def shoot(self, seconds: float, top: bool = True) -> None:
        """One more frame; with `top`, of the bench from its head on."""
        if top:
            show(self.page)
        self.frames.append(self.page.screenshot(animations="disabled"))
        self.seconds.append(seconds)


def chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the content of each part of a PNG file."""
    at = len(SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += length + 12


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def animated(frames: list[bytes], seconds: list[float]) -> bytes:
    """PNG files of one size as one animated PNG that begins again at its end (https://www.w3.org/TR/png-3/#5APNG)."""
    (header,) = [content for kind, content in chunks(frames[0]) if kind == b"IHDR"]
    width, height = struct.unpack(">II", header[:8])
    parts, number = [SIGNATURE, chunk(b"IHDR", header), chunk(b"acTL", struct.pack(">II", len(frames), 0))], 0
    for first, (frame, wait) in enumerate(zip(frames, seconds, strict=True)):
        control = struct.pack(">IIIIIHHBB", number, width, height, 0, 0, round(wait * 1000), 1000, 0, 0)
        parts.append(chunk(b"fcTL", control))
        number += 1
        data = b"".join(content for kind, content in chunks(frame) if kind == b"IDAT")
        packed = zlib.compress(zlib.decompress(data), 9)
        if first == 0:
            parts.append(chunk(b"IDAT", packed))
        else:
            parts.append(chunk(b"fdAT", struct.pack(">I", number) + packed))
            number += 1
    return b"".join([*parts, chunk(b"IEND", b"")])


def made(film: Film, method: str) -> None:
    """Make a variant with the panel of quantization."""
    page = film.page
    panel = tab(page, "Quantize")
    choose(panel, method)
    panel.locator(".wb-code", has_text=f"quantize.{method}(").wait_for()
    idle(page)
    film.shoot(1.5)
    panel.get_by_role("button", name="Apply").click()
    row(page, method).wait_for()
    idle(page)
    film.shoot(1.5)


def talked(film: Film) -> None:
    """Ask all variants one question, and film the answers as they come."""
    page = film.page
    panel = tab(page, "Chat")
    panel.get_by_label("Most tokens", exact=True).last.fill("48")
    panel.get_by_label("Most tokens", exact=True).last.press("Enter")
    panel.get_by_label("Prompt", exact=True).fill("What is a lobster?")
    film.shoot(1)
    panel.get_by_role("button", name="Send").click()
    page.wait_for_function("document.querySelectorAll('.wb-said').length > 1")
    for _ in range(6):
        page.wait_for_timeout(800)
        film.shoot(0.8)
    idle(page, 300)
    film.shoot(2)


def compared(film: Film) -> None:
    """Compare them, and show the figure."""
    page = film.page
    panel = tab(page, "Compare")
    film.shoot(1)
    panel.get_by_role("button", name="Compare", exact=True).click()
    panel.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for(timeout=300_000)
    film.shoot(1)
    panel.locator(".wb-done", has_text="Measured").wait_for(timeout=600_000)
    idle(page, 300)
    film.shoot(2)
    plot = panel.locator(".js-plotly-plot").first
    plot.evaluate("(plot) => plot.scrollIntoView({ block: 'end' })")
    film.shoot(3, top=False)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made_for_it, browsing() as window:
        folder = workspace(Path(made_for_it))
        with lab(folder) as address:
            page = opened(window, address, "bench", folder, BENCH, "bench")
            page.set_viewport_size(SIZE)
            film = Film(page)
            for method in ("Int8", "NF4"):
                made(film, method)
            talked(film)
            compared(film)
            page.set_viewport_size({"width": 1280, "height": 2000})
            tab(page, "Compare").locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
            page.wait_for_timeout(1000)
            page.locator(".wb-bench").screenshot(path=OUT / "bench.png")
    (OUT / "bench-animated.png").write_bytes(animated(film.frames, film.seconds))
    print(*(f"{each.name}: {each.stat().st_size / 1e6:.2f} MB" for each in OUT.iterdir()), sep="\n")
    print(f"{sum(film.seconds):.0f} seconds, {len(film.frames)} frames")


if __name__ == "__main__":
    main()
