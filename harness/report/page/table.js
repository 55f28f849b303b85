// The table of cells: columns of a group of figures, filters, sorting, and two cells to compare.

const view = {group: "", sort: null, up: true, shown: [], chosen: []};

function nameColumns() {
  const columns = [
    {head: "model", of: (cell) => cell.model, word: true, only: several("model")},
    {head: "method", of: (cell) => cell.method, word: true, opens: true},
    {head: "scheme", of: (cell) => cell.scheme, word: true},
    {
      head: "calibration",
      of: (cell) => cell.calibration,
      word: true,
      only: several("calibration", (cell) => cell.calibration),
    },
    {head: "seed", of: (cell) => cell.seed, only: several("seed")},
    {
      head: "bits/",
      detail: "weight",
      of: (cell) => cell.bits,
      text: (cell) => cell.bits?.toFixed(2),
    },
    {head: "status", of: (cell) => cell.status, word: true, only: several("status")},
  ];
  return columns.filter((column) => column.only !== false);
}

function figureColumns() {
  return COLUMNS.map((column, at) => ({column, at}))
    .filter(({column}) => column.group === view.group && column.screen)
    .map(({column, at}) => ({
      head: column.header,
      detail: column.detail,
      figure: at,
      of: (cell) => cell.figures[at]?.[1] ?? null,
    }));
}

function matches(cell) {
  const asked = {model: "by-model", method: "by-method", scheme: "by-scheme", status: "by-status"};
  for (const [name, id] of Object.entries(asked)) {
    if (byId(id).value && String(cell[name]) !== byId(id).value) return false;
  }
  const text = [
    cell.model,
    cell.method,
    cell.scheme,
    cell.calibration,
    `seed ${cell.seed}`,
    cell.status,
    cell.key,
    ...cell.failures.flat(),
  ]
    .join(" ")
    .toLowerCase();
  return byId("search")
    .value.toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}

function compareValues(a, b) {
  if (a === null || a === undefined || a === "")
    return b === null || b === undefined || b === "" ? 0 : 1;
  if (b === null || b === undefined || b === "") return -1;
  const found =
    typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
  return view.up ? found : -found;
}

function drawTable() {
  const columns = [...nameColumns(), ...figureColumns()];
  view.shown = CELLS.filter(matches);
  const by = columns.find((column) => column.head + (column.detail ?? "") === view.sort);
  if (by) view.shown = view.shown.slice().sort((a, b) => compareValues(by.of(a), by.of(b)));
  const marks = [];
  fill(
    byId("table").tHead,
    element(
      "tr",
      {},
      element("th", {title: "mark two to compare"}, "⇄"),
      ...columns.map((column) => headOf(column)),
    ),
  );
  fill(byId("table").tBodies[0], ...view.shown.map((cell) => lineOf(cell, columns, marks)));
  fill(byId("footnotes"), ...marks.map((mark) => element("li", {}, DATA.said[mark])));
  const group = DATA.groups.find((each) => each.key === view.group);
  fill(
    byId("notes"),
    ...[...(group?.notes ?? []), ...DATA.notes].map((text) => element("li", {}, text)),
  );
  byId("found").textContent =
    view.shown.length === CELLS.length
      ? `${CELLS.length} cells. A heading sorts, a row opens, two marks compare.`
      : `${view.shown.length} of ${CELLS.length} cells`;
  document.dispatchEvent(new Event("cells-shown"));
}

function headOf(column) {
  const name = column.head + (column.detail ?? "");
  const sort = () => {
    view.up = view.sort === name ? !view.up : true;
    view.sort = name;
    drawTable();
  };
  const attributes = {class: `sorts ${column.word ? "word" : ""}`, tabindex: 0, onclick: sort};
  if (view.sort === name) attributes["aria-sort"] = view.up ? "ascending" : "descending";
  const made = element(
    "th",
    attributes,
    column.head || "figure",
    column.detail ? element("small", {}, column.detail) : null,
  );
  made.addEventListener("keydown", (event) => {
    if (event.key === "Enter") sort();
  });
  return made;
}

function lineOf(cell, columns, marks) {
  const index = cell.index;
  const box = element("input", {type: "checkbox", "aria-label": `mark ${nameOf(cell)}`});
  box.checked = view.chosen.includes(index);
  box.addEventListener("change", () => choose(index));
  const line = element(
    "tr",
    {"data-cell": index, class: box.checked ? "chosen" : null},
    element("td", {}, box),
    ...columns.map((column) => valueOf(cell, column, marks)),
  );
  line.addEventListener("click", (event) => {
    if (event.target !== box) openCell(index);
  });
  return line;
}

function valueOf(cell, column, marks) {
  if (column.figure !== undefined) {
    const figure = cell.figures[column.figure];
    return figure ? figureCell(figure, marks) : element("td", {}, "–");
  }
  const value = column.text ? column.text(cell) : column.of(cell);
  const text = value === null || value === undefined || value === "" ? "–" : String(value);
  if (column.opens)
    return element("td", {class: "word"}, element("button", {class: "open", type: "button"}, text));
  return element(
    "td",
    {class: `${column.word ? "word" : ""} ${text === "failed" ? "bad" : ""}`},
    text,
  );
}

// A figure with the numbers of its footnotes, which `marks` collects in the order of their use.
function figureCell([text, , , best, said], marks) {
  const made = element(
    "td",
    {class: `${best ? "best" : ""} ${text === "failed" ? "bad" : ""}`},
    text,
  );
  const numbers = said.map((mark) => {
    if (!marks.includes(mark)) marks.push(mark);
    return marks.indexOf(mark) + 1;
  });
  if (numbers.length) {
    made.append(
      element(
        "sup",
        {title: said.map((mark) => DATA.said[mark]).join("\n")},
        ` ${numbers.sort((a, b) => a - b).join(",")}`,
      ),
    );
  }
  return made;
}

function choose(index) {
  if (view.chosen.includes(index)) view.chosen = view.chosen.filter((each) => each !== index);
  else view.chosen = [...view.chosen, index].slice(-2);
  for (const line of byId("table").tBodies[0].rows) {
    const marked = view.chosen.includes(Number(line.dataset.cell));
    line.classList.toggle("chosen", marked);
    line.querySelector("input").checked = marked;
  }
  byId("tray").hidden = !view.chosen.length;
  byId("compare").disabled = view.chosen.length < 2;
  const names = view.chosen.map((each) => nameOf(CELLS[each]));
  byId("chosen").textContent =
    names.length < 2 ? `${names[0] ?? ""}: mark another cell` : names.join(" and ");
}
