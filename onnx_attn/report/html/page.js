"use strict";
const root = document.documentElement;
const groups = [...document.querySelectorAll(".group")];
const texts = new Map(groups.map(group => [group, group.textContent.toLowerCase()]));
const search = document.getElementById("search");
let wanted = "";

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const group of groups) {
    const tagged = !wanted || group.dataset.tags.split("|").includes(wanted);
    group.hidden = !(tagged && words.every(word => texts.get(group).includes(word)));
    shown += !group.hidden;
  }
  document.getElementById("shown").textContent = shown === groups.length ? "" : `${shown} of ${groups.length} kinds`;
}

function colour(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}

function channels(hex) {
  return [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
}

function mix(from, to, share) {
  return from.map((value, at) => Math.round(value + (to[at] - value) * share));
}

function paint(canvas) {
  const { kind, rows, columns, cells } = canvas.dataset;
  const bytes = Uint8Array.from(atob(cells), letter => letter.charCodeAt(0));
  const scale = Math.max(1, Math.ceil(150 / Math.max(rows, columns)));
  canvas.width = columns * scale;
  canvas.height = rows * scale;
  canvas.style.width = columns >= rows ? "150px" : `${Math.max(30, 150 * columns / rows)}px`;
  const [cold, hot, blocked] = ["--cold", "--hot", "--blocked"].map(name => channels(full(colour(name))));
  const window = [mix(cold, hot, 0), mix(cold, hot, .16), mix(cold, hot, .16), mix(cold, hot, .32), hot, blocked];
  const pen = canvas.getContext("2d");
  bytes.forEach((value, at) => {
    const shade = kind === "window" ? window[value] : value === 255 ? blocked : mix(cold, hot, value / 254);
    pen.fillStyle = `rgb(${shade.join(",")})`;
    pen.fillRect((at % columns) * scale, Math.floor(at / columns) * scale, scale, scale);
  });
}

function full(hex) {
  return hex.length === 4 ? "#" + [...hex.slice(1)].map(digit => digit + digit).join("") : hex;
}

function paintWithin(element) {
  element.querySelectorAll("canvas").forEach(paint);
}

for (const button of document.querySelectorAll("[data-tag]")) {
  button.addEventListener("click", () => {
    document.querySelectorAll("[data-tag]").forEach(other => other.classList.toggle("on", other === button));
    wanted = button.dataset.tag;
    filter();
  });
}
search.addEventListener("input", filter);
for (const group of groups) {
  group.addEventListener("toggle", () => group.open && paintWithin(group));
}
document.getElementById("expand").addEventListener("click", event => {
  const open = groups.some(group => !group.hidden && !group.open);
  groups.filter(group => !group.hidden).forEach(group => { group.open = open; });
  event.target.textContent = open ? "fold all" : "expand all";
});
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  groups.filter(group => group.open).forEach(paintWithin);
});
function follow() {
  const group = location.hash && document.getElementById(location.hash.slice(1));
  if (group && group.classList.contains("group")) {
    group.hidden = false;
    group.open = true;
    group.scrollIntoView();
  }
}
addEventListener("hashchange", follow);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => groups.filter(group => group.open).forEach(paintWithin));
if (groups.length === 1) groups[0].open = true;
follow();
