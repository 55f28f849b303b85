// What plots share: colours and symbols of cells, values and names of figures, axes, layout.

const SYMBOLS = [
  "circle",
  "square",
  "diamond",
  "triangle-up",
  "triangle-down",
  "cross",
  "x",
  "star",
];
const KINDS = [...new Set(CELLS.filter((cell) => !cell.full).map((cell) => cell.kind))].sort();
const DASHES = ["solid", "dot", "dashdot", "longdash", "longdashdot"]; // of one method's curves
const NARROW = 640; // pixels, as in the style
const BITS = -1; // the column of bits per weight
const TICKS = [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 8, 12, 16, 32];

function ofStyle(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function colourOf(cell) {
  return cell.full
    ? ofStyle("full")
    : ofStyle(`c${cell.colour < 2 ? cell.colour : 2 + ((cell.colour - 2) % 5)}`);
}

function symbolOf(cell) {
  return cell.full ? "star" : SYMBOLS[KINDS.indexOf(cell.kind) % SYMBOLS.length];
}

function axisName(at) {
  if (at === BITS) return "bits per weight";
  const [, unit] = scaleOf(COLUMNS[at].unit);
  const name = columnName(COLUMNS[at]).replace(/ [%↑↓]+( [↑↓])?$/, "");
  return name.includes(unit) || !unit ? name : `${name}, ${unit}`;
}

function valueAt(cell, at) {
  if (at === BITS) return cell.bits;
  const value = cell.figures[at]?.[1] ?? null;
  return value === null ? null : value * scaleOf(COLUMNS[at].unit)[0];
}

function errorAt(cell, at) {
  return at === BITS ? 0 : (cell.figures[at]?.[2] ?? 0) * scaleOf(COLUMNS[at].unit)[0];
}

function textAt(cell, at) {
  return at === BITS
    ? `${cell.bits.toFixed(2)} bits/weight`
    : `${columnName(COLUMNS[at])}: ${cell.figures[at][0]}`;
}

// Plotly reads some tags in labels; text from records stays text.
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function axis(title, values, more = {}) {
  const known = values.filter((value) => value !== null);
  const far =
    known.length > 1 && Math.min(...known) > 0 && Math.max(...known) > 3 * Math.min(...known);
  const colours = {
    color: ofStyle("dim"),
    gridcolor: ofStyle("line"),
    zerolinecolor: ofStyle("line"),
    linecolor: ofStyle("line"),
  };
  const log = far ? {type: "log", ...ticks(Math.min(...known), Math.max(...known))} : {};
  return {title: {text: plain(title)}, automargin: true, ...colours, ...log, ...more};
}

// Ticks of a logarithmic axis: few enough to be read, and the same size for all.
function ticks(low, high) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const steps = high < 15 * low ? [1, 1.5, 2, 3, 4, 5, 6, 8] : high < 2000 * low ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil((last - first) / 8));
  const found = [];
  for (let power = first; power <= last; power += every)
    found.push(...steps.map((step) => step * 10 ** power));
  return {
    tickvals: found,
    ticktext: found.map((value) =>
      value >= 1e-3 && value < 1e5
        ? String(Number(value.toPrecision(3)))
        : value.toExponential(0).replace("+", ""),
    ),
  };
}

function bitsAxis(values) {
  const known = values.filter((value) => value !== null);
  const wide = Math.max(...known) > 3 * Math.min(...known);
  const shown = wide ? TICKS.filter(Number.isInteger) : TICKS;
  return axis("bits per weight", known, {
    type: "log",
    tickvals: shown,
    ticktext: shown.map(String),
  });
}

function layout(xaxis, yaxis) {
  const narrow = window.innerWidth < NARROW;
  return {
    xaxis,
    yaxis,
    hovermode: "closest",
    margin: {l: 10, r: 10, t: 10, b: 10},
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: "system-ui, sans-serif", size: narrow ? 11 : 13, color: ofStyle("ink")},
    legend: narrow
      ? {orientation: "h", y: 1.02, yanchor: "bottom", x: 0, tracegroupgap: 0}
      : {tracegroupgap: 0},
    hoverlabel: {
      bgcolor: ofStyle("soft"),
      bordercolor: ofStyle("line"),
      font: {color: ofStyle("ink")},
      align: "left",
    },
  };
}
