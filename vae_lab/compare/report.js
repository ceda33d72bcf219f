// Draws the figures, and lets a reader sort the table, hide groups and choose what colours stand for.
"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const hidden = new Set();
const colours = {};

// Figures: a group is hidden, and coloured, in all of them.
function paint(figure) {
  const layout = figure.layout, menus = layout.updatemenus || [];
  Object.assign(layout, { showlegend: false, autosize: true });
  layout.font = { ...layout.template.layout.font, color: css("--soft") };
  layout.hoverlabel = { bgcolor: css("--card"), bordercolor: css("--edge"), font: { color: css("--ink") } };
  layout.title = { ...layout.title, font: { size: 14, color: css("--ink") } };
  for (const menu of menus) menu.font = { size: 11, color: css("--soft") };
  for (const trace of figure.data) {
    const { group, groups, x } = trace.meta || {};
    const own = (groups || []).map((number) => colours[number]);
    if (trace.type === "parcoords") {
      trace.line.colorscale = groups.map((n, i) => [i / (groups.length - 1), hidden.has(n) ? css("--edge") : own[i]]);
    } else if (groups) {  // a point for each
      trace.meta.x = x || trace.x;
      trace.x = trace.meta.x.map((value, i) => (hidden.has(groups[i]) ? null : value));
      if (Array.isArray(trace.marker.color)) trace.marker.color = own;
      for (const error of [trace.error_x, trace.error_y])
        if (error) error.color = own.every((colour) => colour === own[0]) ? own[0] : css("--faint");
    } else if (group) {
      if (trace.visible !== false) trace.visible = hidden.has(group) ? "legendonly" : true;
      if (trace.fillcolor) trace.fillcolor = colours[group] + "26";
      trace.line.color = colours[group];
    }
  }
}
async function draw() {
  for (const key of all("[data-key]")) key.style.background = colours[key.dataset.key];
  for (const mark of all("[data-g], tr[data-g]")) mark.classList.toggle("off", hidden.has(Number(mark.dataset.g)));
  for (const div of all("[data-figure]")) {
    const figure = data.figures[div.dataset.figure];
    paint(figure);
    const isNew = !div.data;
    const buttons = figure.data[0].type === "parcoords" ? ["toImage"] : ["toImage", "zoom2d", "pan2d", "resetScale2d"];
    await Plotly.react(div, figure.data, figure.layout,
      { responsive: true, displaylogo: false, modeBarButtons: [buttons] });
    if (isNew) div.on("plotly_restyle", (change) => { if (hidden.size && "visible" in change[0]) draw(); });
    await new Promise((done) => setTimeout(done)); // so that the page answers meanwhile
  }
  document.body.dataset.drawn = "true";
}
dark.addEventListener("change", draw);

// Groups are hidden and shown by the legend and the table; a double click leaves one alone.
const everyone = Object.values(data.modes)[0].flatMap(([, members]) => members);
function toggle(members, isAlone) {
  const off = members.every((group) => hidden.has(group));
  const rest = everyone.filter((group) => !members.includes(group));
  if (isAlone) {
    const wasAlone = !off && rest.every((group) => hidden.has(group));
    for (const group of everyone) hidden.delete(group);
    if (!wasAlone) for (const group of rest) hidden.add(group);
  } else {
    for (const group of members) off ? hidden.delete(group) : hidden.add(group);
  }
  press();
}
function press() {
  for (const button of all("#legend button"))
    button.setAttribute("aria-pressed", String(!JSON.parse(button.dataset.members).every((group) => hidden.has(group))));
  draw();
}
function clicks(mark, members) {
  let waiting = null;
  mark.addEventListener("click", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => toggle(members, false), 220);
  });
  mark.addEventListener("dblclick", () => { clearTimeout(waiting); toggle(members, true); });
}
for (const row of all("tr[data-g]")) clicks(row, [Number(row.dataset.g)]);

// Colours: of groups, or of the values of a setting.
const legend = document.getElementById("legend");
function choose(mode) {
  for (const button of all("button", legend)) button.remove();
  for (const [name, members, colour] of data.modes[mode]) {
    for (const group of members) colours[group] = colour;
    const button = document.createElement("button"), key = document.createElement("span");
    key.className = "key";
    key.style.background = colour;
    button.append(key, name);
    button.dataset.members = JSON.stringify(members);
    button.setAttribute("aria-pressed", String(!members.every((group) => hidden.has(group))));
    clicks(button, members);
    legend.append(button);
  }
  draw();
}
const chooser = document.getElementById("mode");
if (chooser) chooser.addEventListener("change", () => choose(chooser.value));
choose(chooser ? chooser.value : Object.keys(data.modes)[0]);

// The filter leaves the rows that have all its words, and the groups that have such a row, in tables and figures.
const filter = document.getElementById("filter"), rows = all("#table tbody tr, #runs tbody tr");
const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
let typing = null;
filter.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (row) => wanted.every((word) => words.get(row).includes(word));
    const found = new Set(rows.filter(has).map((row) => Number(row.dataset.g)));
    for (const row of rows) row.hidden = !(row.closest("#table") ? found.has(Number(row.dataset.g)) : has(row));
    for (const group of everyone) found.has(group) ? hidden.delete(group) : hidden.add(group);
    press();
  }, 250);
});

// Sorting: values that cannot be compared stay apart, empty ones stay last.
for (const head of all("table.sortable th")) {
  const button = head.querySelector("button");
  if (button) button.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const order = head.getAttribute("aria-sort");
    const ascending = order ? order !== "ascending" : head.dataset.first !== "descending";
    for (const other of all("th", head.parentElement)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const cell = (row) => row.cells[head.cellIndex].dataset;
    const compare = (a, b) => {
      const [x, y] = [cell(a), cell(b)];
      if (x.value === "" || y.value === "") return (x.value === "") - (y.value === "");
      if (x.apart !== y.apart) return x.apart - y.apart;
      const sign = isNaN(x.value) || isNaN(y.value) ? x.value.localeCompare(y.value) : x.value - y.value;
      return ascending ? sign : -sign;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
