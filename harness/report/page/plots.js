// The plots, drawn by plotly: figures against bits, curves, errors of layers.

function draw(id, traces, drawn, empty) {
  const place = byId(id);
  if (!traces.length) {
    Plotly.purge(place);
    fill(place, element("div", {class: "empty"}, empty));
    place.style.height = "auto";
    return;
  }
  if (place.querySelector(".empty")) fill(place);
  // Above the plot on a phone, the legend needs height of its own.
  const entries = traces.filter((trace) => trace.showlegend !== false).length;
  place.style.height = window.innerWidth < NARROW ? `${320 + 11 * entries}px` : "";
  Plotly.react(place, traces, drawn, {responsive: true, displaylogo: false, displayModeBar: false});
  if (place.dataset.opens) return;
  place.dataset.opens = "yes";
  place.on("plotly_click", (event) => {
    const index = event.points[0].customdata;
    if (index !== undefined && index !== null) openCell(index);
  });
}

function points(cells, x, y, more) {
  return {
    type: "scatter",
    x: cells.map((cell) => valueAt(cell, x)),
    y: cells.map((cell) => valueAt(cell, y)),
    customdata: cells.map((cell) => cell.index),
    text: cells.map((cell) =>
      [plain(nameOf(cell)), plain(textAt(cell, x)), plain(textAt(cell, y))].join("<br>"),
    ),
    hovertemplate: "%{text}<extra></extra>",
    ...more,
  };
}

function grouped(cells, key) {
  const found = new Map();
  for (const cell of cells) found.set(key(cell), [...(found.get(key(cell)) ?? []), cell]);
  return [...found.values()];
}

function drawBits() {
  const y = Number(byId("bits-y").value),
    model = byId("bits-model").value;
  const cells = view.shown.filter(
    (cell) => cell.model === model && cell.bits && valueAt(cell, y) !== null,
  );
  const quantized = cells.filter((cell) => !cell.full).sort((a, b) => a.bits - b.bits);
  const named = new Set();
  const traces = grouped(quantized, (cell) =>
    JSON.stringify([cell.method, cell.kind, cell.calibration, cell.seed]),
  ).map((alike) => {
    const [cell] = alike,
      colour = colourOf(cell);
    const errors = alike.map((each) => errorAt(each, y));
    const name = plain(lineName(alike));
    const showlegend = !named.has(name); // the lines of several seeds are one in the legend
    named.add(name);
    return points(alike, BITS, y, {
      mode: "lines+markers",
      name,
      legendgroup: name,
      showlegend,
      line: {color: colour, width: 1.5},
      marker: {
        color: colour,
        symbol: symbolOf(cell),
        size: 9,
        line: {color: ofStyle("page"), width: 1},
      },
      error_y: {type: "data", array: errors, visible: errors.some(Boolean), thickness: 1, width: 3},
    });
  });
  const [full] = cells.filter((cell) => cell.full);
  if (full && quantized.length) {
    const bits = quantized.map((cell) => cell.bits),
      level = valueAt(full, y),
      index = full.index;
    const said = [plain(nameOf(full)), plain(textAt(full, y))].join("<br>");
    traces.push({
      type: "scatter",
      mode: "lines",
      name: plain(full.scheme),
      x: [Math.min(...bits), Math.max(...bits)],
      y: [level, level],
      line: {color: ofStyle("full"), dash: "dash", width: 1.5},
      customdata: [index, index],
      text: [said, said],
      hovertemplate: "%{text}<extra></extra>",
    });
  }
  const values = cells.map((cell) => valueAt(cell, y));
  draw(
    "bits-plot",
    traces,
    layout(bitsAxis(quantized.map((cell) => cell.bits)), axis(axisName(y), values)),
    "No quantized cell that is shown has this figure.",
  );
}

function drawCurves() {
  const curve = DATA.curves[Number(byId("curve").value)];
  if (!curve) return;
  const {traces, drawn} = curvePlot(curve, (cell) => view.shown.includes(cell));
  draw("curve-plot", traces, drawn, "No cell that is shown has this curve.");
}

// The lines of those cells that are chosen.
function curvePlot(curve, chosen) {
  const [factor, unit] = scaleOf(curve.unit);
  const lines = Object.entries(curve.cells).filter(([index]) => chosen(CELLS[index]));
  const alike = new Map();
  const traces = lines.map(([index, found]) => {
    const cell = CELLS[index],
      number = alike.get(cell.method) ?? 0;
    alike.set(cell.method, number + 1);
    return {
      type: "scatter",
      mode: "lines+markers",
      name: plain(nameOf(cell)),
      x: found.map((point) => point[0]),
      y: found.map((point) => factor * point[1]),
      customdata: found.map(() => Number(index)),
      line: {color: colourOf(cell), dash: cell.full ? "dash" : DASHES[number % DASHES.length]},
      marker: {symbol: symbolOf(cell), size: 6},
      error_y: {
        type: "data",
        array: found.map((point) => factor * (point[2] ?? 0)),
        visible: found.some((point) => point[2]),
        thickness: 1,
      },
      hovertemplate: `${plain(nameOf(cell))}<br>position %{x}: %{y:.4g}<extra></extra>`,
    };
  });
  const values = lines.flatMap(([, found]) => found.map((point) => factor * point[1]));
  const drawn = layout(
    axis(
      "position, tokens",
      lines.flatMap(([, found]) => found.map((point) => point[0])),
    ),
    axis(unit && !curve.name.includes(unit) ? `${curve.name}, ${unit}` : curve.name, values),
  );
  return {traces, drawn};
}

// The curves of some cells beside full precision of their model, each in a place of its own.
function curvePlaces(cells) {
  if (!window.Plotly) return [];
  const full = CELLS.filter((cell) => cell.full && cells.some((each) => each.model === cell.model));
  const chosen = new Set([...full, ...cells]);
  return DATA.curves
    .filter((curve) => cells.some((cell) => curve.cells[cell.index]))
    .map((curve) => ({curve, chosen, place: element("div", {class: "plot low"})}));
}

function drawCurvePlaces(places) {
  for (const {curve, chosen, place} of places) {
    const {traces, drawn} = curvePlot(curve, (cell) => chosen.has(cell));
    drawn.legend = {orientation: "h", y: 1.02, yanchor: "bottom", x: 0};
    Plotly.react(place, traces, drawn, {
      responsive: true,
      displaylogo: false,
      displayModeBar: false,
    });
  }
}

function drawLayers(place, shared, layers) {
  const trace = (name, values, colour, more = {}) => ({
    type: "scatter",
    mode: "lines+markers",
    name,
    x: shared.name.map((_, at) => at + 1),
    y: values,
    text: shared.name.map(plain),
    hovertemplate: "%{text}<br>%{y:.4g}<extra></extra>",
    line: {color: ofStyle(colour), width: 1},
    marker: {size: 5},
    ...more,
  });
  const known = (values) => values.some((value) => value !== null);
  const traces = [
    trace(
      "error, % of W",
      layers.error.map((value) => 100 * value),
      "c1",
    ),
  ];
  if (known(layers.loss)) traces.push(trace("loss", layers.loss, "c0", {yaxis: "y2"}));
  const whole = shared.name.length > 12 ? {tickformat: "d"} : {dtick: 1};
  const drawn = layout(
    axis("layer", [], whole),
    axis(
      "error, % of W",
      layers.error.map((value) => 100 * value),
    ),
  );
  drawn.legend = {orientation: "h", y: 1.02, yanchor: "bottom", x: 0};
  if (traces.length > 1)
    drawn.yaxis2 = {
      ...axis("loss", layers.loss),
      overlaying: "y",
      side: "right",
      showgrid: false,
      tickformat: ".3~g",
    };
  Plotly.react(place, traces, drawn, {responsive: true, displaylogo: false, displayModeBar: false});
}

function drawPlots() {
  drawPareto();
  drawBits();
  drawCurves();
}

function startPlots() {
  const drawable = COLUMNS.map((column, at) => ({column, at})).filter(({at}) =>
    CELLS.some((cell) => valueAt(cell, at) !== null),
  );
  const several = (found) =>
    found.map(({at}) => [at, `${axisName(at)} (${groupName(COLUMNS[at].group)})`]);
  const quality = drawable.filter(({column}) => column.compared || column.quality);
  const rest = drawable.filter(({column}) => !column.compared && !column.quality);
  startPareto(several(rest), several(quality), rest);
  options(byId("bits-y"), several([...quality, ...rest]));
  const quantized = CELLS.filter((cell) => !cell.full && cell.bits).map((cell) => cell.model);
  options(
    byId("bits-model"),
    inOrder(quantized).map((name) => [name, name]),
  );
  byId("bits-model").parentElement.hidden = byId("bits-model").length < 2;
  options(
    byId("curve"),
    DATA.curves.map((curve, at) => [at, curve.name]),
  );
  byId("curves").hidden = !DATA.curves.length;
  for (const id of ["pareto", "bits"]) byId(id).hidden = !drawable.length;
  drawPlots();
  for (const id of ["pareto-x", "pareto-y"]) byId(id).addEventListener("change", drawPareto);
  for (const id of ["context", "limit"]) byId(id).addEventListener("input", drawPareto);
  for (const id of ["bits-y", "bits-model"]) byId(id).addEventListener("change", drawBits);
  byId("curve").addEventListener("change", drawCurves);
  document.addEventListener("cells-shown", drawPlots);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlots);
  document.documentElement.dataset.plots = "drawn";
  fromAddress();
}
