// What opens: a cell with all that is known of it, and two cells side by side.

function show(id, name, ...children) {
  byId(id).querySelector("h2").textContent = name;
  fill(byId(id).querySelector(".body"), ...children);
  if (!byId(id).open) byId(id).showModal();
  byId(id).scrollTop = 0;
}

function openCell(index) {
  const cell = CELLS[index],
    found = details().cells[index],
    parts = details().parts;
  const figures = COLUMNS.map((column, at) => [column, cell.figures[at]]).filter(
    ([, figure]) => figure,
  );
  const marks = [];
  const rows = underGroups(figures, 2, ([column, figure]) =>
    element(
      "tr",
      {},
      element("td", {class: "word"}, columnName(column)),
      figureCell(figure, marks),
    ),
  );
  const layers = found.layers ? element("div", {class: "plot low"}) : null;
  const curves = curvePlaces([cell]);
  show(
    "cell",
    fullName(cell),
    element(
      "p",
      {class: "dim"},
      [
        cell.calibration && `calibrated on ${cell.calibration}`,
        `seed ${cell.seed}`,
        cell.bits && `${cell.bits.toFixed(3)} bits per weight`,
        cell.serving?.bits && `${cell.serving.bits.toFixed(2)} of the whole model`,
        `key ${cell.key.slice(0, 12)}`,
      ]
        .filter(Boolean)
        .join(" · "),
    ),
    ...cell.failures.map(causeOf),
    ...cell.said.map((text) => element("p", {class: "dim"}, text)),
    element("h3", {}, "Command to repeat it"),
    element("pre", {class: "command"}, found.command),
    element(
      "p",
      {class: "dim"},
      "Records name files without their folders: say where local ones are.",
    ),
    ...(rows.length
      ? [
          element("h3", {}, "Figures"),
          element(
            "div",
            {class: "wide fold"},
            element("table", {id: "figures"}, element("tbody", {}, ...rows)),
          ),
        ]
      : []),
    marks.length
      ? element("ol", {class: "dim"}, ...marks.map((mark) => element("li", {}, DATA.said[mark])))
      : null,
    ...underHeading("Against position", curves),
    element("h3", {}, "Configuration"),
    element(
      "pre",
      {},
      yaml(
        Object.fromEntries(Object.entries(found.config).map(([name, part]) => [name, parts[part]])),
      ),
    ),
    layers ? element("h3", {}, "Layers") : null,
    layers,
    layers ? layersTable(found.layers, parts) : null,
    element("h3", {}, "Records"),
    plainTable(
      ["<stage", "<status", "<started", "seconds", "peak MB", "<machine by others", "<key"],
      found.records.map((each) => [
        each.suite,
        each.status,
        each.started,
        compact(each.seconds),
        each.peak ? compact(each.peak / 1e6) : null,
        each.busy,
        each.key.slice(0, 12),
      ]),
    ),
    ...environmentsOf(found, parts),
  );
  drawCurvePlaces(curves);
  if (layers && window.Plotly) drawLayers(layers, parts[found.layers.shared], found.layers);
  history.replaceState(null, "", `#cell=${cell.key.slice(0, 12)}`);
}

function underHeading(name, curves) {
  return curves.length ? [element("h3", {}, name), ...curves.map(({place}) => place)] : [];
}

function fullName(cell) {
  return `${cell.model} ${nameInModel(cell)}`;
}

// Lines of figures, each of which begins with its column, under the names of their tables.
function underGroups(figures, width, lineOfFigure) {
  let last = null;
  return figures.flatMap((each) => {
    const group = each[0].group,
      head =
        group === last
          ? []
          : [element("tr", {class: "head"}, element("th", {colspan: width}, groupName(group)))];
    last = group;
    return [...head, lineOfFigure(each)];
  });
}

function causeOf([suite, cause]) {
  return element(
    "div",
    {class: "cause"},
    element("p", {}, element("b", {}, suite)),
    element("p", {}, cause.startsWith(`${suite}: `) ? cause.slice(suite.length + 2) : cause),
  );
}

function layersTable(layers, parts) {
  const shared = parts[layers.shared];
  const heads = [
    "<layer",
    "<out × in",
    "<scheme",
    "bits/weight",
    "loss",
    "error, % of W",
    "damping",
    "seconds",
  ];
  if (layers.dead) heads.push("dead columns");
  if (layers.remarks) heads.push("~remarks");
  const made = plainTable(
    heads,
    shared.name.map((name, at) => [
      name,
      shared.shape[at],
      shared.scheme[at],
      compact(shared.bits[at]),
      compact(layers.loss[at]),
      compact(100 * layers.error[at]),
      compact(layers.damping[at]),
      compact(layers.seconds[at]),
      ...(layers.dead ? [String(layers.dead[at])] : []),
      ...(layers.remarks ? [parts[layers.remarks[at]]] : []),
    ]),
    "layers",
  );
  made.classList.add("tall");
  return made;
}

// Each environment once, with the stages that ran in it.
function environmentsOf(found, parts) {
  const stages = new Map();
  for (const each of found.records)
    stages.set(each.environment, [...(stages.get(each.environment) ?? []), each.suite]);
  return [...stages].flatMap(([part, names]) => [
    element("h3", {}, stages.size > 1 ? `Environment of ${names.join(", ")}` : "Environment"),
    element("pre", {}, yaml(parts[part]) || "not recorded"),
  ]);
}

// A value as indented lines, as in YAML.
function yaml(value, indent = "") {
  return Object.entries(value)
    .map(([name, each]) => {
      const key = `${indent}${Array.isArray(value) ? "-" : `${name}:`}`;
      if (each === null || typeof each !== "object")
        return `${key} ${each === null ? "null" : String(each)}`;
      if (!Object.keys(each).length) return `${key} ${Array.isArray(each) ? "[]" : "{}"}`;
      if (Array.isArray(each) && each.every((item) => item === null || typeof item !== "object"))
        return `${key} [${each.join(", ")}]`;
      return `${key}\n${yaml(each, `${indent}  `)}`;
    })
    .join("\n");
}

const HOW_TESTED =
  "Paired on the same windows or documents: difference with the 95 % interval of the paired " +
  "bootstrap (fractions in points), answers lost and gained, exact McNemar test of accuracies " +
  "and paired t otherwise, Holm's correction over the figures of this pair.";

function untested() {
  return (
    `${DATA.compared.rule} whose records keep the values of the same windows or documents. ` +
    "Any two rows: bitsweep compare A B"
  );
}

function compareCells(one, other) {
  const [a, b] = [Math.min(one, other), Math.max(one, other)],
    first = CELLS[a],
    second = CELLS[b];
  const tests = new Map((DATA.compared.pairs[`${a},${b}`] ?? []).map((each) => [each[0], each]));
  const marks = [];
  const both = COLUMNS.map((column, at) => [
    column,
    at,
    first.figures[at],
    second.figures[at],
  ]).filter(([, , x, y]) => x || y);
  const ordered = [
    ...both.filter(([, at]) => tests.has(at)),
    ...both.filter(([, at]) => !tests.has(at)),
  ];
  const tested = tests.size > 0;
  const rows = underGroups(ordered, tested ? 8 : 3, ([column, at, x, y]) =>
    element(
      "tr",
      {},
      element("td", {class: "word"}, columnName(column)),
      x ? figureCell(x, marks) : element("td", {}, "–"),
      y ? figureCell(y, marks) : element("td", {}, "–"),
      ...(tested ? testCells(tests.get(at)) : []),
    ),
  );
  const curves = curvePlaces([first, second]);
  const heads = [
    "<figure",
    "A",
    "B",
    ...(tested ? ["B − A [95 %]", "lost/gained", "p", "p, Holm", "<"] : []),
  ];
  const table = plainTable(heads, [], "compared");
  table.classList.add("fold");
  table.querySelector("tbody").append(...rows);
  show(
    "comparison",
    "Comparison",
    element(
      "p",
      {},
      element("b", {}, "A: "),
      fullName(first),
      element("br"),
      element("b", {}, "B: "),
      fullName(second),
    ),
    table,
    marks.length
      ? element("ol", {class: "dim"}, ...marks.map((mark) => element("li", {}, DATA.said[mark])))
      : null,
    element(
      "p",
      {class: "dim"},
      tested ? HOW_TESTED : `No test of this pair is in the page. It holds ${untested()}`,
    ),
    ...underHeading("Against position", curves),
    element("h3", {}, "What differs in the configuration"),
    differing(a, b),
  );
  drawCurvePlaces(curves);
}

function testCells(test) {
  if (!test) return ["", "", "", "", ""].map(() => element("td", {}, ""));
  const [, difference, flips, p, holm, significant] = test;
  return [
    element("td", {}, difference),
    element("td", {}, flips),
    element("td", {}, p),
    element("td", {}, holm),
    element("td", {class: "word"}, significant ? "significant" : "not significant"),
  ];
}

function differing(a, b) {
  const {cells, parts} = details();
  const flat = (index) =>
    new Map(
      Object.entries(cells[index].config).flatMap(([name, part]) => leaves(parts[part], name)),
    );
  const [x, y] = [flat(a), flat(b)];
  const names = [...new Set([...x.keys(), ...y.keys()])]
    .filter((name) => x.get(name) !== y.get(name))
    .sort();
  if (!names.length) return element("p", {class: "dim"}, "Nothing.");
  return plainTable(
    ["<setting", "~A", "~B"],
    names.map((name) => [name, x.get(name) ?? "–", y.get(name) ?? "–"]),
    "differing",
  );
}

function leaves(value, name) {
  if (value === null || typeof value !== "object" || Array.isArray(value))
    return [[name, JSON.stringify(value)]];
  return Object.entries(value).flatMap(([key, each]) => leaves(each, `${name}.${key}`));
}
