// The Pareto front of a cost and a quality: a plot, and a table of it for keyboards and readers.

// Cells that no other cell beats: none is as good in both and better in one.
function front(cells, x, y) {
  const cost = costsOf(x, y);
  const ordered = cells.slice().sort((a, b) => cost(a)[0] - cost(b)[0] || cost(a)[1] - cost(b)[1]);
  let least = Infinity;
  return ordered.filter((cell) => {
    const better = cost(cell)[1] < least;
    least = Math.min(least, cost(cell)[1]);
    return better;
  });
}

// Both values of a cell, so that lower is better.
function costsOf(x, y) {
  const sign = (at) => (at >= 0 && COLUMNS[at].higher ? -1 : 1);
  return (cell) => [sign(x) * valueAt(cell, x), sign(y) * valueAt(cell, y)];
}

// The cell of the front that dominates a cell, the best in quality of several; undefined: none.
function dominatorOf(cell, best, cost) {
  const [x, y] = cost(cell);
  return best.findLast((each) => {
    const [a, b] = cost(each);
    return a <= x && b <= y && (a < x || b < y);
  });
}

// Whether a cell needs more memory than is allowed, or is not known to need less.
function tooBig(cell) {
  const limit = Number(byId("limit").value);
  if (!(limit > 0)) return false;
  const needed = servingOf(cell, contextOf());
  return needed === null || needed > limit;
}

function startPareto(costs, qualities, rest) {
  const known = CELLS.filter((cell) => cell.serving);
  const own = known.length ? [SERVING, WHOLE, BITS] : [BITS];
  const named = [
    [SERVING, "serving memory at the context"],
    [WHOLE, "bits per weight, whole model"],
    [BITS, "bits per weight"],
  ];
  options(byId("pareto-x"), [
    ...named.filter(([at]) => own.includes(at)),
    ...costs,
    ...qualities,
  ]);
  options(byId("pareto-y"), [...qualities, ...costs]);
  const bytes = rest.find(({column}) => column.unit === "bytes" && column.screen);
  byId("pareto-x").value = known.length ? SERVING : bytes ? bytes.at : BITS;
  if (known.length) byId("context").value = Math.min(...known.map((cell) => cell.context));
  for (const id of ["context", "limit"]) byId(id).parentElement.hidden = !known.length;
  const said = [...new Set(known.map((cell) => cell.serving.said).filter(Boolean))];
  fill(byId("serving-said"), ...said.map((text) => `Serving memory, ${text}. `));
}

function drawPareto() {
  const x = Number(byId("pareto-x").value),
    y = Number(byId("pareto-y").value);
  const cells = view.shown.filter((cell) => valueAt(cell, x) !== null && valueAt(cell, y) !== null);
  const fitting = cells.filter((cell) => !tooBig(cell));
  const best = front(fitting, x, y),
    cost = costsOf(x, y);
  const beaten = new Map(cells.map((cell) => [cell.index, dominatorOf(cell, best, cost)]));
  const open = (cell) => beaten.get(cell.index) || tooBig(cell);
  const traces = grouped(cells, (cell) =>
    JSON.stringify([cell.full, cell.method, cell.kind, cell.calibration]),
  )
    .map((alike) => {
      const name = plain(lineName(alike));
      const shared = {mode: "markers", name, legendgroup: name};
      const marker = {color: colourOf(alike[0]), size: 11, line: {width: 1.5}};
      const found = points(alike, x, y, {
        ...shared,
        showlegend: false,
        text: alike.map((cell) => hoverOf(cell, x, y, beaten.get(cell.index))),
        marker: {
          ...marker,
          symbol: alike.map((cell) => symbolOf(cell) + (open(cell) ? "-open" : "")),
          opacity: alike.map((cell) => (tooBig(cell) ? 0.35 : 1)),
        },
      });
      // Its line in the legend is filled, also where its first point is not.
      const legend = {...shared, type: "scatter", x: [null], y: [null], hoverinfo: "skip"};
      return [found, {...legend, marker: {...marker, symbol: symbolOf(alike[0])}}];
    })
    .flat();
  if (best.length > 1) {
    traces.unshift({
      type: "scatter",
      mode: "lines",
      name: "Pareto front",
      hoverinfo: "skip",
      x: best.map((cell) => valueAt(cell, x)),
      y: best.map((cell) => valueAt(cell, y)),
      line: {color: ofStyle("dim"), width: 1.5, dash: "dot"},
    });
  }
  const values = (at) => cells.map((cell) => valueAt(cell, at));
  const limit = Number(byId("limit").value);
  const limits = x === SERVING && limit > 0 ? [limit] : [];
  const across = x === BITS ? bitsAxis(values(x)) : axis(axisName(x), [...values(x), ...limits]);
  const drawn = layout(across, axis(axisName(y), values(y)));
  drawn.shapes = limits.map((at) => ({
    type: "line",
    x0: at,
    x1: at,
    yref: "paper",
    y0: 0,
    y1: 1,
    line: {color: ofStyle("bad"), width: 1.5, dash: "dash"},
  }));
  draw("pareto-plot", traces, drawn, "No cell that is shown has both figures.");
  listFront(cells, best, beaten, x, y);
}

function hoverOf(cell, x, y, by) {
  const said = [nameOf(cell), textAt(cell, x), textAt(cell, y)];
  if (by) said.push(`dominated by ${nameOf(by)}`);
  if (tooBig(cell)) said.push("does not fit the memory limit");
  return said.map(plain).join("<br>");
}

// The front first, by cost, then what it dominates, and what does not fit.
function listFront(cells, best, beaten, x, y) {
  const big = cells.filter(tooBig);
  const beatenOnes = cells.filter((cell) => !tooBig(cell) && beaten.get(cell.index));
  const equal = cells.filter(
    (cell) => !tooBig(cell) && !beaten.get(cell.index) && !best.includes(cell),
  );
  const ordered = [...best, ...equal].sort((a, b) => costsOf(x, y)(a)[0] - costsOf(x, y)(b)[0]);
  const said = [`On the front: ${ordered.length} of ${cells.length} cells`];
  if (beatenOnes.length) said.push(`dominated: ${beatenOnes.length}`);
  if (big.length) said.push(`not known to fit the memory limit: ${big.length}`);
  byId("front-said").textContent = cells.length ? `${said.join("; ")}.` : "";
  const line = (cell, verdict, best) =>
    element(
      "tr",
      {},
      element(
        "td",
        {class: "word"},
        element(
          "button",
          {class: "open", type: "button", onclick: () => openCell(cell.index)},
          nameOf(cell),
        ),
      ),
      element("td", {class: best ? "best" : ""}, compact(valueAt(cell, x))),
      element("td", {class: best ? "best" : ""}, compact(valueAt(cell, y))),
      element("td", {class: "word"}, verdict),
    );
  const rows = [
    ...ordered.map((cell) => line(cell, "front", true)),
    ...beatenOnes.map((cell) => line(cell, `dominated by ${nameOf(beaten.get(cell.index))}`)),
    ...big.map((cell) => line(cell, "does not fit")),
  ];
  const heads = ["cell", axisName(x), axisName(y), "verdict"].map((text, at) =>
    element("th", {class: at % 3 ? "" : "word"}, text),
  );
  fill(
    byId("front-table"),
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...rows),
  );
}
