// Code that can be selected, and a button that copies it.
async function render({ model, el }) {
  const text = await model.widget_manager.get_model(model.get("_text"));
  const code = document.createElement("pre");
  code.className = "wb-code";
  code.tabIndex = 0;
  code.setAttribute("role", "group");
  code.setAttribute("aria-label", "The same as code");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "wb-button wb-copy";
  const show = () => {
    code.textContent = text.get("value");
    button.textContent = "Copy as code";
    el.hidden = !code.textContent;
  };
  const select = () => {
    const range = document.createRange();
    range.selectNodeContents(code);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  };
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.get("value"));
      button.textContent = "Copied";
    } catch {
      select();
      button.textContent = "Selected: press Ctrl+C";
    }
  });
  text.on("change:value", show);
  show();
  el.classList.add("wb-snippet");
  el.append(code, button);
  return () => text.off("change:value", show);
}
export default { render };
