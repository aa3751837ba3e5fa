"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
// Okabe and Ito's colours, dark enough to be read on white; shapes tell heads apart without colour.
const COLOURS = ["#0072b2", "#d55e00", "#007a5a", "#aa4499", "#8a6d00", "#332288", "#444444", "#b3003c"];
const SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const CONFIG = { responsive: true, displayModeBar: false };
const heads = [...new Set(data.groups.map((group) => group.head))];
const figures = Object.fromEntries(data.figures.map((figure) => [figure.name, figure]));
const shown = data.groups.map(() => true);
const allAlone = data.groups.every((group) => group.runs.length === 1);
let sorting = { name: null, turn: 1 };

// Heads are told apart by colour, or the options of the only one.
const kind = (group) => (heads.length > 1 ? heads.indexOf(group.head) : data.groups.indexOf(group));
const colour = (group) => COLOURS[kind(group) % COLOURS.length];
const shape = (group) => SHAPES[kind(group) % SHAPES.length];
const problem = () => Number($("problem").value);
const numbers = () => data.groups.map((_, i) => i).filter((i) => data.groups[i].problem === problem());
const visible = () => numbers().filter((i) => shown[i]);

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function choices(id, list, chosen) {
  const select = $(id);
  select.replaceChildren(...list.map(([value, text]) => element("option", text, { value })));
  if (list.some(([value]) => value === chosen)) select.value = chosen;
}

function inUnits(figure, value) {
  return figure.unit === "bytes" ? value / 2 ** 20 : value;
}

function told(figure, value) {
  if (value === null || value === undefined) return "";
  const scaled = inUnits(figure, value);
  if (figure.unit === "share") return Math.abs(scaled) >= 100 ? scaled.toFixed(1) : scaled.toFixed(4);
  if (figure.unit === "bytes") return scaled.toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  if (Number.isInteger(scaled) || Math.abs(scaled) >= 1000) return Math.round(scaled).toLocaleString("en");
  return scaled.toPrecision(4);
}

// First minus second, with the interval, or nothing where they were not compared.
function difference(name, first, second) {
  for (const [i, j, mean, low, high] of data.differences[name] ?? []) {
    if (i === first && j === second) return { mean, low, high };
    if (i === second && j === first) return { mean: -mean, low: high === null ? null : -high, high: low === null ? null : -low };
  }
  return null;
}

// Plotly reads tags in names, and %{...} in what it shows under the mouse.
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "% {");

const beyond = (found) => (found.low === null ? null : !(found.low <= 0 && found.high >= 0));

function best(name) {
  const figure = figures[name];
  const there = numbers().filter((i) => data.groups[i].values[name]);
  const means = there.map((i) => data.groups[i].values[name].mean);
  if (!figure.better || new Set(means).size < 2) return null;
  const value = figure.better === "more" ? Math.max(...means) : Math.min(...means);
  return there[means.indexOf(value)];
}

function layout(xTitle, yTitle, more = {}) {
  const axis = { gridcolor: "#eaeef2", zeroline: false, linecolor: "#d0d7de", automargin: true };
  return {
    margin: { l: 60, r: 15, t: 10, b: 45 },
    font: { family: "system-ui, DejaVu Sans, sans-serif", size: 13, color: "#1b1f24" },
    paper_bgcolor: "#fff",
    plot_bgcolor: "#fff",
    hovermode: "closest",
    showlegend: true,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: { ...axis, title: { text: escaped(xTitle), standoff: 8 }, ...(more.x ?? {}) },
    yaxis: { ...axis, title: { text: escaped(yTitle), standoff: 8 }, ...(more.y ?? {}) },
  };
}

function draw(id, traces, shape, description) {
  const plot = $(id);
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", description);
  if (!traces.length) {
    Plotly.purge(plot);
    plot.classList.remove("js-plotly-plot");
    plot.replaceChildren(element("p", "Nothing to draw: no run of what is chosen has these figures."));
    return;
  }
  if (!plot.classList.contains("js-plotly-plot")) plot.replaceChildren();
  Plotly.react(plot, traces, shape, CONFIG);
}

const wide = (values) => Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 8;

function spread(figure, found) {
  return found.deviation === null ? 0 : inUnits(figure, found.deviation);
}

function scatter(id, xName) {
  const x = figures[xName], y = figures[$("quality").value];
  if (!x || !y) return draw(id, [], {}, "Nothing to draw");
  const there = visible().filter((i) => data.groups[i].values[xName] && data.groups[i].values[y.name]);
  const place = (i) => inUnits(x, data.groups[i].values[xName].mean);
  const height = (i) => inUnits(y, data.groups[i].values[y.name].mean);
  const sign = y.better === "less" ? -1 : 1, way = x.better === "more" ? -1 : 1;
  const traces = [];
  if (x.better && y.better) {
    const front = [...there].sort((a, b) => way * (place(a) - place(b)) || sign * (height(b) - height(a)));
    const kept = [];
    for (const i of front) if (!kept.length || sign * height(i) > sign * height(kept[kept.length - 1])) kept.push(i);
    if (kept.length)
      traces.push({
        x: kept.map(place), y: kept.map(height), mode: "lines", name: "Pareto front", hoverinfo: "skip",
        line: { dash: "dash", color: "#6e7781", width: 1.5, shape: "hv" },
      });
  }
  const named = new Set();
  for (const i of there) {
    const group = data.groups[i], found = group.values;
    traces.push({
      x: [place(i)], y: [height(i)], mode: "markers", name: escaped(heads.length > 1 ? group.head : group.label),
      legendgroup: group.head, showlegend: heads.length === 1 || !named.has(group.head),
      marker: { color: colour(group), symbol: shape(group), size: 11, line: { color: "#fff", width: 1 } },
      error_x: { type: "data", array: [spread(x, found[xName])], color: colour(group), thickness: 1.2 },
      error_y: { type: "data", array: [spread(y, found[y.name])], color: colour(group), thickness: 1.2 },
      hovertemplate: `<b>${escaped(group.label)}</b><br>${escaped(y.title)} ${told(y, found[y.name].mean)}<br>${escaped(x.title)} ` +
        `${told(x, found[xName].mean)}<br>${group.runs.length} runs<extra></extra>`,
    });
    named.add(group.head);
  }
  const log = there.length && wide(there.map(place));
  draw(id, there.length ? traces : [], layout(x.title + (log ? ", logarithmic" : ""), y.title, { x: { type: log ? "log" : "linear" } }),
    `${y.title} against ${x.title}: ` + there.map((i) => `${data.groups[i].label} ${told(y, data.groups[i].values[y.name].mean)} at ${told(x, data.groups[i].values[xName].mean)}`).join("; "));
}

function drawOption() {
  const option = $("option").value;
  $("options-section").hidden = !option;
  if (!option) return;
  for (const [id, name] of [["option-cost", $("cost").value], ["option-quality", $("quality").value]]) {
    const figure = figures[name];
    $(`${id}-title`).textContent = `${figure.title} against ${option}`;
    const lines = new Map();
    for (const i of visible()) {
      const group = data.groups[i], value = group.options[option];
      if (typeof value !== "number" || !group.values[name]) continue;
      const others = Object.entries(group.options).filter(([key]) => key !== option).map(([key, each]) => `${key}=${each}`);
      const line = [group.head, ...others].join(" ");
      if (!lines.has(line)) lines.set(line, []);
      lines.get(line).push([value, i]);
    }
    const traces = [...lines].map(([line, points], number) => {
      points.sort((a, b) => a[0] - b[0]);
      const all = points.map(([, i]) => data.groups[i]), found = all.map((group) => group.values[name]);
      return {
        x: points.map(([value]) => value), y: found.map((each) => inUnits(figure, each.mean)), mode: "lines+markers", name: escaped(line),
        marker: { color: colour(all[0]), symbol: shape(all[0]), size: 9 },
        line: { color: colour(all[0]), dash: DASHES[number % DASHES.length] },
        error_y: { type: "data", array: found.map((each) => spread(figure, each)), color: colour(all[0]), thickness: 1.2 },
        hovertemplate: `<b>${escaped(line)}</b><br>${escaped(option)} %{x}<br>${escaped(figure.title)} %{y}<extra></extra>`,
      };
    });
    const at = [...new Set(traces.flatMap((trace) => trace.x))], log = at.length > 0 && wide(at);
    const ticks = at.length > 8 ? {} : { tickvals: at, ticktext: at.map(String) };
    draw(id, traces, layout(option + (log ? ", logarithmic" : ""), figure.title, { x: { type: log ? "log" : "linear", ...ticks } }),
      `${figure.title} against ${option}`);
  }
}

function drawCurves() {
  const name = $("curve").value, axis = $("curve-axis").value;
  const chosen = data.curves.find((each) => each.name === name), traces = [], ofHead = {};
  for (const i of visible()) {
    const group = data.groups[i], curve = group.curves[name];
    const there = curve ? curve.mean.map((_, k) => k).filter((k) => [curve[axis], curve.mean, curve.deviation].every((each) => each[k] !== null)) : [];
    if (!there.length) continue;
    ofHead[group.head] = (ofHead[group.head] ?? -1) + 1;
    const x = there.map((k) => curve[axis][k]), tint = colour(group), mean = there.map((k) => curve.mean[k]);
    const low = there.map((k) => curve.mean[k] - curve.deviation[k]), high = there.map((k) => curve.mean[k] + curve.deviation[k]);
    if (group.runs.length > 1)
      traces.push({
        x: [...x, ...[...x].reverse()], y: [...high, ...[...low].reverse()], fill: "toself", fillcolor: `${tint}22`,
        line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false, legendgroup: group.label,
      });
    traces.push({
      x, y: mean, mode: x.length < 30 ? "lines+markers" : "lines", name: escaped(group.label), legendgroup: group.label,
      line: { color: tint, dash: DASHES[ofHead[group.head] % DASHES.length], width: 2 }, marker: { symbol: shape(group), size: 6 },
      hovertemplate: `<b>${escaped(group.label)}</b><br>%{y:.4g} at %{x:,.4~s}<extra></extra>`,
    });
  }
  draw("curves", traces, layout(data.axes[axis], chosen ? chosen.title : ""), `${chosen ? chosen.title : ""} against ${data.axes[axis]}`);
}

function drawTable() {
  const table = $("figures"), there = numbers();
  const columns = data.figures.filter((figure) => there.some((i) => data.groups[i].values[figure.name]));
  const head = element("tr"), first = element("th", "Head", { scope: "col" });
  head.append(first);
  for (const figure of columns) {
    const cell = element("th", null, { scope: "col" });
    const turn = sorting.name === figure.name ? sorting.turn : 0;
    cell.setAttribute("aria-sort", turn ? (turn > 0 ? "descending" : "ascending") : "none");
    const button = element("button", figure.title + (turn ? (turn > 0 ? " ▾" : " ▴") : ""), { type: "button", "data-figure": figure.name });
    button.addEventListener("click", () => {
      sorting = { name: figure.name, turn: sorting.name === figure.name ? -sorting.turn : 1 };
      drawTable();
      table.querySelector(`button[data-figure="${CSS.escape(figure.name)}"]`).focus();
    });
    cell.append(button);
    head.append(cell);
  }
  const order = [...there];
  if (sorting.name) {
    const value = (i) => data.groups[i].values[sorting.name]?.mean ?? -Infinity;
    order.sort((a, b) => sorting.turn * (value(b) - value(a)));
  }
  const lines = order.map((i) => {
    const group = data.groups[i], line = element("tr", null, shown[i] ? {} : { class: "hidden" });
    const cell = element("th", null, { scope: "row" }), box = element("label");
    const check = element("input", null, { type: "checkbox", "data-group": i });
    check.checked = shown[i];
    check.addEventListener("change", () => { shown[i] = check.checked; update(); $("figures").querySelector(`input[data-group="${i}"]`).focus(); });
    box.append(check, " ", swatch(group), `${group.label} (${group.runs.length})`);
    cell.append(box);
    line.append(cell);
    for (const figure of columns) {
      const found = group.values[figure.name], winner = best(figure.name);
      const text = found ? told(figure, found.mean) + (found.deviation !== null ? ` ± ${told(figure, found.deviation)}` : "") : "–";
      const gap = winner !== null && winner !== i && found ? difference(figure.name, i, winner) : null;
      const mark = winner === i ? " ★" : !gap || allAlone ? "" : { true: "", false: " ≈", null: " ?" }[beyond(gap)];
      line.append(element("td", text + mark, winner === i ? { class: "best" } : {}));
    }
    return line;
  });
  const header = element("thead"), body = element("tbody");
  header.append(head);
  body.append(...lines);
  table.replaceChildren(header, body);
}

function swatch(group) {
  const dot = element("span", null, { class: "swatch", "aria-hidden": "true" });
  dot.style.background = colour(group);
  return dot;
}

function drawDifferences() {
  const figure = figures[$("quality").value], reference = Number($("reference").value);
  const header = element("thead"), titles = element("tr"), body = element("tbody");
  for (const [text, kind] of [["Head", "text"], [figure ? figure.title : "", ""], ["difference", ""], ["interval", ""], ["verdict", "text"]])
    titles.append(element("th", text, { scope: "col", class: kind }));
  header.append(titles);
  for (const i of visible()) {
    const found = figure && data.groups[i].values[figure.name], line = element("tr");
    if (!found) continue;
    const name = element("th", null, { scope: "row" });
    name.append(swatch(data.groups[i]), data.groups[i].label);
    line.append(name, element("td", told(figure, found.mean)));
    const gap = i === reference ? null : difference(figure.name, i, reference);
    const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + told(figure, Math.abs(value));
    line.append(element("td", gap ? signed(gap.mean) : "–"));
    line.append(element("td", gap && gap.low !== null ? `${signed(gap.low)} to ${signed(gap.high)}` : "–"));
    const verdict = i === reference ? "the reference" : !gap ? "not compared" : beyond(gap) === null ? "too few runs to tell" : beyond(gap) ? "more than noise" : "within the noise";
    line.append(element("td", verdict, { class: gap && beyond(gap) ? "text beyond" : "text" }));
    body.append(line);
  }
  $("differences").replaceChildren(header, body);
}

function drawHeads() {
  const there = heads.filter((name) => numbers().some((i) => data.groups[i].head === name));
  $("heads").replaceChildren(
    ...there.map((name) => {
      const members = numbers().filter((i) => data.groups[i].head === name);
      const box = element("label"), check = element("input", null, { type: "checkbox", "data-head": name });
      check.checked = members.some((i) => shown[i]);
      check.indeterminate = check.checked && !members.every((i) => shown[i]);
      check.addEventListener("change", () => { for (const i of members) shown[i] = check.checked; update(); $("heads").querySelector(`input[data-head="${CSS.escape(name)}"]`).focus(); });
      box.append(check, " ", swatch(data.groups[members[0]]), name);
      return box;
    }),
  );
}

function update() {
  drawHeads();
  scatter("against-time", $("time-axis").value);
  scatter("against-memory", $("memory-axis").value);
  drawTable();
  drawOption();
  drawCurves();
  drawDifferences();
}

// The full head is the yardstick, where it is there.
function chooseReference() {
  const there = numbers();
  const full = there.find((i) => data.groups[i].isFull) ?? there[0];
  choices("reference", there.map((i) => [String(i), data.groups[i].label]), String(full));
}

function begin() {
  $("about").textContent = `${data.title}, each ${data.where}. Made ${data.made}.`;
  const titled = (list) => list.map((figure) => [figure.name, figure.title]);
  const measured = data.figures.filter((figure) => figure.better);
  choices("quality", titled([...measured.filter((f) => f.kind === "quality"), ...measured.filter((f) => f.kind === "fidelity"), ...measured.filter((f) => f.kind === "cost")]));
  choices("problem", data.problems.map((each, i) => [String(i), `${each.name}, at ${each.point}`]));
  $("problem").parentElement.hidden = data.problems.length === 1;
  const timed = ["time", "head/step_ms", "throughput/images_per_second"].filter((name) => figures[name]);
  choices("time-axis", titled(timed.map((name) => figures[name])), data.equal === "seconds" ? "head/step_ms" : "time");
  const rest = measured.filter((figure) => figure.kind !== "quality" && !timed.includes(figure.name));
  rest.sort((a, b) => (b.unit === "bytes") - (a.unit === "bytes"));
  choices("memory-axis", titled(rest));
  const costs = data.figures.filter((figure) => figure.kind === "cost");
  choices("cost", titled(costs), "head/step_ms");
  const swept = data.options.filter((option) => heads.some((head) => {
    const values = data.groups.filter((group) => group.head === head && option in group.options).map((group) => group.options[option]);
    return new Set(values).size > 1 && values.every((value) => typeof value === "number");
  }));
  choices("option", swept.map((option) => [option, option]));
  choices("curve", data.curves.map((each) => [each.name, each.title]), $("quality").value);
  choices("curve-axis", Object.entries(data.axes), data.equal);
  chooseReference();
  const toTell = [...data.notes, ...data.leftOut.map((each) => `Left out: ${each.name} (${each.why})`)];
  $("notes").replaceChildren(...(toTell.length ? toTell : ["All runs that were found are finished and compared."]).map((text) => element("li", text)));
  $("runs").replaceChildren(...data.groups.flatMap((group) => group.runs.map((run) => element("li", `${group.label}, seed ${run.seed}: ${run.folder}`))));
  for (const id of ["quality", "problem", "time-axis", "memory-axis", "option", "cost", "curve", "curve-axis", "reference"])
    $(id).addEventListener("change", () => {
      if (id === "problem") chooseReference();
      update();
    });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  update();
  document.documentElement.dataset.ready = "yes";
}

begin();
