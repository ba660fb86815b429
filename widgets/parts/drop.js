// A place to drop a file on, or to choose one: it is sent to the kernel piece by piece, each when the last has arrived.
const PIECE = 1 << 20;
function render({ model, el }) {
  const box = document.createElement("label");
  box.className = "wb-drop";
  const words = document.createElement("span");
  const input = document.createElement("input");
  input.type = "file";
  input.accept = model.get("accept");
  input.setAttribute("aria-label", "Choose a data file");
  const said = document.createElement("div");
  said.className = "wb-help";
  said.setAttribute("role", "status");
  words.textContent = "Drop a data file here, or choose one:";
  box.append(words, input);
  el.append(box, said);
  let waiting = null;
  const answer = (message, buffers) => new Promise((done) => { waiting = done; model.send(message, undefined, buffers); });
  const heard = (message) => { const done = waiting; waiting = null; done?.(message); };
  const send = async (file) => {
    input.disabled = true;
    try {
      let told = await answer({ begin: file.name, size: file.size });
      for (let at = 0; !told.error && at < file.size; at += PIECE) {
        told = await answer({ at }, [await file.slice(at, at + PIECE).arrayBuffer()]);
        said.textContent = `Sending ${file.name}: ${Math.round(100 * Math.min(1, (at + PIECE) / file.size))} %`;
      }
      if (!told.error) told = await answer({ end: true });
      said.textContent = told.error ?? told.done;
      said.classList.toggle("wb-refused", Boolean(told.error));
    } catch (error) {
      said.textContent = `The file could not be read (${error.message}): choose it again.`;
      said.classList.add("wb-refused");
    } finally {
      input.disabled = false;
      input.value = "";
    }
  };
  const first = (files) => {
    if (input.disabled) return; // another is on its way
    if (files.length > 1) said.textContent = "Drop one file at a time: put several into a folder and type its path.";
    else if (files.length) send(files[0]);
  };
  input.addEventListener("change", () => first(input.files));
  for (const name of ["dragenter", "dragover"]) box.addEventListener(name, (event) => {
    event.preventDefault();
    event.stopPropagation(); // JupyterLab would take it
    box.classList.add("wb-over");
  });
  box.addEventListener("dragleave", () => box.classList.remove("wb-over"));
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    box.classList.remove("wb-over");
    first(event.dataTransfer.files);
  });
  model.on("msg:custom", heard);
  return () => model.off("msg:custom", heard);
}
export default { render };
