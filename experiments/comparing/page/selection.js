// Which heads are shown, and their colours and markers.
const LIMIT = 9; // heads shown at once: as many as there are colours
// They differ without red, green or blue vision too, and have a contrast of at least 3 to white.
const LIGHT = ["#0072b2", "#d55e00", "#00a884", "#a8306c", "#4800e4", "#485400", "#a878fc", "#60006c", "#222222"];
// Those of the dark scheme differ as much, and have a contrast of at least 3 to its background.
const DARK = ["#51baff", "#b4c834", "#05a945", "#ff7cb4", "#7c56fb", "#afff5f", "#fdd3f2", "#806557", "#ba27ac"];
const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;
// Dashes by their names in plotly, and in the unit of a swatch.
const DASHES = { solid: "none", dash: "1.4 0.8", dot: "0.4 0.6", dashdot: "1.4 0.6 0.4 0.6", longdash: "2 0.8", longdashdot: "2 0.6 0.4 0.6" };
const dashOf = (number) => Object.keys(DASHES)[number % Object.keys(DASHES).length];

// Returns the corners of a regular polygon, or of a star with this inner radius.
function corners(count, degrees, inner = 1) {
  const all = inner < 1 ? 2 * count : count;
  return Array.from({ length: all }, (_, i) => {
    const angle = (degrees / 180 + (2 * i) / all) * Math.PI, radius = i % 2 ? inner : 1;
    return [radius * Math.cos(angle), radius * Math.sin(angle)];
  });
}
const CROSS = [[-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1], [1, 3], [-1, 3], [-1, 1], [-3, 1], [-3, -1], [-1, -1]];
const turned = ([x, y]) => [0.75 * (x - y), 0.75 * (x + y)];
// Markers by their names in plotly. Each head has its own, so that heads differ without colour.
const MARKERS = {
  circle: corners(24, 0), square: corners(4, 45), diamond: corners(4, 0), "triangle-up": corners(3, -90),
  cross: CROSS.map(([x, y]) => [x / 3, y / 3]), star: corners(5, -90, 0.4), hexagon: corners(6, -90),
  "triangle-down": corners(3, 90), x: CROSS.map(([x, y]) => turned([x / 3, y / 3])), pentagon: corners(5, -90),
  bowtie: [[-1, -1], [1, 1], [1, -1], [-1, 1]], "star-diamond": corners(4, 0, 0.45), "triangle-left": corners(3, 180),
  hourglass: [[-1, -1], [1, -1], [-1, 1], [1, 1]], "triangle-right": corners(3, 0),
};

const heads = [...new Set(data.groups.map((group) => group.head))];
const shown = data.groups.map(() => false);
const groupsOfProblem = (of = problem()) => data.groups.map((_, i) => i).filter((i) => data.groups[i].problem === of);
const visible = () => groupsOfProblem().filter((i) => shown[i]);
const headsOfProblem = (of = problem()) => heads.filter((name) => groupsOfProblem(of).some((i) => data.groups[i].head === name));
const headsShown = () => [...new Set(visible().map((i) => data.groups[i].head))];
const isFull = () => headsShown().length >= LIMIT;

// Shows the heads that are best in a figure. The full head is always one of them: it is the reference.
function showBest(name, of = problem()) {
  const sign = figures[name]?.better === "less" ? -1 : 1, rank = {};
  for (const head of headsOfProblem(of)) {
    const groups = groupsOfProblem(of).map((i) => data.groups[i]).filter((group) => group.head === head);
    rank[head] = groups[0].isFull ? Infinity : Math.max(...groups.map((group) => (group.values[name] ? sign * group.values[name].mean : -Infinity)));
  }
  const best = headsOfProblem(of).sort((a, b) => (rank[a] < rank[b]) - (rank[a] > rank[b])).slice(0, LIMIT);
  for (const i of groupsOfProblem(of)) shown[i] = best.includes(data.groups[i].head);
}

// Colours and markers distinguish heads; if there is one head only, they distinguish its groups, unless those are too many.
const byGroup = heads.length === 1 && data.groups.length <= LIMIT;
const series = (group) => (byGroup ? data.groups.indexOf(group) : heads.indexOf(group.head));
const owners = LIGHT.map(() => null); // the head that each colour belongs to

// Gives a colour to each head that is shown. A head keeps its colour until another head needs it while it is not shown.
function giveColours() {
  const wanted = new Set(visible().map((i) => series(data.groups[i])));
  for (const one of wanted) {
    if (owners.includes(one)) continue;
    const free = owners.indexOf(null);
    owners[free >= 0 ? free : owners.findIndex((owner) => !wanted.has(owner))] = one;
  }
}
const colour = (group) => (isDark() ? DARK : LIGHT)[owners.indexOf(series(group))] ?? ink("none");
function marker(group) {
  const names = Object.keys(MARKERS), place = series(group);
  return names[place % names.length] + (Math.floor(place / names.length) % 2 ? "-open" : "");
}

// Returns the marker of a group as a picture, on a line if a dash is given: an outline if the group is not shown.
function swatch(group, isShown = true, dash = null) {
  const name = marker(group), tint = isShown ? colour(group) : ink("none");
  const picture = drawing("svg", { class: "swatch", viewBox: dash ? "-4 -1.3 8 2.6" : "-1.3 -1.3 2.6 2.6", "aria-hidden": "true" });
  if (dash) picture.append(drawing("path", { d: "M-4 0H4", stroke: tint, "stroke-width": 0.4, "stroke-dasharray": DASHES[dash] }));
  const points = MARKERS[name.replace("-open", "")].map((corner) => corner.map((at) => at.toFixed(3)).join()).join(" ");
  picture.append(drawing("polygon", { points, fill: isShown && !name.endsWith("-open") ? tint : "none", stroke: tint, "stroke-width": 0.25 }));
  return picture;
}

function drawing(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}
