// Nothing to see: looks after the bench that it is part of.
const LONGEST = 30_000; // milliseconds that a click waits: a busy kernel would take it no sooner
function render({ model, el }) {
  let observer, root;
  // ipywidgets gives its sliders no name that a screen reader could say: each takes the text of its own label, and the
  // box beside it the same.
  const name = (root) => {
    for (const handle of root.querySelectorAll(".widget-slider .noUi-handle:not([aria-label])"))
      handle.setAttribute("aria-label", handle.closest(".widget-slider").querySelector(".widget-label").textContent);
    for (const box of root.querySelectorAll(".wb-number > .widget-slider + .widget-text input:not([aria-label])"))
      box.setAttribute("aria-label", box.closest(".wb-number").querySelector(".widget-label").textContent);
  };
  // While the kernel deals with one change of a control, ipywidgets holds the next one back, but no click; and ipykernel
  // may begin with a click before it ends a change that came first. So a click on a button waits until the kernel has
  // dealt with all that is on screen.
  const allKnown = async () => {
    const found = await Promise.allSettled(Object.values(model.widget_manager._models ?? {}));
    const end = Date.now() + LONGEST;
    do await new Promise((next) => setTimeout(next, 5)); // at least once: within a key press no click can be made
    while ((found.some((each) => each.value?._pending_msgs > 0) || root.querySelector("[data-pending]"))
      && Date.now() < end);
  };
  const ready = new WeakSet();
  const hold = (event) => {
    const button = event.target.closest(".jupyter-button:not(.widget-toggle-button)");
    if (!button || ready.delete(button)) return;
    event.preventDefault();
    event.stopPropagation();
    allKnown().then(() => { ready.add(button); button.click(); });
  };
  // A plain key that is pressed in the bench is the bench's: to Jupyter an arrow key on a drop-down would mean another
  // cell, "d" twice that this one is to go, and Shift and Enter that the bench is to be made anew. Lumino looks for the
  // attribute when it hears of the key, after this, and on what has the focus first of all.
  const keys = (event) => {
    const plain = !(event.ctrlKey || event.metaKey || event.altKey);
    if (root.contains(event.target)) event.target.toggleAttribute("data-lm-suppress-shortcuts", plain);
  };
  const begin = () => {
    root = el.closest(".wb-bench");
    if (!root) return;
    root.addEventListener("click", hold, true);
    window.addEventListener("keydown", keys, true);
    observer = new MutationObserver(() => name(root));
    observer.observe(root, { childList: true, subtree: true });
    name(root);
  };
  const frame = requestAnimationFrame(begin);
  return () => {
    cancelAnimationFrame(frame);
    observer?.disconnect();
    root?.removeEventListener("click", hold, true);
    window.removeEventListener("keydown", keys, true);
  };
}
export default { render };
