// The axes of figures. A logarithmic axis of bytes has a place for 0, left of all other values.
const MOST_TICKS = 6;

// Returns whether values need a logarithmic axis.
const isWide = (values) => Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 8;

// Returns the settings of an axis for these values, its title, where a value is drawn, and shapes that belong to it.
function axisOf(figure, values, side) {
  if (figure.unit === "bytes" && values.some((value) => value > 0)) return axisOfBytes(figure, values, side);
  const log = values.length > 0 && isWide(values);
  const ticks = figure.unit === "bytes" ? { tickvals: [0], ticktext: ["0 B"] } : {};
  return { title: figure.title + (log ? ", logarithmic" : ""), settings: { type: log ? "log" : "linear", ...ticks }, place: (value) => value, shapes: [] };
}

function axisOfBytes(figure, values, side) {
  const above = values.filter((value) => value > 0), hasZero = above.length < values.length;
  const low = Math.log2(Math.min(...above)), high = Math.log2(Math.max(...above)), margin = Math.max(0.7, 0.08 * (high - low));
  const zero = low - 2 * margin, begin = hasZero ? zero - margin : low - margin, end = high + margin;
  const step = [1, 2, 5, 10, 20].find((size) => (end - low + margin / 2) / size < MOST_TICKS) ?? 30;
  const powers = [];
  for (let power = Math.ceil((low - margin / 2) / step) * step; power <= end; power += step) powers.push(power);
  const ticks = powers.map((power) => [2 ** power, bytes(2 ** power, 0)]);
  const settings = {
    type: "log", range: [begin, end].map((power) => power * Math.log10(2)),
    tickvals: [...(hasZero ? [2 ** zero] : []), ...ticks.map(([at]) => at)], ticktext: [...(hasZero ? ["0 B"] : []), ...ticks.map(([, text]) => text)],
  };
  const other = side === "x" ? "y" : "x", border = 2 ** (low - margin);
  const line = { type: "line", line: { color: ink("none"), width: 1, dash: "dot" }, layer: "below" };
  const shapes = hasZero ? [{ ...line, [`${side}0`]: border, [`${side}1`]: border, [`${other}ref`]: "paper", [`${other}0`]: 0, [`${other}1`]: 1 }] : [];
  return { title: `${figure.title}, logarithmic`, settings, place: (value) => (value > 0 ? value : 2 ** zero), shapes };
}
