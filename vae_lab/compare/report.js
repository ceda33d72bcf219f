// Sorting, highlighting, colours and hints. The page is complete without it.
"use strict";
const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const data = JSON.parse(document.getElementById("data").textContent);

// Highlight: a click keeps groups, the pointer shows one more.
const kept = new Set();
function focus(extra) {
  const on = new Set([...kept, ...extra].map(String));
  document.body.classList.toggle("focus", on.size > 0);
  for (const mark of all("[data-g]")) mark.classList.toggle("on", on.has(mark.dataset.g));
}
function toggle(groups) {
  const isOn = groups.every((group) => kept.has(group));
  for (const group of groups) isOn ? kept.delete(group) : kept.add(group);
  for (const button of all(".legend button[data-members]"))
    button.setAttribute("aria-pressed", String(JSON.parse(button.dataset.members).every((group) => kept.has(group))));
  focus([]);
}
const tip = document.getElementById("tip");
document.addEventListener("pointerover", (event) => {
  const mark = event.target.closest("[data-g], [data-tip]");
  if (mark && mark.dataset.g) focus([Number(mark.dataset.g)]);
  if (mark && mark.dataset.tip) { tip.textContent = mark.dataset.tip; tip.style.display = "block"; }
});
document.addEventListener("pointerout", (event) => {
  if (event.target.closest("[data-g], [data-tip]")) { tip.style.display = "none"; focus([]); }
});
document.addEventListener("pointermove", (event) => {
  if (tip.style.display !== "block") return;
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 16 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, x)}px`;
  tip.style.top = `${below ? event.clientY + 16 : event.clientY - tip.offsetHeight - 10}px`;
});
document.addEventListener("click", (event) => {
  const mark = event.target.closest("[data-g]");
  if (mark) toggle([Number(mark.dataset.g)]);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") toggle([...kept]); });

// Colours: of groups, or of the values of a setting.
const legend = document.getElementById("legend");
function paint(mode) {
  const items = data.modes[mode];
  for (const button of all("button", legend)) button.remove();
  for (const [name, members, colour] of items) {
    for (const group of members) root.style.setProperty(`--g${group}`, colour);
    const button = document.createElement("button");
    const key = document.createElement("span");
    key.className = "key";
    key.style.background = colour;
    button.append(key, name);
    button.dataset.members = JSON.stringify(members);
    button.addEventListener("pointerenter", () => focus(members));
    button.addEventListener("pointerleave", () => focus([]));
    button.addEventListener("click", () => toggle(members));
    legend.append(button);
  }
}
const chooser = document.getElementById("mode");
if (chooser) chooser.addEventListener("change", () => { kept.clear(); focus([]); paint(chooser.value); });
paint(data.mode);

// Sorting: values that cannot be compared stay apart, empty ones stay last.
for (const head of all("table.sortable th")) {
  const button = head.querySelector("button");
  if (button) button.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const ascending = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") !== "ascending" : head.dataset.first !== "descending";
    for (const other of all("th", head.parentElement)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const cell = (row) => row.cells[head.cellIndex];
    const compare = (a, b) => {
      const [x, y] = [cell(a).dataset.value, cell(b).dataset.value];
      if (x === "" || y === "") return (x === "") - (y === "");
      const apart = Number(cell(a).dataset.apart || 0) - Number(cell(b).dataset.apart || 0);
      if (apart) return apart;
      const order = isNaN(x) || isNaN(y) ? String(x).localeCompare(y) : x - y;
      return ascending ? order : -order;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
