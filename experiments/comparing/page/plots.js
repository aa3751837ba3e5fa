// The plots: quality against cost, figures against an option, and curves.
// Plotly interprets tags in names, and %{...} in hover texts.
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "% {");

function layout(xTitle, yTitle, more = {}) {
  const axis = { gridcolor: ink("grid"), zeroline: false, linecolor: ink("line") };
  return {
    margin: { l: 60, r: 20, t: 10, b: 45 },
    font: { family: "system-ui, DejaVu Sans, sans-serif", size: 13, color: ink("ink") },
    paper_bgcolor: ink("back"),
    plot_bgcolor: ink("back"),
    hovermode: "closest",
    showlegend: false,
    xaxis: { ...axis, automargin: "bottom", title: { text: escaped(xTitle), standoff: 8 }, ...(more.x ?? {}) },
    yaxis: { ...axis, automargin: "left", title: { text: escaped(yTitle), standoff: 8 }, ...(more.y ?? {}) },
  };
}

function draw(id, traces, shape, description) {
  const plot = $(id);
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", description);
  drawLegend(plot, traces);
  if (!traces.length) {
    Plotly.purge(plot);
    plot.classList.remove("js-plotly-plot");
    plot.replaceChildren(element("p", "Nothing to draw: no selected run has these figures."));
    return;
  }
  if (!plot.classList.contains("js-plotly-plot")) plot.replaceChildren();
  Plotly.react(plot, traces, shape, CONFIG);
}

// Draws the names of traces above their plot. A name hides its groups, as their boxes do.
function drawLegend(plot, traces) {
  if (!plot.previousElementSibling.classList.contains("legend")) plot.before(element("div", null, { class: "legend" }));
  const entries = traces.filter((trace) => trace.meta).map(({ meta, line }) => {
    const button = element("button", null, { type: "button", title: `Hide ${meta.name}` });
    button.append(swatch(data.groups[meta.groups[0]], true, line?.dash), meta.name);
    button.addEventListener("click", () => { for (const i of meta.groups) shown[i] = false; update(); });
    return button;
  });
  plot.previousElementSibling.replaceChildren(...entries);
}

function errorBar(value) {
  return value.deviation ?? 0;
}

// Returns the points that no other point exceeds in both figures, as a line.
function paretoFront(groups, x, y, horizontal, vertical) {
  const sign = y.better === "less" ? -1 : 1, way = x.better === "more" ? -1 : 1;
  const mean = (i, figure) => data.groups[i].values[figure.name].mean;
  const sorted = [...groups].sort((a, b) => way * (mean(a, x) - mean(b, x)) || sign * (mean(b, y) - mean(a, y)));
  const kept = [];
  for (const i of sorted) if (!kept.length || sign * mean(i, y) > sign * mean(kept[kept.length - 1], y)) kept.push(i);
  return {
    x: kept.map((i) => horizontal.place(mean(i, x))), y: kept.map((i) => vertical.place(mean(i, y))), mode: "lines",
    hoverinfo: "skip", line: { dash: "dash", color: ink("none"), width: 1.5, shape: "hv" },
  };
}

// Returns the memory floor as a line with its name, if there is one.
function floorLine(floor, axis) {
  if (!floor) return { shapes: [], annotations: [] };
  const at = axis.place(floor.bytes), color = ink("warn");
  return {
    shapes: [{ type: "line", x0: at, x1: at, yref: "paper", y0: 0, y1: 1, layer: "below", line: { color, width: 1.5, dash: "dashdot" } }],
    annotations: [{ x: Math.log10(at || 1), yref: "paper", y: 1, xanchor: "left", yanchor: "top", showarrow: false, text: "floor", font: { color, size: 12 } }],
  };
}

function scatter(id, xName) {
  const x = figures[xName], y = figures[$("quality").value];
  $(`${id}-note`).textContent = "";
  if (!x || !y) return draw(id, [], {}, "Nothing to draw");
  const groups = visible().filter((i) => data.groups[i].values[xName] && data.groups[i].values[y.name]);
  const means = (figure) => groups.map((i) => data.groups[i].values[figure.name].mean);
  const floor = x.name === data.memory ? data.problems[problem()].floor : null;
  const horizontal = axisOf(x, [...means(x), ...(floor ? [floor.bytes] : [])], "x"), vertical = axisOf(y, means(y), "y");
  $(`${id}-note`).textContent = [floor && floor.text, horizontal.shapes.length && "0 B is left of the dotted line"].filter(Boolean).join(". ");
  const traces = x.better && y.better && groups.length ? [paretoFront(groups, x, y, horizontal, vertical)] : [];
  const named = new Set();
  for (const i of groups) {
    const group = data.groups[i], values = group.values;
    const both = group.runs.map((_, k) => [group.each[xName][k], group.each[y.name][k]]).filter(([a, b]) => a !== null && b !== null);
    if (both.length > 1)
      traces.push({
        x: both.map(([a]) => horizontal.place(a)), y: both.map(([, b]) => vertical.place(b)), mode: "markers", hoverinfo: "skip",
        marker: { color: colour(group), size: 5, opacity: 0.7 },
      });
    const meta = byGroup ? { name: group.label, groups: [i] } : { name: group.head, groups: groups.filter((j) => data.groups[j].head === group.head) };
    traces.push({
      x: [horizontal.place(values[xName].mean)], y: [vertical.place(values[y.name].mean)], mode: "markers",
      ...(named.has(meta.name) ? {} : { meta }), // a head has one name in the legend
      marker: { color: colour(group), symbol: marker(group), size: 11, line: { color: marker(group).endsWith("-open") ? colour(group) : ink("back"), width: 1 } },
      error_x: { type: "data", array: [errorBar(values[xName])], color: colour(group), thickness: 1.2 },
      error_y: { type: "data", array: [errorBar(values[y.name])], color: colour(group), thickness: 1.2 },
      hovertemplate: `<b>${escaped(group.label)}</b><br>${escaped(y.title)} ${formatted(y, values[y.name].mean)}<br>${escaped(x.title)} ` +
        `${formatted(x, values[xName].mean)}<br>${group.runs.length === 1 ? "1 run" : `${group.runs.length} runs`}<extra></extra>`,
    });
    named.add(meta.name);
  }
  const line = floorLine(floor, horizontal), look = layout(horizontal.title, vertical.title, { x: horizontal.settings, y: vertical.settings });
  draw(id, groups.length ? traces : [], { ...look, shapes: [...horizontal.shapes, ...vertical.shapes, ...line.shapes], annotations: line.annotations },
    `${y.title} against ${x.title}: ` + groups.map((i) => `${data.groups[i].label} ${formatted(y, data.groups[i].values[y.name].mean)} at ${formatted(x, data.groups[i].values[xName].mean)}`).join("; "));
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
      const others = Object.entries(group.options).filter(([key]) => key !== option).map(([key, setting]) => `${key}=${setting}`);
      const line = [group.head, ...others].join(" ");
      if (!lines.has(line)) lines.set(line, []);
      lines.get(line).push([value, i]);
    }
    const drawn = [...lines.values()].flat().map(([, i]) => data.groups[i].values[name].mean), vertical = axisOf(figure, drawn, "y");
    const traces = [...lines].map(([line, points], number) => {
      points.sort((a, b) => a[0] - b[0]);
      const groups = points.map(([, i]) => data.groups[i]), values = groups.map((group) => group.values[name]);
      return {
        x: points.map(([value]) => value), y: values.map((value) => vertical.place(value.mean)), mode: "lines+markers", meta: { name: line, groups: points.map(([, i]) => i) },
        marker: { color: colour(groups[0]), symbol: marker(groups[0]), size: 9 },
        line: { color: colour(groups[0]), dash: dashOf(number) },
        error_y: { type: "data", array: values.map((value) => errorBar(value)), color: colour(groups[0]), thickness: 1.2 },
        text: values.map((value) => formatted(figure, value.mean)),
        hovertemplate: `<b>${escaped(line)}</b><br>${escaped(option)} %{x}<br>${escaped(figure.title)} %{text}<extra></extra>`,
      };
    });
    const at = [...new Set(traces.flatMap((trace) => trace.x))], log = at.length > 0 && isWide(at);
    const ticks = at.length > 8 ? {} : { tickvals: at, ticktext: at.map(String) };
    draw(id, traces, { ...layout(option + (log ? ", logarithmic" : ""), vertical.title, { x: { type: log ? "log" : "linear", ...ticks }, y: vertical.settings }), shapes: vertical.shapes },
      `${figure.title} against ${option}`);
  }
}

function drawCurves() {
  const name = $("curve").value, axis = $("curve-axis").value;
  const chosen = data.curves.find((curve) => curve.name === name), traces = [], ofHead = {};
  const opacity = visible().length > 4 ? "10" : "22"; // of bands, which overlap
  for (const i of visible()) {
    const group = data.groups[i], curve = group.curves[name];
    const steps = curve ? curve.mean.map((_, k) => k).filter((k) => [curve[axis], curve.mean, curve.deviation].every((list) => list[k] !== null)) : [];
    if (!steps.length) continue;
    ofHead[group.head] = (ofHead[group.head] ?? -1) + 1;
    const x = steps.map((k) => curve[axis][k]), tint = colour(group), mean = steps.map((k) => curve.mean[k]);
    const low = steps.map((k) => curve.mean[k] - curve.deviation[k]), high = steps.map((k) => curve.mean[k] + curve.deviation[k]);
    if (group.runs.length > 1)
      traces.push({
        x: [...x, ...[...x].reverse()], y: [...high, ...[...low].reverse()], fill: "toself", fillcolor: tint + opacity,
        line: { width: 0 }, mode: "lines", hoverinfo: "skip",
      });
    traces.push({
      x, y: mean, mode: "lines+markers", meta: { name: group.label, groups: [i] },
      line: { color: tint, dash: dashOf(series(group) + ofHead[group.head]), width: 2 },
      marker: { symbol: marker(group), size: 7, maxdisplayed: x.length < 30 ? 0 : 8 },
      hovertemplate: `<b>${escaped(group.label)}</b><br>%{y:.4g} at %{x:,.4~s}<extra></extra>`,
    });
  }
  draw("curves", traces, layout(data.axes[axis], chosen ? chosen.title : ""), `${chosen ? chosen.title : ""} against ${data.axes[axis]}`);
}
