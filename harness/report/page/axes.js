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
// Axes that are no columns: bits per weight of quantized layers and of the model, serving memory.
const BITS = -1,
  WHOLE = -2,
  SERVING = -3;
const OWN_AXES = {
  [BITS]: {
    name: () => "bits per weight",
    value: (cell) => cell.bits,
    text: (value) => `${value.toFixed(2)} bits/weight`,
  },
  [WHOLE]: {
    name: () => "bits per weight, whole model",
    value: (cell) => cell.serving?.bits ?? null,
    text: (value) => `${value.toFixed(2)} bits/weight of the model`,
  },
  [SERVING]: {
    name: () => `serving memory at ${contextOf()} tokens, MB`,
    value: (cell) => servingOf(cell, contextOf()),
    text: (value) => `${compact(value)} MB to serve ${contextOf()} tokens`,
  },
};
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
  if (at < 0) return OWN_AXES[at].name();
  const [, unit] = scaleOf(COLUMNS[at].unit);
  const name = columnName(COLUMNS[at]).replace(/ [%↑↓]+( [↑↓])?$/, "");
  return name.includes(unit) || !unit ? name : `${name}, ${unit}`;
}

function valueAt(cell, at) {
  if (at < 0) return OWN_AXES[at].value(cell);
  const value = cell.figures[at]?.[1] ?? null;
  return value === null ? null : value * scaleOf(COLUMNS[at].unit)[0];
}

function errorAt(cell, at) {
  return at < 0 ? 0 : (cell.figures[at]?.[2] ?? 0) * scaleOf(COLUMNS[at].unit)[0];
}

function textAt(cell, at) {
  return at < 0
    ? OWN_AXES[at].text(valueAt(cell, at))
    : `${columnName(COLUMNS[at])}: ${cell.figures[at][0]}`;
}

// MB of weights, workspace and the cache of a sequence; null where it is unknown or too long.
function servingOf(cell, context) {
  const found = cell.serving;
  if (!found || !(context > 0) || (found.positions && context > found.positions)) return null;
  const held = found.cache.map(([size, window]) => size * Math.min(context, window ?? context));
  const cache = held.reduce((sum, each) => sum + each, found.state);
  return (found.weights + found.workspace + cache) / 1e6;
}

function contextOf() {
  return Math.floor(Number(byId("context").value));
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
