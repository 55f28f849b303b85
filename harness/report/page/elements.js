"use strict";
// Elements made from values. Text from records goes into text nodes only, never into markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const CELLS = DATA.cells.map((cell, index) => ({...cell, index}));
const COLUMNS = DATA.columns;

let parsedDetails = null;
// Parsed when the first cell is opened, because the page does not need it before.
function details() {
  parsedDetails ??= JSON.parse(byId("details").textContent);
  return parsedDetails;
}

function byId(name) {
  return document.getElementById(name);
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false)
      made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function inOrder(values) {
  return [...new Set(values)].sort((a, b) => a.localeCompare(b, "en", {numeric: true}));
}

function fill(place, ...children) {
  place.replaceChildren(...children.filter((child) => child !== null));
}

function options(select, pairs) {
  fill(select, ...pairs.map(([value, text]) => element("option", {value}, text)));
}

// Whether cells differ in something; `of` says which cells are asked.
function several(name, of = () => true) {
  return new Set(CELLS.filter(of).map((cell) => cell[name])).size > 1;
}

const SEVERAL_MODELS = several("model");

// The method and scheme, with the model, calibration and seed where cells differ in them.
function nameOf(cell) {
  return SEVERAL_MODELS ? `${cell.model} ${nameInModel(cell)}` : nameInModel(cell);
}

function nameInModel(cell) {
  const words = [cell.method, cell.scheme];
  if (cell.calibration && cellsAlike(cell, "calibration")) words.push(cell.calibration);
  if (cellsAlike(cell, "seed")) words.push(`seed ${cell.seed}`);
  return words.join(" ");
}

// Cells of one method, kind of scheme and calibration, which is named where others differ in it.
function lineName(alike) {
  const [cell] = alike;
  const text = alike.some((each) => cellsAlike(each, "calibration")) ? cell.calibration : "";
  return [cell.method, cell.kind, text].filter(Boolean).join(" ");
}

const alikeCounts = new Map();
function cellsAlike(cell, apart) {
  const key = (each) => JSON.stringify([apart, each.model, each.method, each.scheme]);
  if (!alikeCounts.has(apart)) {
    const values = new Map();
    for (const each of CELLS)
      values.set(key(each), (values.get(key(each)) ?? new Set()).add(each[apart]));
    alikeCounts.set(apart, values);
  }
  return alikeCounts.get(apart).get(key(cell)).size > 1;
}

function columnName(column) {
  return `${column.header.replace(/\/$/, "")} ${column.detail}`.trim();
}

// Units as people read them: per cent, and bytes in MB.
function scaleOf(unit) {
  return {fraction: [100, "%"], bytes: [1e-6, "MB"]}[unit] ?? [1, unit];
}

function compact(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function plainTable(heads, rows, id = null) {
  const kind = (head) => (head.startsWith("<") ? "word" : head.startsWith("~") ? "text" : "");
  const head = element(
    "tr",
    {},
    ...heads.map((each) => element("th", {class: kind(each)}, each.replace(/^[<~]/, ""))),
  );
  const lines = rows.map((row) =>
    element(
      "tr",
      {},
      ...row.map((value, at) => element("td", {class: kind(heads[at])}, value ?? "–")),
    ),
  );
  const table = element("table", {id}, element("thead", {}, head), element("tbody", {}, ...lines));
  return element("div", {class: "wide"}, table);
}
