// The page around the table: counts, best cells, failures, and what controls do.

function groupName(key) {
  return DATA.groups.find((group) => group.key === key).name;
}

function drawCounts() {
  const count = (status) => CELLS.filter((cell) => cell.status === status).length;
  const models = new Set(CELLS.map((cell) => cell.model)).size;
  const said = [
    [CELLS.length, CELLS.length === 1 ? "cell" : "cells"],
    [models, models === 1 ? "model" : "models"],
    [new Set(CELLS.map((cell) => cell.method)).size, "methods"],
    [DATA.records, "records"],
    [count("failed"), "failed"],
    [count("n/a"), "not available"],
  ];
  fill(
    byId("counts"),
    ...said
      .filter(([number]) => number)
      .map(([number, word]) =>
        element(
          "li",
          {class: word === "failed" ? "bad" : null},
          element("b", {}, String(number)),
          ` ${word}`,
        ),
      ),
  );
}

function drawBest() {
  const columns = COLUMNS.map((column, at) => ({column, at})).filter(
    ({column, at}) =>
      column.compared && column.screen && CELLS.some((cell) => cell.figures[at]?.[3]),
  );
  const widths = new Map();
  for (const cell of CELLS) {
    if (!columns.some(({at}) => cell.figures[at]?.[3])) continue;
    const key = JSON.stringify([cell.model, cell.width]);
    widths.set(key, [...(widths.get(key) ?? []), cell]);
  }
  byId("best").hidden = !widths.size;
  const models = SEVERAL_MODELS;
  const head = element(
    "tr",
    {},
    ...(models ? [element("th", {class: "word"}, "model")] : []),
    element("th", {}, "bits"),
    ...columns.map(({column}) =>
      element("th", {class: "word"}, column.header, element("small", {}, column.detail)),
    ),
  );
  const lines = [...widths].map(([key, cells]) => {
    const [model, width] = JSON.parse(key);
    return element(
      "tr",
      {},
      ...(models ? [element("td", {class: "word"}, model)] : []),
      element("td", {}, String(width)),
      ...columns.map(({at}) => element("td", {class: "word"}, ...bestOf(cells, at))),
    );
  });
  fill(byId("best-table"), element("thead", {}, head), element("tbody", {}, ...lines));
}

function bestOf(cells, at) {
  const best = cells.filter((cell) => cell.figures[at]?.[3]);
  if (!best.length) return ["–"];
  const more = best.length > 3 ? [element("br"), `and ${best.length - 2} more`] : [];
  const named = more.length ? best.slice(0, 2) : best;
  return named
    .flatMap((cell, number) => [
      number ? element("br") : null,
      element("b", {}, cell.figures[at][0]),
      " ",
      element(
        "button",
        {class: "open", type: "button", onclick: () => openCell(cell.index)},
        nameInModel(cell),
      ),
    ])
    .concat(more)
    .filter((each) => each !== null);
}

function drawFailed() {
  const failed = CELLS.filter((cell) => cell.failures.length);
  byId("failed").hidden = !failed.length;
  fill(
    byId("failed-list"),
    ...failed.map((cell) =>
      element(
        "div",
        {},
        element(
          "h3",
          {},
          element(
            "button",
            {class: "open", type: "button", onclick: () => openCell(cell.index)},
            fullName(cell),
          ),
        ),
        ...cell.failures.map(causeOf),
      ),
    ),
  );
}

function drawPlaces() {
  const found = [...document.querySelectorAll("main > section")].filter(
    (section) => !section.hidden,
  );
  fill(
    byId("places"),
    ...found.map((section) =>
      element("a", {href: `#${section.id}`}, section.querySelector("h2").textContent),
    ),
  );
}

function fromAddress() {
  const asked = location.hash.match(/^#cell=([0-9a-f]+)$/);
  const index = asked ? CELLS.findIndex((cell) => cell.key.startsWith(asked[1])) : -1;
  if (index >= 0) openCell(index);
}

function loadLibrary() {
  document.head.append(element("script", {}, byId("library").textContent));
  startPlots();
}

function start() {
  const groups = DATA.groups.filter((group) =>
    COLUMNS.some((column) => column.group === group.key && column.screen),
  );
  options(
    byId("group"),
    groups.map((group) => [group.key, group.name]),
  );
  byId("group").parentElement.hidden = groups.length < 2;
  view.group = byId("group").value;
  for (const name of ["model", "method", "scheme", "status"]) {
    const values = inOrder(CELLS.map((cell) => cell[name]));
    options(byId(`by-${name}`), [["", "all"], ...values.map((value) => [value, value])]);
    byId(`by-${name}`).parentElement.hidden = values.length < 2;
    byId(`by-${name}`).addEventListener("change", drawTable);
  }
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", drawTable);
  byId("group").addEventListener("change", () => {
    view.group = byId("group").value;
    view.sort = null;
    drawTable();
  });
  byId("compare").addEventListener("click", () => compareCells(...view.chosen));
  byId("clear").addEventListener("click", () => {
    while (view.chosen.length) choose(view.chosen[0]);
  });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
    dialog.addEventListener("close", () =>
      history.replaceState(null, "", location.pathname + location.search),
    );
  }
  fill(
    byId("made-list"),
    ...(DATA.made.length ? DATA.made : ["No record names its environment."]).map((line) =>
      element("li", {}, line),
    ),
  );
  byId("curves").hidden = !DATA.curves.length;
  drawCounts();
  drawBest();
  drawTable();
  drawFailed();
  drawPlaces();
  document.documentElement.dataset.table = "drawn";
  // After the table is painted, because the library takes longer than everything else here.
  requestAnimationFrame(() => setTimeout(loadLibrary));
}
