// The plots: quality against cost, figures against an option, and curves.
// Plotly interprets tags in names, and %{...} in hover texts.
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "% {");

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
    plot.replaceChildren(element("p", "Nothing to draw: no selected run has these figures."));
    return;
  }
  if (!plot.classList.contains("js-plotly-plot")) plot.replaceChildren();
  Plotly.react(plot, traces, shape, CONFIG);
}

// Returns whether values need a logarithmic axis.
const isWide = (values) => Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 8;

function errorBar(figure, value) {
  return value.deviation === null ? 0 : inUnits(figure, value.deviation);
}

function scatter(id, xName) {
  const x = figures[xName], y = figures[$("quality").value];
  if (!x || !y) return draw(id, [], {}, "Nothing to draw");
  const groups = visible().filter((i) => data.groups[i].values[xName] && data.groups[i].values[y.name]);
  const place = (i) => inUnits(x, data.groups[i].values[xName].mean);
  const height = (i) => inUnits(y, data.groups[i].values[y.name].mean);
  const sign = y.better === "less" ? -1 : 1, way = x.better === "more" ? -1 : 1;
  const traces = [];
  if (x.better && y.better) {
    const front = [...groups].sort((a, b) => way * (place(a) - place(b)) || sign * (height(b) - height(a)));
    const kept = [];
    for (const i of front) if (!kept.length || sign * height(i) > sign * height(kept[kept.length - 1])) kept.push(i);
    if (kept.length)
      traces.push({
        x: kept.map(place), y: kept.map(height), mode: "lines", name: "Pareto front", hoverinfo: "skip",
        line: { dash: "dash", color: "#6e7781", width: 1.5, shape: "hv" },
      });
  }
  const named = new Set();
  for (const i of groups) {
    const group = data.groups[i], values = group.values;
    traces.push({
      x: [place(i)], y: [height(i)], mode: "markers", name: escaped(heads.length > 1 ? group.head : group.label),
      legendgroup: group.head, showlegend: heads.length === 1 || !named.has(group.head),
      marker: { color: colour(group), symbol: shape(group), size: 11, line: { color: "#fff", width: 1 } },
      error_x: { type: "data", array: [errorBar(x, values[xName])], color: colour(group), thickness: 1.2 },
      error_y: { type: "data", array: [errorBar(y, values[y.name])], color: colour(group), thickness: 1.2 },
      hovertemplate: `<b>${escaped(group.label)}</b><br>${escaped(y.title)} ${formatted(y, values[y.name].mean)}<br>${escaped(x.title)} ` +
        `${formatted(x, values[xName].mean)}<br>${group.runs.length === 1 ? "1 run" : `${group.runs.length} runs`}<extra></extra>`,
    });
    named.add(group.head);
  }
  const log = groups.length && isWide(groups.map(place));
  draw(id, groups.length ? traces : [], layout(x.title + (log ? ", logarithmic" : ""), y.title, { x: { type: log ? "log" : "linear" } }),
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
    const traces = [...lines].map(([line, points], number) => {
      points.sort((a, b) => a[0] - b[0]);
      const groups = points.map(([, i]) => data.groups[i]), values = groups.map((group) => group.values[name]);
      return {
        x: points.map(([value]) => value), y: values.map((value) => inUnits(figure, value.mean)), mode: "lines+markers", name: escaped(line),
        marker: { color: colour(groups[0]), symbol: shape(groups[0]), size: 9 },
        line: { color: colour(groups[0]), dash: DASHES[number % DASHES.length] },
        error_y: { type: "data", array: values.map((value) => errorBar(figure, value)), color: colour(groups[0]), thickness: 1.2 },
        hovertemplate: `<b>${escaped(line)}</b><br>${escaped(option)} %{x}<br>${escaped(figure.title)} %{y}<extra></extra>`,
      };
    });
    const at = [...new Set(traces.flatMap((trace) => trace.x))], log = at.length > 0 && isWide(at);
    const ticks = at.length > 8 ? {} : { tickvals: at, ticktext: at.map(String) };
    draw(id, traces, layout(option + (log ? ", logarithmic" : ""), figure.title, { x: { type: log ? "log" : "linear", ...ticks } }),
      `${figure.title} against ${option}`);
  }
}

function drawCurves() {
  const name = $("curve").value, axis = $("curve-axis").value;
  const chosen = data.curves.find((curve) => curve.name === name), traces = [], ofHead = {};
  for (const i of visible()) {
    const group = data.groups[i], curve = group.curves[name];
    const steps = curve ? curve.mean.map((_, k) => k).filter((k) => [curve[axis], curve.mean, curve.deviation].every((list) => list[k] !== null)) : [];
    if (!steps.length) continue;
    ofHead[group.head] = (ofHead[group.head] ?? -1) + 1;
    const x = steps.map((k) => curve[axis][k]), tint = colour(group), mean = steps.map((k) => curve.mean[k]);
    const low = steps.map((k) => curve.mean[k] - curve.deviation[k]), high = steps.map((k) => curve.mean[k] + curve.deviation[k]);
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
