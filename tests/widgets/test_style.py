"""The frame of a bench on pages that are not JupyterLab's."""

import re
import sys
from types import ModuleType, SimpleNamespace

import ipywidgets as ipw
import pytest

from widgets.parts.style import CSS, FOLDER, VIEW, framed


def test_the_frame_names_colabs_widget_manager_there_and_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = framed(ipw.HTML())
    assert VIEW in frame._repr_mimebundle_()
    asked = []
    colab = ModuleType("google.colab.output")
    colab.enable_custom_widget_manager = lambda: asked.append(1)
    colab._widgets = SimpleNamespace(_installed_url="https://example.org/manager.js")
    monkeypatch.setitem(sys.modules, "google.colab.output", colab)
    data, metadata = frame._repr_mimebundle_()
    assert VIEW in data
    assert asked
    assert metadata[VIEW]["colab"]["custom_widget_manager"]["url"] == "https://example.org/manager.js"


def test_every_colour_that_is_used_has_one_where_the_page_names_none() -> None:
    theme = (FOLDER / "theme.css").read_text(encoding="utf-8")
    used = set(re.findall(r"var\((--jp-[\w-]+)\)", CSS))
    given = set(re.findall(r"(--jp-[\w-]+):", theme))
    assert used - given == set()
