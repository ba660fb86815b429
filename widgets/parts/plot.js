// A Plotly figure, drawn from all that the kernel knows of it.
const LIBRARY = Symbol.for("workbench.plotly"); // loaded once a page
const CONFIG = { displaylogo: false, modeBarButtonsToRemove: ["toImage"] }; // its picture would have no background
const PAPER = "#ffffff", INK = "#1f1f1f", SHARP = 2; // of a downloaded picture, whatever the page's theme is
const FORMULA = /^[=+\-@\t\r\n]/; // how a cell begins that a spreadsheet would run

// What a text of Plotly's reads as: its tags gone, its entities resolved.
const words = (text) => /[<&]/.test(text)
  ? new DOMParser().parseFromString(text.replace(/<br\s*\/?>/g, "; "), "text/html").documentElement.textContent : text;
const cell = (value) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  const text = typeof value !== "number" && FORMULA.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
const read = (value) => typeof value === "string" ? words(value) : value;
const at = (values, ...place) => Array.isArray(values) || ArrayBuffer.isView(values)
  ? place.reduce((held, each) => held?.[each], values) : undefined;

// A row a point, or a cell of a heat map; columns that say nothing are left out.
function table({ _fullData: traces, layout }) {
  const rows = traces.flatMap((trace) => {
    const title = (axis) => read(layout[(trace[`${axis}axis`] ?? axis).replace(axis, `${axis}axis`)]?.title?.text);
    const row = (x, y, ...place) => ({
      trace: read(trace.name), "x axis": title("x"), "y axis": title("y"),
      x: read(at(trace.x, x) ?? x), y: read(at(trace.y, y) ?? y), z: at(trace.z, ...place),
      size: at(trace.marker?.size, ...place), ...error("x", trace.error_x, place), ...error("y", trace.error_y, place),
      text: read(at(trace.hovertext, ...place) ?? at(trace.text, ...place)), name: at(trace.customdata, ...place),
    });
    if (trace.z) return [...trace.z].flatMap((line, y) => [...line].map((_, x) => row(x, y, y, x)));
    const points = Math.max(trace.x?.length ?? 0, trace.y?.length ?? 0);
    return Array.from({ length: points }, (_, point) => row(point, point, point));
  });
  const columns = Object.keys(rows[0] ?? {}).filter((name) => rows.some((row) => cell(row[name]) !== ""));
  const lines = [columns, ...rows.map((row) => columns.map((name) => row[name]))];
  return lines.map((cells) => `${cells.map(cell).join(",")}\r\n`).join("");
}
function error(axis, bars, place) {
  if (!bars?.visible) return { [`${axis} below`]: undefined, [`${axis} above`]: undefined };
  const above = at(bars.array, ...place);
  return { [`${axis} below`]: bars.symmetric ? above : at(bars.arrayminus, ...place), [`${axis} above`]: above };
}

function picture(Plotly, plot, format, filename) {
  const { data, layout: own, _fullLayout: { width, height } } = plot; // as large as on the screen, and zoomed as there
  const layout = { ...own, paper_bgcolor: PAPER, plot_bgcolor: PAPER, font: { ...own.font, color: INK } };
  const scale = format === "png" ? SHARP : 1;
  return Plotly.downloadImage({ data, layout }, { format, filename, width, height, scale });
}
function save(text, filename) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  link.download = filename;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000); // a browser may start late
}
// Buttons that keep the figure as a picture or as the numbers in it.
function downloads(Plotly, plot) {
  const place = document.createElement("div"), said = document.createElement("span");
  place.className = "wb-downloads";
  said.setAttribute("role", "status");
  const title = () => words(plot.layout.title?.text ?? "").replace(/[^\p{L}\p{M}\p{N}]+/gu, "-").slice(0, 60);
  const name = () => title().replace(/^-|-$/g, "") || "figure";
  const kinds = {
    SVG: () => picture(Plotly, plot, "svg", name()),
    PNG: () => picture(Plotly, plot, "png", name()),
    CSV: () => save(table(plot), `${name()}.csv`),
  };
  for (const [kind, keep] of Object.entries(kinds)) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "wb-button", textContent: kind });
    button.title = `Download this figure as ${kind}`;
    button.setAttribute("aria-label", button.title);
    button.addEventListener("click", async () => {
      said.textContent = "";
      try { await keep(); } catch (error) { said.textContent = `No ${kind} could be made: ${error?.message ?? error}`; }
    });
    place.append(button);
  }
  place.append(said);
  return place;
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
  el.append(plot);
  let drawn, width, removed = false, busy = Promise.resolve();
  const draw = async () => {
    const wanted = text.get("value");
    if (removed || wanted === drawn) return; // an older one that waited while Plotly drew
    drawn = wanted;
    const { data, layout } = JSON.parse(wanted);
    layout.uirevision ??= layout.title?.text ?? "same"; // what was zoomed stays so until another thing is shown
    const listens = plot.on;
    await Plotly.react(plot, data, layout, CONFIG);
    if (!listens && !removed) el.append(downloads(Plotly, plot));
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
