// A Plotly figure, drawn from all that the kernel knows of it.
const LIBRARY = Symbol.for("workbench.plotly"); // loaded once a page
const CONFIG = { displaylogo: false };

const FILES = { SVG: "a drawing", PNG: "a picture", CSV: "its numbers" };

// The numbers of a figure, one row a point or cell; text that a spreadsheet would compute is quoted away.
function table(data, title) {
  const cell = (value) => {
    if (value === undefined || value === null) return "";
    const said = typeof value === "number" ? String(value) : String(value).replace(/<[^>]*>/g, " ");
    const safe = typeof value !== "number" && /^[\s]*[=+\-@]/.test(said) ? `'${said}` : said;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const list = (values) => { // Plotly passes numbers on as bytes
    if (!values?.bdata) return values ?? [];
    const kinds = { f8: Float64Array, f4: Float32Array, i4: Int32Array, u4: Uint32Array, i2: Int16Array,
      u2: Uint16Array, i1: Int8Array, u1: Uint8Array };
    const flat = [...new kinds[values.dtype](Uint8Array.from(atob(values.bdata), (each) => each.charCodeAt(0)).buffer)];
    const [, width] = String(values.shape ?? "").split(",").map(Number);
    return width ? flat.flatMap((_, at) => at % width ? [] : [flat.slice(at, at + width)]) : flat;
  };
  const rows = [["figure", "trace", "name", "x", "y", "z", "x_minus", "x_plus", "y_minus", "y_plus"]];
  data.forEach((trace, number) => {
    const [x, y, z, text] = [trace.x, trace.y, trace.z, trace.text].map(list);
    const side = (bars) => [list(bars?.arrayminus ?? bars?.array), list(bars?.array)];
    const errors = [...side(trace.error_x), ...side(trace.error_y)];
    const start = (at) => [title, number + 1, trace.name ?? (Array.isArray(text) ? text[at] : text)];
    if (z.length) z.forEach((row, at) => [...row].forEach((value, column) => {
      rows.push([title, number + 1, trace.name, x[column] ?? column, y[at] ?? at, value]);
    }));
    else for (let at = 0; at < Math.max(x.length, y.length); at++) {
      rows.push([...start(at), x[at], y[at], "", ...errors.map((each) => each[at])]);
    }
  });
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function save(url, name) {
  const link = document.createElement("a");
  Object.assign(link, { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

// Buttons below a figure that keep it as a file; made in the page, so that no network is needed.
function keeping(Plotly, plot, wanted) {
  const row = document.createElement("div");
  row.className = "wb-files";
  row.style.cssText = "display: flex; gap: 4px; justify-content: flex-end;";
  const keep = async (kind) => {
    const { data, layout } = JSON.parse(wanted());
    const title = (layout.title?.text ?? "").replace(/<[^>]*>/g, "");
    const name = title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "figure";
    if (kind === "CSV") {
      const url = URL.createObjectURL(new Blob(["\ufeff", table(data, title)], { type: "text/csv;charset=utf-8" }));
      save(url, `${name}.csv`);
      setTimeout(() => URL.revokeObjectURL(url), 1000);
      return;
    }
    const { width, height } = plot._fullLayout;
    const format = kind.toLowerCase();
    save(await Plotly.toImage(plot, { format, width, height, scale: kind === "PNG" ? 2 : 1 }), `${name}.${format}`);
  };
  for (const [kind, what] of Object.entries(FILES)) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: kind, title: `Save this figure as ${what}` });
    button.setAttribute("aria-label", `Save this figure as ${what}, ${kind}`);
    button.style.cssText = "font: inherit; font-size: 11px; padding: 2px 8px; cursor: pointer; color: inherit;"
      + "background: transparent; border: 1px solid currentColor; border-radius: 2px;";
    button.addEventListener("click", () => keep(kind).catch((error) => console.error(error)));
    row.append(button);
  }
  return row;
}

async function load(source) {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const others = window.Plotly; // that of a static figure in the same notebook
  await import(url);
  URL.revokeObjectURL(url);
  const ours = window.Plotly;
  if (others) window.Plotly = others;
  return ours;
}

async function render({ model, el }) {
  const manager = model.widget_manager;
  const text = await manager.get_model(model.get("_text"));
  window[LIBRARY] ??= manager.get_model(model.get("_library")).then((library) => load(library.get("value")));
  const Plotly = await window[LIBRARY];
  const plot = document.createElement("div");
  el.append(plot, keeping(Plotly, plot, () => text.get("value")));
  let drawn, width, removed = false, busy = Promise.resolve();
  const draw = async () => {
    const wanted = text.get("value");
    if (removed || wanted === drawn) return; // an older one that waited while Plotly drew
    drawn = wanted;
    const { data, layout } = JSON.parse(wanted);
    layout.uirevision ??= layout.title?.text ?? "same"; // what was zoomed stays so until another thing is shown
    const listens = plot.on;
    await Plotly.react(plot, data, layout, CONFIG);
    if (!listens && !removed) plot.on("plotly_click", ({ points: [{ curveNumber, pointNumber }] }) => {
      model.send({ cell: [curveNumber, ...[pointNumber].flat()] });
    });
  };
  const next = () => { busy = busy.then(draw).catch((error) => removed || console.error(error)); };
  // Plotly draws before its place has a width, and then listens to the window only.
  const sizes = new ResizeObserver(() => {
    const now = plot.clientWidth;
    if (now && now !== width && drawn) busy = busy.then(() => removed || Plotly.Plots.resize(plot)).catch(() => null);
    width = now;
  });
  text.on("change:value", next);
  next();
  sizes.observe(plot);
  return () => {
    removed = true;
    text.off("change:value", next);
    sizes.disconnect();
    Plotly.purge(plot);
  };
}
export default { render };
