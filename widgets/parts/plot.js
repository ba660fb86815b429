// A Plotly figure, drawn from all that the kernel knows of it.
const LIBRARY = Symbol.for("workbench.plotly"); // loaded once a page
const CONFIG = { displaylogo: false };

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
    layout.uirevision = layout.title?.text ?? "same"; // what was zoomed stays so until another thing is shown
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
