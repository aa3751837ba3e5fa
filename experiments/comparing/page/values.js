"use strict";
// The data of the page, and how values are formatted and compared.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
// The colours of Okabe and Ito, dark enough for a white background. Shapes distinguish heads without colour.
const COLOURS = ["#0072b2", "#d55e00", "#007a5a", "#aa4499", "#8a6d00", "#332288", "#444444", "#b3003c"];
const SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const CONFIG = { responsive: true, displayModeBar: false };
const heads = [...new Set(data.groups.map((group) => group.head))];
const figures = Object.fromEntries(data.figures.map((figure) => [figure.name, figure]));
const shown = data.groups.map(() => true);
const allSingle = data.groups.every((group) => group.runs.length === 1);
let sorting = { name: null, direction: 1 };

// Colours distinguish heads; if there is one head only, they distinguish its groups.
const series = (group) => (heads.length > 1 ? heads.indexOf(group.head) : data.groups.indexOf(group));
const colour = (group) => COLOURS[series(group) % COLOURS.length];
const shape = (group) => SHAPES[series(group) % SHAPES.length];
const problem = () => Number($("problem").value);
const groupsOfProblem = () => data.groups.map((_, i) => i).filter((i) => data.groups[i].problem === problem());
const visible = () => groupsOfProblem().filter((i) => shown[i]);

function element(name, text, attributes = {}) {
  const node = document.createElement(name);
  if (text !== undefined && text !== null) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function inUnits(figure, value) {
  return figure.unit === "bytes" ? value / 2 ** 20 : value;
}

function formatted(figure, value) {
  if (value === null || value === undefined) return "";
  const scaled = inUnits(figure, value);
  if (figure.unit === "share") return Math.abs(scaled) >= 100 ? scaled.toFixed(1) : scaled.toFixed(4);
  if (figure.unit === "bytes") return scaled.toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  if (Number.isInteger(scaled) || Math.abs(scaled) >= 1000) return Math.round(scaled).toLocaleString("en");
  return scaled.toPrecision(4);
}

// Returns the first group minus the second, with the interval; null if they were not compared.
function difference(name, first, second) {
  for (const [i, j, mean, low, high] of data.differences[name] ?? []) {
    if (i === first && j === second) return { mean, low, high };
    if (i === second && j === first) return { mean: -mean, low: high === null ? null : -high, high: low === null ? null : -low };
  }
  return null;
}

// Returns whether a difference exceeds the noise; null if it has no interval.
const beyondNoise = (gap) => (gap.low === null ? null : !(gap.low <= 0 && gap.high >= 0));

function best(name) {
  const figure = figures[name];
  const candidates = groupsOfProblem().filter((i) => data.groups[i].values[name]);
  const means = candidates.map((i) => data.groups[i].values[name].mean);
  if (!figure.better || new Set(means).size < 2) return null;
  const value = figure.better === "more" ? Math.max(...means) : Math.min(...means);
  return candidates[means.indexOf(value)];
}
