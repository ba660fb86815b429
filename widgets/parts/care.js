// Nothing to see: looks after the bench that it is part of.
function render({ el }) {
  let observer;
  // ipywidgets gives its sliders no name that a screen reader could say: each takes the text of its own label.
  const name = (root) => {
    for (const handle of root.querySelectorAll(".widget-slider .noUi-handle:not([aria-label])"))
      handle.setAttribute("aria-label", handle.closest(".widget-slider").querySelector(".widget-label").textContent);
  };
  // Plotly draws before its place has a width, and then listens to the window only: a change of width is passed on.
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
