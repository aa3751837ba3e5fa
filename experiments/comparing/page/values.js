"use strict";
// The data of the page, and how values are formatted and compared.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const CONFIG = { responsive: true, displayModeBar: false };
const figures = Object.fromEntries(data.figures.map((figure) => [figure.name, figure]));
const allSingle = data.groups.every((group) => group.runs.length === 1);
let sorting = { name: null, direction: 1 };

const problem = () => Number($("problem").value);

// A colour of the style sheet, which depends on the light or dark scheme.
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function element(name, text, attributes = {}) {
  const node = document.createElement(name);
  if (text !== undefined && text !== null) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

// Returns a number of bytes with its unit, such as 72.0 KiB.
function bytes(value, digits = 1) {
  const power = value < 1024 ? 0 : Math.min(4, Math.floor(Math.log2(value) / 10));
  const scaled = (value / 1024 ** power).toLocaleString("en", { minimumFractionDigits: power ? digits : 0, maximumFractionDigits: power ? digits : 0 });
  return `${scaled} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

function formatted(figure, value) {
  if (value === null || value === undefined) return "";
  if (figure.unit === "share") return Math.abs(value) >= 100 ? value.toFixed(1) : value.toFixed(4);
  if (figure.unit === "bytes") return bytes(value);
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return value.toPrecision(4);
}

// Returns the first group minus the second, with the interval; null if they were not compared.
function difference(name, first, second) {
  for (const [i, j, mean, low, high, p, paired, equivalent] of data.differences[name] ?? []) {
    if (i === first && j === second) return { mean, low, high, p, paired, equivalent };
    if (i === second && j === first) return { mean: -mean, low: high === null ? null : -high, high: low === null ? null : -low, p, paired, equivalent };
  }
  return null;
}

// Returns the differences of all groups of the problem from a reference, by group. `beyond` says whether a difference
// exceeds the noise, with Holm's correction for the number of groups; null if there are too few runs to decide.
function against(name, reference) {
  const gaps = new Map(groupsOfProblem().filter((i) => i !== reference).map((i) => [i, difference(name, i, reference)]).filter(([, gap]) => gap));
  const tested = [...gaps.values()].filter((gap) => gap.p !== null).sort((a, b) => a.p - b.p);
  let corrected = 0;
  tested.forEach((gap, place) => {
    corrected = Math.max(corrected, Math.min(1, (tested.length - place) * gap.p));
    gap.beyond = corrected <= 0.05;
  });
  for (const gap of gaps.values()) gap.beyond ??= null;
  return gaps;
}

function best(name) {
  const figure = figures[name];
  const candidates = groupsOfProblem().filter((i) => data.groups[i].values[name]);
  const means = candidates.map((i) => data.groups[i].values[name].mean);
  if (!figure.better || new Set(means).size < 2) return null;
  const value = figure.better === "more" ? Math.max(...means) : Math.min(...means);
  return candidates[means.indexOf(value)];
}
