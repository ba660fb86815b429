// Code that can be selected, and a button that copies it.
function render({ model, el }) {
  const code = document.createElement("pre");
  code.className = "wb-code";
  code.tabIndex = 0;
  code.setAttribute("aria-label", "The same as code");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "wb-copy";
  const show = () => { code.textContent = model.get("code"); button.textContent = "Copy as code"; };
  const select = () => {
    const range = document.createRange();
    range.selectNodeContents(code);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  };
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(model.get("code"));
      button.textContent = "Copied";
    } catch {
      select();
      button.textContent = "Selected: press Ctrl+C";
    }
  });
  model.on("change:code", show);
  show();
  el.classList.add("wb-snippet");
  el.append(code, button);
  return () => model.off("change:code", show);
}
export default { render };
