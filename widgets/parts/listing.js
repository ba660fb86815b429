// The list of variants: a row each, in the order that the page's reader chooses.
const FEW = 5; // more than these can be sorted and filtered
const NARROW = 800; // CSS pixels
const make = (tag, given = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), given);
  made.append(...children);
  return made;
};
const button = (text, label, click) => {
  const made = make("button", { type: "button", className: "wb-button", textContent: text, title: label });
  made.setAttribute("aria-label", label);
  made.addEventListener("click", click);
  return made;
};
const choice = (label, change) => {
  const select = make("select");
  select.setAttribute("aria-label", label);
  select.addEventListener("change", change);
  return select;
};
const fill = (select, options) => {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
  select.value = options.some(([value]) => value === before) ? before : options[0][0];
};

class Row {
  constructor(list, name) {
    this.list = list;
    this.name = name;
    this.tick = make("input", { type: "checkbox" });
    this.label = make("bdi", { textContent: name });
    this.swatch = make("span", { className: "wb-swatch" });
    this.menu = button("⋯", `Rename, save, archive or remove ${name}`, () => this.fold());
    this.menu.classList.add("wb-icon");
    this.menu.setAttribute("aria-expanded", "false");
    this.facts = make("div", { className: "wb-facts" });
    this.steps = make("code");
    this.steps.dir = "ltr";
    this.typed = make("input", { type: "text", value: name, maxLength: 2000, dir: "auto" });
    this.typed.setAttribute("aria-label", `New name, or export folder, for ${name}`);
    this.strip = make("div", { className: "wb-edit", hidden: true });
    this.el = make("li", { className: "wb-row" },
      make("label", { title: `Use ${name} in chat and comparison` }, this.tick, this.swatch, this.label),
      this.menu, this.facts, this.strip);
    this.el.dataset.name = name;
    this.tick.addEventListener("change", () => list.choose([name], this.tick.checked));
    this.tick.addEventListener("keydown", (event) => list.step(event, this));
  }
  fold() {
    this.strip.hidden = !this.strip.hidden;
    this.menu.setAttribute("aria-expanded", String(!this.strip.hidden));
    if (!this.strip.hidden) this.typed.focus();
  }
  say(action, more = {}) { this.list.say({ do: action, name: this.name, typed: this.typed.value, ...more }); }
  draw(data, depth) {
    const key = JSON.stringify([data, depth, this.list.measure]);
    if (key === this.drawn) return;
    this.drawn = key;
    this.data = data;
    this.el.style.setProperty("--wb-depth", Math.min(depth, 4));
    this.el.style.setProperty("--wb-own", data.colour);
    this.el.dataset.base = data.base;
    this.swatch.dataset.pattern = data.pattern % 4;
    if (!this.list.asked.size) this.tick.checked = data.chosen;
    const measured = data.measured[this.list.measure];
    const facts = [data.base ? "baseline" : "", measured?.text ?? "", data.facts].filter(Boolean);
    this.steps.textContent = data.recipe;
    this.facts.replaceChildren(...facts.map((text) => make("span", { textContent: text })), this.steps);
    if (!this.strip.childElementCount) this.build();
    this.away.textContent = data.archived ? "Bring back" : "Archive";
  }
  build() {
    const { name, here, base } = this.data;
    const target = choice(`What shall run ${name} elsewhere`, () => {});
    fill(target, this.list.data.targets.map((each) => [each, each]));
    this.away = button("Archive", `Put ${name} away, or bring it back`, () =>
      this.list.say({ do: "archive", names: [name], on: !this.data.archived }));
    const rename = button("Rename", `Rename ${name}`, () => this.say("rename"));
    const save = button("Save", `Save ${name} to a folder of this name under exports/`, () => this.say("save"));
    const remove = button("Remove", base ? "The baseline stays" : `Take ${name} off the list`, () => this.say("remove"));
    const deploy = button("Deploy", `Write ${name} to a folder NAME-TARGET under exports/ that runs elsewhere, and try it`,
      () => this.say("deploy", { target: target.value }));
    for (const each of [save, deploy, target]) each.disabled = !here;
    for (const each of [remove, this.away]) each.disabled = base;
    this.typed.addEventListener("keydown", (event) => event.key === "Enter" && this.say("rename"));
    this.strip.append(this.typed, rename, save, this.away, remove,
      make("span", { className: "wb-deploy" }, target, deploy));
  }
}

class List {
  constructor(model, text, el) {
    this.model = model;
    this.text = text;
    this.rows = new Map();
    this.asked = new Set(); // what the kernel has not dealt with yet
    this.count = 0;
    this.el = el;
    this.filter = make("input", { type: "search", placeholder: "Filter by name or step", dir: "auto" });
    this.filter.setAttribute("aria-label", "Filter variants by name or step");
    this.filter.addEventListener("input", () => this.arrange());
    this.group = choice("Group variants", () => this.arrange());
    this.sort = choice("Sort variants", () => this.arrange());
    fill(this.group, [["lineage", "By lineage"], ["step", "By last step"], ["none", "Not grouped"]]);
    const shown = (on) => this.choose(this.shown.filter((name) => this.data[on ? "free" : "known"].has(name)), on);
    this.tools = make("div", { className: "wb-tools" }, this.filter, this.group, this.sort,
      button("Tick all", "Tick all that are shown", () => shown(true)),
      button("Tick none", "Tick none of those that are shown", () => shown(false)),
      button("Archive rest", "Put away all that are shown and not ticked", () => this.tidy()));
    this.place = make("ul", { className: "wb-rows" });
    this.place.setAttribute("aria-label", "Variants");
    this.away = make("ul", { className: "wb-rows" });
    this.put = make("summary");
    this.archive = make("details", { className: "wb-archive" }, this.put, this.away);
    this.none = make("div", { className: "wb-help", textContent: "No variant has that in its name or steps.", hidden: true });
    this.head = make("summary");
    this.body = make("details", { className: "wb-fold", open: true },
      this.head,
      make("div", { className: "wb-help", textContent: "Tick those to talk to and to compare; the first is the baseline." }),
      this.tools, this.place, this.none, this.archive);
    el.append(this.body);
    this.show = () => { this.data = JSON.parse(this.text.get("value")); this.draw(); };
    text.on("change:value", this.show);
    this.hear = (told) => this.dealt(told);
    model.on("msg:custom", this.hear);
    this.show();
    // Where there is little room the list folds, until its reader opens it.
    this.sizes = new ResizeObserver(() => {
      const width = el.closest(".wb-bench")?.clientWidth;
      if (!width || (width < NARROW) === this.narrow) return;
      this.narrow = width < NARROW;
      this.body.open = !this.narrow;
    });
    this.sizes.observe(el);
  }
  // A click elsewhere waits until the kernel has dealt with all of it.
  say(what) {
    this.asked.add(++this.count);
    this.el.dataset.pending = "";
    this.model.send({ ...what, number: this.count });
  }
  dealt({ number }) {
    this.asked.delete(number);
    if (this.asked.size) return;
    delete this.el.dataset.pending;
    for (const row of this.rows.values()) row.tick.checked = row.data.chosen; // a tick may have been refused
    this.arrange();
  }
  choose(names, on) {
    for (const name of names) this.rows.get(name).tick.checked = on;
    if (names.length) this.say({ do: "choose", names, on });
  }
  tidy() {
    const names = this.shown.filter((name) => this.data.free.has(name) && !this.rows.get(name).tick.checked)
      .filter((name) => !this.rows.get(name).data.base);
    if (names.length) this.say({ do: "archive", names, on: true });
  }
  step(event, row) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const next = by && this.shown[this.shown.indexOf(row.name) + by];
    if (!next) return;
    event.preventDefault();
    this.rows.get(next).tick.focus();
  }
  draw() {
    const { rows, measures } = this.data;
    this.data.known = new Set(rows.map((each) => each.name));
    this.data.free = new Set(rows.filter((each) => !each.archived).map((each) => each.name));
    for (const [name, row] of this.rows) if (!this.data.known.has(name)) { row.el.remove(); this.rows.delete(name); }
    fill(this.sort, [["made", "As made"], ["newest", "Newest first"], ["name", "By name"], ["bytes", "By size"],
      ...measures.map(({ key, title }) => [key, `By ${title.toLowerCase()}`])]);
    this.tools.hidden = rows.length <= FEW;
    this.arrange();
  }
  // Which rows are shown, in which order and how far indented.
  ordered() {
    const [wanted, by, group] = this.tools.hidden ? ["", "made", "lineage"] // nobody could change them
      : [this.filter.value.trim().toLowerCase(), this.sort.value, this.group.value];
    const rows = this.data.rows.filter((each) => `${each.name} ${each.recipe}`.toLowerCase().includes(wanted));
    const value = (each) => by === "bytes" ? each.bytes : each.measured[by]?.value ?? Infinity;
    if (by === "newest") rows.reverse();
    else if (by === "name") rows.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
    else if (by !== "made") rows.sort((a, b) => value(a) - value(b));
    if (group === "step") {
      const groups = Map.groupBy ? Map.groupBy(rows, (each) => each.group) : rows.reduce((found, each) =>
        found.set(each.group, [...found.get(each.group) ?? [], each]), new Map());
      return [...groups].flatMap(([title, inside]) => [{ title }, ...inside.map((data) => ({ data, depth: 0 }))]);
    }
    if (group !== "lineage") return rows.map((data) => ({ data, depth: 0 }));
    const here = new Map(rows.map((each) => [each.name, []])), roots = [];
    const all = new Map(this.data.rows.map((each) => [each.name, each]));
    for (const each of rows) {
      let parent = each.parent;
      while (parent && (!here.has(parent) || all.get(parent).archived !== each.archived)) parent = all.get(parent)?.parent;
      (here.get(parent) ?? roots).push(each);
    }
    const walk = (each, depth) => [{ data: each, depth }, ...here.get(each.name).flatMap((child) => walk(child, depth + 1))];
    return roots.flatMap((each) => walk(each, 0));
  }
  arrange() {
    this.measure = this.sort.value;
    const entries = this.ordered(), put = { false: [], true: [] };
    for (const { title, data, depth } of entries) {
      if (title !== undefined) { put.false.push(make("li", { className: "wb-group", textContent: title })); continue; }
      if (!this.rows.has(data.name)) this.rows.set(data.name, new Row(this, data.name));
      const row = this.rows.get(data.name);
      row.draw(data, depth);
      put[data.archived].push(row.el);
    }
    for (const [place, wanted] of [[this.place, put.false], [this.away, put.true]]) {
      const now = [...place.children];
      if (now.length !== wanted.length || now.some((each, at) => each !== wanted[at])) this.replace(place, wanted);
    }
    this.shown = [...put.false, ...put.true].map((each) => each.dataset.name).filter((name) => name !== undefined);
    this.none.hidden = this.shown.length > 0;
    this.archive.hidden = !put.true.length;
    const ticked = this.data.rows.filter((each) => each.chosen).length;
    this.head.textContent = `Variants (${ticked} of ${this.data.rows.length} ticked)`;
    this.put.textContent = `Archived (${put.true.length})`;
  }
  // Moving what has the focus would lose it, with what is being typed.
  replace(place, wanted) {
    const focused = document.activeElement;
    const range = focused?.selectionStart === undefined ? null : [focused.selectionStart, focused.selectionEnd];
    place.replaceChildren(...wanted);
    if (focused && place.contains(focused) && document.activeElement !== focused) {
      focused.focus({ preventScroll: true });
      if (range && range[0] !== null) focused.setSelectionRange(...range);
    }
  }
}

async function render({ model, el }) {
  const text = await model.widget_manager.get_model(model.get("_text"));
  const list = new List(model, text, el);
  return () => {
    text.off("change:value", list.show);
    model.off("msg:custom", list.hear);
    list.sizes.disconnect();
  };
}
export default { render };
