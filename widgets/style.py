"""How the bench looks: one style sheet, scoped to it, that takes every colour from JupyterLab's theme."""

from typing import Any

import anywidget
import ipywidgets as ipw

CSS = """
.wb-bench { container-type: inline-size; width: 100%; --wb-quiet: color-mix(in srgb, var(--jp-ui-font-color1) 80%, transparent);
  --wb-line: var(--jp-border-color2);
  --wb-soft: color-mix(in srgb, var(--jp-layout-color2) 50%, var(--jp-layout-color1)); color: var(--jp-ui-font-color1); font: 13px/1.45 var(--jp-ui-font-family); }
.wb-bench .widget-html, .wb-bench .widget-html-content { line-height: 1.45; height: auto; margin: 0; min-width: 0; width: 100%;
  font-size: 13px; overflow: visible; }
.wb-bench .widget-box { overflow: visible; }
.wb-bench p { margin: 0 0 6px; } .wb-bench a { color: var(--jp-content-link-color, var(--jp-brand-color1)); text-decoration: underline; }
.wb-bench :focus-visible { outline: 2px solid var(--jp-brand-color1); outline-offset: 1px; }
.wb-bench .wb-sheet, .wb-bench .widget-html:has(> .widget-html-content:empty) { display: none; }

.wb-card { border: 1px solid var(--wb-line); border-radius: 6px; background: var(--jp-layout-color1); overflow: hidden; margin: 4px 2px; }
.wb-head { display: grid; grid-template-columns: minmax(0, 1fr) auto; column-gap: 12px; row-gap: 2px; align-items: center; padding: 10px 16px;
  border-bottom: 1px solid var(--wb-line); background: var(--wb-soft); }
.wb-head > :first-child { grid-column: 1 / -1; }
.wb-title { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 12px; }
.wb-bench .wb-title h2 { font-size: 16px; font-weight: 600; margin: 0; color: var(--jp-ui-font-color1); }
.wb-bench .wb-title p { margin: 0; color: var(--wb-quiet); }
.wb-status { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 10px; min-height: 28px; color: var(--wb-quiet); }
.wb-status b { color: var(--jp-ui-font-color1); font-weight: 600; }
.wb-bar { flex: 1 0 120px; height: 6px; border-radius: 3px; background: var(--jp-layout-color3); overflow: hidden; min-width: 80px; }
.wb-bar > div { height: 100%; background: var(--jp-brand-color1); border-radius: 3px; }
.wb-badge { display: inline-block; padding: 0 7px; border: 1px solid var(--jp-border-color1); border-radius: 9px; font-size: 11px; line-height: 16px; white-space: nowrap; }

.wb-body { display: grid; grid-template-columns: 320px minmax(0, 1fr); align-items: stretch; }
.wb-list { border-right: 1px solid var(--wb-line); padding: 12px 0; min-width: 0; }
.wb-bench h3 { font-size: 13px; font-weight: 600; margin: 0; padding: 0 16px 6px; color: var(--jp-ui-font-color1); }
.wb-list .wb-help { padding: 0 16px 6px; }
.wb-row { padding: 6px 10px 8px 12px; border-top: 1px solid var(--wb-line); display: grid; grid-template-columns: minmax(0, 1fr) 28px; align-items: start; border-left: 4px solid transparent; }
.wb-row > .widget-html { grid-column: 1 / -1; } .wb-row > .wb-edit { grid-column: 1 / -1; }
.wb-bench .wb-row .widget-checkbox { width: auto; margin: 0; height: 28px; }
.wb-bench .wb-row .widget-checkbox label { font-weight: 600; display: flex; align-items: center; gap: 8px; height: 28px; overflow: hidden; text-overflow: ellipsis; }
.wb-bench .wb-row .widget-checkbox input { margin: 0; accent-color: var(--jp-brand-color1); flex: none; }
.wb-facts { display: flex; flex-wrap: wrap; gap: 0 12px; align-items: center; font-size: 12px; color: var(--wb-quiet); padding-left: 21px; }
.wb-bench .wb-facts code { flex: 1 0 100%; overflow: hidden; text-overflow: ellipsis; display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical; overflow-wrap: anywhere;
  font: 12px/1.4 var(--jp-code-font-family); color: var(--wb-quiet); background: none; padding: 0; }
.wb-edit { padding: 8px 0 2px 21px; gap: 6px; display: flex; flex-flow: row wrap; }
.wb-bench .wb-edit .widget-text { width: 100%; margin: 0; } .wb-bench .wb-edit .widget-inline-hbox > .widget-label { width: 44px; }

.wb-bench .jupyter-button { height: 28px; line-height: 26px; margin: 0; border-radius: 4px; border: 1px solid var(--jp-border-color1); background: var(--jp-layout-color1);
  color: var(--jp-ui-font-color1); box-shadow: none; font-size: 13px; padding: 0 12px; width: auto; }
.wb-bench .jupyter-button:hover:enabled { background: var(--jp-layout-color2); box-shadow: none; }
.wb-bench .jupyter-button:disabled { opacity: .5; }
.wb-bench .jupyter-button.mod-primary { background: var(--jp-brand-color1); border-color: var(--jp-brand-color1); color: var(--jp-ui-inverse-font-color0, white); font-weight: 600; min-width: 88px; }
.wb-bench .jupyter-button.mod-primary:hover:enabled { background: var(--jp-brand-color0, var(--jp-brand-color1)); }
.wb-bench .jupyter-button.wb-icon { border-color: transparent; background: transparent; padding: 0; width: 28px; }
.wb-bench .jupyter-button.wb-icon:hover { background: var(--jp-layout-color2); }

.wb-bench .wb-main { min-width: 0; }
.wb-bench .wb-tabs.jupyter-widgets { margin: 0; overflow: visible; }
.wb-bench .wb-tabs.jupyter-widgets > .lm-TabBar { border: none; border-bottom: 1px solid var(--wb-line); padding: 0 8px; overflow: visible; min-height: 41px; margin: 0; }
.wb-bench .wb-tabs.jupyter-widgets > .lm-TabBar > .lm-TabBar-content { align-items: stretch; border: none; overflow: visible; margin: 0; }
.wb-bench .wb-tabs.jupyter-widgets > .lm-TabBar .lm-TabBar-tab { flex: 0 0 auto; min-width: 0; max-width: none; border: none; margin: 0; padding: 0 12px; line-height: 38px; min-height: 40px;
  background: none; color: var(--wb-quiet); transform: none; font: 13px/38px var(--jp-ui-font-family); border-bottom: 2px solid transparent; top: 1px; position: relative; }
.wb-bench .wb-tabs.jupyter-widgets > .lm-TabBar .lm-TabBar-tab:hover:not(.lm-mod-current) { background: var(--jp-layout-color2); color: var(--jp-ui-font-color1); }
.wb-bench .wb-tabs.jupyter-widgets > .lm-TabBar .lm-TabBar-tab.lm-mod-current { color: var(--jp-ui-font-color1); font-weight: 600; border-bottom-color: var(--jp-brand-color1); }
.wb-bench .wb-tabs.jupyter-widgets .lm-TabBar-tabLabel { line-height: 38px; }
.wb-bench .wb-tabs.jupyter-widgets > .lm-TabBar .lm-TabBar-tab::before { display: none; }
.wb-bench .wb-tabs.jupyter-widgets > .widget-tab-contents { border: none; padding: 16px 20px 20px; margin: 0; background: none; overflow: visible; }

.wb-panel { gap: 12px; } .wb-panel > * { flex: none; }
.wb-form, .wb-grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 12px 24px; align-items: start; }
.wb-bench .widget-inline-hbox { width: 100%; margin: 0; height: auto; min-height: 28px; align-items: center; }
.wb-bench .widget-inline-hbox > .widget-label { width: 112px; text-align: left; color: var(--jp-ui-font-color1); font-weight: 600; flex: none; margin-right: 8px; overflow: visible; white-space: normal; line-height: 1.25; height: auto; }
.wb-bench .widget-textarea { align-items: flex-start; } .wb-bench .widget-textarea > .widget-label { padding-top: 5px; }
.wb-bench .widget-textarea textarea { min-height: 64px; height: auto; resize: vertical; }
.wb-bench input:not([type=checkbox]), .wb-bench textarea, .wb-bench select { border: 1px solid var(--jp-border-color1); border-radius: 4px; background-color: var(--jp-layout-color0); color: var(--jp-ui-font-color1); font-size: 13px; padding: 3px 8px; box-sizing: border-box; }
.wb-bench select { appearance: none; font-family: var(--jp-ui-font-family); height: 28px; padding-right: 24px; background-repeat: no-repeat;
  background-image: linear-gradient(45deg, transparent 50%, var(--jp-ui-font-color1) 50%), linear-gradient(135deg, var(--jp-ui-font-color1) 50%, transparent 50%) !important;
  background-position: calc(100% - 14px) 12px, calc(100% - 9px) 12px !important; background-size: 5px 5px !important; }
.wb-bench input:not([type=checkbox]), .wb-bench textarea { font-family: var(--jp-ui-font-family); }
.wb-field .widget-checkbox { padding-left: 120px; width: auto; }
.wb-bench .widget-toggle-buttons { display: flex; flex-flow: row nowrap; align-items: flex-start; width: 100%; margin: 0; }
.wb-bench .widget-toggle-buttons > .widget-label { width: 112px; flex: none; text-align: left; font-weight: 600; margin-right: 8px; line-height: 28px; height: 28px; color: var(--jp-ui-font-color1); }
.wb-bench .widget-toggle-buttons > div { display: flex; flex-wrap: wrap; gap: 6px; min-width: 0; }
.wb-bench .widget-toggle-button { width: auto; min-width: 44px; margin: 0; }
.wb-bench .widget-toggle-button.mod-active { background: var(--jp-layout-color1); border-color: var(--jp-brand-color1); font-weight: 600; box-shadow: inset 0 0 0 1px var(--jp-brand-color1); }
.wb-bench .widget-checkbox label { font-weight: 600; color: var(--jp-ui-font-color1); }
.wb-bench .widget-readout { color: var(--jp-ui-font-color1); background: none; min-width: 48px; }
.wb-bench .noUi-connect { background: var(--jp-brand-color1); } .wb-bench .noUi-handle { border-color: var(--jp-brand-color1); background: var(--jp-layout-color1); }
.wb-help { font-size: 12px; color: var(--wb-quiet); }
.wb-field .wb-help { padding: 2px 0 0 120px; }
.wb-explanation { max-width: 76ch; } .wb-bench details > summary { cursor: pointer; color: var(--wb-quiet); width: fit-content; } .wb-bench details[open] > summary { margin-bottom: 4px; }
.wb-footer { align-items: center; gap: 12px; padding-top: 4px; flex-wrap: wrap; } .wb-footer > .widget-html { flex: 1 1 200px; width: auto; }
.wb-message { padding: 6px 12px; border-left: 3px solid var(--jp-border-color0); background: var(--wb-soft); border-radius: 0 4px 4px 0; overflow-wrap: anywhere; }
.wb-message.wb-error { border-color: var(--jp-error-color1); } .wb-message.wb-done { border-color: var(--jp-success-color1); }
.wb-bench .wb-message pre { margin: 4px 0 0; font: 12px/1.4 var(--jp-code-font-family); white-space: pre-wrap; max-height: 200px; overflow: auto; color: var(--jp-ui-font-color1); background: none; }
.wb-snippet { display: flex; align-items: stretch; gap: 8px; width: 100%; }
.wb-bench .wb-code { flex: 1 1 0; min-width: 0; margin: 0; padding: 6px 10px; border: 1px solid var(--wb-line); border-radius: 4px; background: var(--wb-soft); color: var(--jp-ui-font-color1);
  font: 12px/1.5 var(--jp-code-font-family); white-space: pre-wrap; overflow-wrap: anywhere; max-height: 96px; overflow: auto; user-select: text; }
.wb-bench .wb-copy { flex: none; align-self: flex-start; height: 30px; padding: 0 12px; border: 1px solid var(--jp-border-color1); border-radius: 4px; background: var(--jp-layout-color1); color: var(--jp-ui-font-color1); font: 13px var(--jp-ui-font-family); cursor: pointer; }
.wb-bench .wb-copy:hover { background: var(--jp-layout-color2); }

.wb-scroll { display: flex; flex-direction: column-reverse; max-height: 420px; overflow-y: auto !important; border: 1px solid var(--wb-line); border-radius: 4px; background: var(--jp-layout-color0); }
.wb-turn { padding: 10px 12px; } .wb-turn + .wb-turn { border-top: 1px solid var(--wb-line); }
.wb-asked { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--jp-layout-color2); border-radius: 4px; padding: 6px 10px; margin-bottom: 8px; width: fit-content; max-width: 90%; }
.wb-answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 220px), 1fr)); gap: 12px; }
.wb-answer { border-top: 3px solid; padding-top: 6px; min-width: 0; } .wb-answer b { font-weight: 600; }
.wb-answer .wb-said { white-space: pre-wrap; overflow-wrap: anywhere; margin-top: 4px; line-height: 1.5; min-height: 20px; }
.wb-answer .wb-speed { display: block; font-size: 12px; color: var(--wb-quiet); font-variant-numeric: tabular-nums; }
.wb-empty { padding: 28px 16px; text-align: center; color: var(--wb-quiet); }
.wb-bench .wb-scroll .widget-html { flex: none; }

.wb-bench .js-plotly-plot text, .wb-bench .js-plotly-plot .main-svg text { fill: var(--jp-ui-font-color1) !important; }
.wb-bench .js-plotly-plot .gridlayer path, .wb-bench .js-plotly-plot .zerolinelayer path { stroke: var(--jp-border-color2) !important; }
.wb-bench .js-plotly-plot .modebar-btn path { fill: var(--jp-ui-font-color2) !important; }
.wb-bench .js-plotly-plot .hoverlayer text { fill: #fff !important; }
.wb-bench .js-plotly-plot .errorbars path { stroke: var(--jp-ui-font-color1) !important; }
.wb-bench .js-plotly-plot .modebar-group, .wb-bench .js-plotly-plot .modebar { background: transparent !important; }

.wb-bench .wb-report th, .wb-bench .wb-report td { padding: 4px 8px; } .wb-bench .wb-report tr > :first-child { position: sticky; left: 0; background: var(--jp-layout-color1); padding-left: 0; }
.wb-wide { overflow-x: auto; } .wb-bench .wb-wide .wb-report { overflow: visible; }
.wb-bench .wb-report { color: var(--jp-ui-font-color1); } .wb-bench .wb-report small { opacity: 1; color: var(--wb-quiet); }

@container (max-width: 860px) {
  .wb-body { grid-template-columns: minmax(0, 1fr); }
  .wb-list { border-right: none; border-bottom: 1px solid var(--wb-line); }
}
"""


# ipywidgets gives its sliders no name that a screen reader could say: each takes the text of its own label.
# Plotly draws before its place has a width, and then listens to the window only: a change of width is passed on.
CARE = """
function render({ el }) {
  let observer;
  const name = (root) => {
    for (const handle of root.querySelectorAll(".widget-slider .noUi-handle:not([aria-label])"))
      handle.setAttribute("aria-label", handle.closest(".widget-slider").querySelector(".widget-label").textContent);
  };
  const widths = new Map();
  const sizes = new ResizeObserver((changes) => {
    const changed = changes.filter((each) => each.contentRect.width !== widths.get(each.target));
    for (const each of changed) widths.set(each.target, each.contentRect.width);
    if (changed.length) window.dispatchEvent(new Event("resize"));
  });
  const care = (root) => {
    name(root);
    for (const plot of root.querySelectorAll(".js-plotly-plot"))
      if (!widths.has(plot.parentElement)) { widths.set(plot.parentElement, 0); sizes.observe(plot.parentElement); }
  };
  const begin = () => {
    const root = el.closest(".wb-bench");
    if (!root) return;
    observer = new MutationObserver(() => care(root));
    observer.observe(root, { childList: true, subtree: true });
    care(root);
  };
  const frame = requestAnimationFrame(begin);
  return () => { cancelAnimationFrame(frame); observer?.disconnect(); sizes.disconnect(); };
}
export default { render };
"""


class Care(anywidget.AnyWidget):
    """Nothing to see: gives a name to every slider beside it, and its place's width to every figure."""

    _esm = CARE


def framed(widget: ipw.Widget) -> ipw.Box:
    """A widget in the bench's look, ready to be displayed alone."""
    sheet = ipw.HTML(f"<style>{CSS}</style>")
    sheet.add_class("wb-sheet")
    care = Care()
    care.add_class("wb-sheet")
    frame = ipw.VBox([sheet, care, widget])
    frame.add_class("wb-bench")
    return frame


def close_tree(widget: Any) -> None:
    """Close a widget, everything in it, and the layouts and styles that ipywidgets made for them."""
    for child in getattr(widget, "children", ()):
        close_tree(child)
    for part in ("layout", "style"):
        made = getattr(widget, part, None)
        if isinstance(made, ipw.Widget):
            made.close()
    widget.close()
