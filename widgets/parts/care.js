// Nothing to see: looks after the bench that it is part of.
function render({ el }) {
  let observer;
  // ipywidgets gives its sliders no name that a screen reader could say: each takes the text of its own label, and the
  // box beside it the same.
  const name = (root) => {
    for (const handle of root.querySelectorAll(".widget-slider .noUi-handle:not([aria-label])"))
      handle.setAttribute("aria-label", handle.closest(".widget-slider").querySelector(".widget-label").textContent);
    for (const box of root.querySelectorAll(".wb-number > .widget-slider + .widget-text input:not([aria-label])"))
      box.setAttribute("aria-label", box.closest(".wb-number").querySelector(".widget-label").textContent);
  };
  const begin = () => {
    const root = el.closest(".wb-bench");
    if (!root) return;
    observer = new MutationObserver(() => name(root));
    observer.observe(root, { childList: true, subtree: true });
    name(root);
  };
  const frame = requestAnimationFrame(begin);
  return () => { cancelAnimationFrame(frame); observer?.disconnect(); };
}
export default { render };
