"""The bench as a place to live, in a real browser: own model and data, many variants, a crash, the keyboard alone."""

import csv
import os
import signal
from pathlib import Path

import pytest
from page import SECONDS, SHOTS, TABS, Page, bench_cell, errors, note, opened, playwright_api, row, run_all, show, tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
MANY = 40


def load(folders: dict[str, Path], more: str = "") -> str:
    """A cell that makes a bench on a tiny model, which compares quickly."""
    quick = "bench.compare.rounds.value, bench.compare.tokens.value, bench.compare.examples.value = 2, 2, 2"
    return bench_cell(folders["llama"], f"{quick}\n{more}", test=12)


def test_own_model_and_own_data_are_compared_without_a_line_of_code(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    """What a newcomer does, click by click: three variants on own questions, two of them of an own model."""
    with (site[0] / "my questions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerows(
            [("question", "answer"), *((f"How many seats has boat {each}?", "twelve") for each in range(40))]
        )
    page = opened(window, site[1], "newcomer", site[0], load(folders, "base.save('own/mine.gguf')"), "bench")
    clicks = 0

    def click(what: "playwright_api.Locator") -> None:
        nonlocal clicks
        clicks += 1
        what.click()

    click(page.locator(".wb-tabs").get_by_role("tab", name="Load"))
    part = page.locator(".wb-part").last
    clicks += 1  # on the file, in the dialog of the system
    part.locator("input[type=file]").set_input_files(str(site[0] / "my questions.csv"))
    part.get_by_text("24 examples to learn from, 6 to calibrate, 10 to test").wait_for()
    click(part.get_by_role("button", name="Use", exact=True))
    part.locator(".wb-done", has_text="From now on").wait_for()
    part = page.locator(".wb-part").first
    named = part.get_by_role("combobox").or_(part.locator(".widget-combobox input"))
    clicks += 1
    named.first.fill("own/mine.gguf")
    named.first.press("Enter")
    part.get_by_text("free of").wait_for()
    page.screenshot(path=SHOTS / "load.png")
    click(part.get_by_role("button", name="Load", exact=True))
    part.locator(".wb-done", has_text="Loaded").wait_for()
    click(page.locator(".wb-tabs").get_by_role("tab", name="Quantize"))
    click(page.locator(".wb-panel:visible").get_by_role("button", name="Apply", exact=True))
    row(page, "NF4").wait_for()
    click(page.locator(".wb-tabs").get_by_role("tab", name="Compare"))
    panel = page.locator(".wb-tabs > .widget-tab-contents .wb-panel:visible")
    click(panel.get_by_role("button", name="Compare", exact=True))
    panel.locator(".wb-done", has_text="Measured").wait_for()
    assert panel.locator(".wb-report tbody tr").count() == 3
    assert clicks < 10
    assert errors(page) == []
    page.close()


def test_many_variants_are_sorted_filtered_ticked_and_put_away(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    more = f"""
for number in range({MANY - 2}):
    bench.add(base.apply(prompt.System(text=f"Number {{number}}.")))
thin = bench.variants["System"].apply(prompt.System(text="אבג"))
bench.add(thin)
"""
    page = opened(window, site[1], "many", site[0], load(folders, more), "bench")
    show(page)
    rows = page.locator(".wb-row")
    assert rows.count() == MANY
    inner = row(page, "System+System")
    indent = "(row) => getComputedStyle(row).getPropertyValue('--wb-depth').trim()"
    assert [row(page, each).evaluate(indent) for each in ("System", "System+System")] == ["1", "2"]
    took = page.evaluate(
        """async () => {
          const box = document.querySelector(".wb-fold input[type=search]"), begun = performance.now();
          box.value = "Number 3"; box.dispatchEvent(new Event("input"));
          await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
          return performance.now() - begun;
        }"""
    )
    note(filter_of_40_ms=took)
    assert inner.count() == 0
    found = rows.count()
    assert 0 < found < MANY
    page.get_by_role("button", name="Tick none of those that are shown").click()
    page.wait_for_function("!document.querySelector('[data-pending]')")
    page.get_by_label("Filter variants by name or step").fill("")
    page.get_by_text(f"Variants ({MANY - found} of {MANY} ticked)").wait_for()
    page.get_by_role("button", name="Put away all that are shown and not ticked").click()
    page.locator("summary", has_text=f"Archived ({found})").wait_for()
    took = page.evaluate(
        """async () => {
          const box = [...document.querySelectorAll(".wb-row input")].find((each) => each.checked);
          const begun = performance.now();
          box.click();
          await new Promise((next) => setTimeout(next));
          while (document.querySelector("[data-pending]")) await new Promise((next) => setTimeout(next, 1));
          return performance.now() - begun;
        }"""
    )
    note(tick_of_40_ms=took)
    page.get_by_label("Sort variants").select_option("name")
    page.get_by_label("Group variants").select_option("step")
    assert page.locator(".wb-group").count() >= 2
    page.locator(".wb-bench").screenshot(path=SHOTS / "many.png")
    assert errors(page) == []
    page.close()


def test_a_kernel_killed_in_the_middle_of_a_comparison_comes_back_with_its_numbers(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    setup = load(folders, "bench.add(base.apply(quantize.Int8()))\nprint('kernel', os.getpid())")
    page = opened(window, site[1], "middle", site[0], setup, "bench")
    pid = int(page.locator(".jp-OutputArea-output", has_text="kernel").first.inner_text().split()[-1])
    panel = tab(page, "Compare")
    panel.get_by_role("button", name="Compare", exact=True).click()
    panel.locator(".wb-done", has_text="Measured").wait_for()
    before = panel.locator(".wb-report tbody").first.inner_text()
    rounds = panel.locator(".wb-number", has_text="Rounds").locator("input")
    rounds.fill("50")
    rounds.press("Enter")
    panel.get_by_role("button", name="Compare", exact=True).click()
    page.locator(".wb-busy", has_text="Compare").wait_for()
    os.kill(pid, signal.SIGKILL)
    page.locator(".wb-bench.jupyter-widgets-disconnected").wait_for()
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    run_all(page, 90)
    page.get_by_role("button", name="Restore", exact=True).click()
    page.locator(".wb-done", has_text="Restored").wait_for()
    row(page, "Int8").wait_for()
    after = tab(page, "Compare").locator(".wb-report tbody").first.inner_text()
    assert after == before
    page.close()


def test_the_list_needs_no_mouse(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    more = "for number in range(8):\n    bench.add(base.apply(prompt.System(text=f'Number {number}.')))"
    page = opened(window, site[1], "keys", site[0], load(folders, more), "bench")
    page.get_by_label("Filter variants by name or step").focus()
    page.keyboard.type("number 4")
    for _ in range(5):  # two drop-downs and three buttons
        page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.wb-row').dataset.name").startswith("System")
    page.keyboard.press("Space")
    page.wait_for_function("!document.querySelector('[data-pending]')")
    assert not page.locator(".wb-row:visible input").first.is_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+a")
    page.keyboard.type("כותרת 猫")
    page.keyboard.press("Enter")
    page.get_by_label("Filter variants by name or step").fill("")
    row(page, "כותרת 猫").wait_for()
    focused = "document.activeElement.closest('.wb-row')?.dataset.name"
    page.locator(".wb-row input").first.focus()
    first = page.evaluate(focused)
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) != first
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == first
    assert errors(page) == []
    page.close()


def press_until(page: Page, there: str, key: str = "Tab", most: int = 60) -> None:
    """Press a key until the page says yes; fails with where the focus went."""
    went = []
    while not page.evaluate(there):
        assert len(went) < most, "the focus went to:\n" + "\n".join(went)
        page.keyboard.press(key)
        went.append(page.evaluate("document.activeElement.outerHTML.slice(0, 100)"))


def opened_by_keys(page: Page, name: str) -> None:
    """Go to a tab from another one that is focused."""
    page.locator(".wb-tabs [role=tab][aria-selected=true]").focus()
    press_until(page, f"document.activeElement.textContent.trim() === {name!r}", "ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_function(SHOWN)


def pressed(page: Page, name: str) -> None:
    """Tab to a button and press it."""
    press_until(
        page, f"document.activeElement.matches('button') && document.activeElement.textContent.trim() === {name!r}"
    )
    page.keyboard.press("Enter")


def typed(page: Page, label: str, text: str) -> None:
    """Tab to a box with this label and type over what is in it."""
    press_until(page, f"document.activeElement.labels?.[0]?.textContent.trim() === {label!r}")
    page.keyboard.press("Control+a")
    page.keyboard.type(text)
    page.keyboard.press("Tab")


SHOWN = "[...document.querySelectorAll('.wb-tabs .wb-panel')].some((each) => each.checkVisibility())"


def test_keys_alone_load_apply_compare_search_and_serve(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    page = opened(window, site[1], "keysalone", site[0], load(folders), "bench")
    opened_by_keys(page, "Load")
    typed(page, "File or hub id", str(folders["gpt2"]))
    page.get_by_text("free of").wait_for()
    pressed(page, "Load")
    page.locator(".wb-done", has_text="Loaded").wait_for()
    opened_by_keys(page, "Quantize")
    press_until(page, "document.activeElement.labels?.[0]?.textContent.trim() === 'Step'")
    press_until(page, "document.activeElement.selectedOptions[0].text.trim().startsWith('Int8:')", "ArrowDown")
    pressed(page, "Apply")
    row(page, "Int8").wait_for()
    page.keyboard.type("dd")
    assert page.evaluate("window.jupyterapp.shell.currentWidget.content.model.cells.length") == 2
    opened_by_keys(page, "Compare")
    pressed(page, "Compare")
    page.locator(".wb-panel:visible .wb-done", has_text="Measured").wait_for()
    opened_by_keys(page, "Search")
    typed(page, "Budget", "5s")
    pressed(page, "Search")
    page.locator(".wb-panel:visible .wb-done", has_text="Tried").wait_for()
    opened_by_keys(page, "Serve")
    press_until(page, "document.activeElement.textContent.trim() === 'Start'")
    assert errors(page) == []
    page.close()


def test_the_tab_key_reaches_every_control_of_every_tab(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    page = opened(window, site[1], "reached", site[0], load(folders), "bench")
    for name in TABS:
        opened_by_keys(page, name)
        page.wait_for_function("!document.querySelector('[data-pending]')")
        left = page.evaluate(
            """() => {
              const panel = [...document.querySelectorAll(".wb-tabs .wb-panel")].find((each) => each.checkVisibility());
              const all = [...panel.querySelectorAll("button, input, select, textarea, [tabindex='0']")];
              const open = all.filter((each) => each.checkVisibility() && !each.disabled && each.tabIndex >= 0);
              window.left = new Set(open);
              document.addEventListener("focusin", (event) => window.left.delete(event.target));
              return window.left.size;
            }"""
        )
        assert left > 0
        for _ in range(left + 20):
            page.keyboard.press("Tab")
        said = "[...window.left].filter((each) => each.checkVisibility()).map((each) => each.outerHTML.slice(0, 120))"
        assert page.evaluate(said) == [], name
    assert errors(page) == []
    page.close()


def test_a_narrow_bench_folds_its_list(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    """At 200 % a page of 1280 pixels has 640."""
    page: Page = opened(window, site[1], "narrow", site[0], load(folders), "bench")
    fold = page.locator(".wb-fold")
    assert fold.get_attribute("open") is not None
    page.set_viewport_size({"width": 640, "height": 900})
    page.wait_for_function("!document.querySelector('.wb-fold').open", timeout=10 * SECONDS)
    fold.locator("summary").first.click()
    assert row(page, "llama").is_visible()
    page.set_viewport_size({"width": 1280, "height": 1100})
    page.wait_for_function("document.querySelector('.wb-fold').open")
    page.close()


def test_what_runs_stays_in_sight(
    site: tuple[Path, str], window: "playwright_api.BrowserContext", folders: dict[str, Path]
) -> None:
    page: Page = opened(window, site[1], "sight", site[0], load(folders), "bench")
    panel = tab(page, "Fine-tune")
    panel.locator(".jupyter-widget-Collapse-header", has_text="More settings").click()
    page.set_viewport_size({"width": 1280, "height": 700})
    show(page)
    page.mouse.move(900, 400)
    page.mouse.wheel(0, 150)
    for each in (page.locator(".wb-status"), panel.get_by_role("button", name="Apply", exact=True)):
        box = each.bounding_box()
        assert box
        assert 0 < box["y"] < 700
        assert page.evaluate(
            "([x, y, found]) => found.contains(document.elementFromPoint(x, y))",
            [
                box["x"] + 8,
                box["y"] + 8,
                each.element_handle(),
            ],
        )
    page.close()
