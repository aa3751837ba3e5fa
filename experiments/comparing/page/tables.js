// The tables: all figures, and the differences from a reference.
function drawTable() {
  const table = $("figures"), groups = groupsOfProblem();
  const columns = data.figures.filter((figure) => groups.some((i) => data.groups[i].values[figure.name]));
  const head = element("tr");
  head.append(element("th", "Head", { scope: "col" }));
  for (const figure of columns) {
    const cell = element("th", null, { scope: "col" });
    const direction = sorting.name === figure.name ? sorting.direction : 0;
    cell.setAttribute("aria-sort", direction ? (direction > 0 ? "descending" : "ascending") : "none");
    const arrow = { more: " ↑", less: " ↓" }[figure.better] ?? "";
    const button = element("button", figure.title + arrow + (direction ? (direction > 0 ? " ▾" : " ▴") : ""), { type: "button", "data-figure": figure.name, title: figure.meaning });
    button.addEventListener("click", () => {
      sorting = { name: figure.name, direction: sorting.name === figure.name ? -sorting.direction : 1 };
      drawTable();
      table.querySelector(`button[data-figure="${CSS.escape(figure.name)}"]`).focus();
    });
    cell.append(button);
    head.append(cell);
  }
  const order = [...groups];
  if (sorting.name) {
    const mean = (i) => data.groups[i].values[sorting.name]?.mean ?? -Infinity;
    order.sort((a, b) => sorting.direction * (mean(b) - mean(a)));
  }
  const gaps = Object.fromEntries(columns.map(({ name }) => [name, best(name) === null ? new Map() : against(name, best(name))]));
  const lines = order.map((i) => {
    const group = data.groups[i], line = element("tr", null, shown[i] ? {} : { class: "hidden" });
    const cell = element("th", null, { scope: "row" }), box = element("label");
    const check = element("input", null, { type: "checkbox", "data-group": i });
    check.checked = shown[i];
    check.disabled = !shown[i] && isFull() && !headsShown().includes(group.head);
    check.addEventListener("change", () => { shown[i] = check.checked; update(); $("figures").querySelector(`input[data-group="${i}"]`).focus(); });
    box.append(check, " ", swatch(group, shown[i]), `${group.label} (${group.runs.length})`);
    cell.append(box);
    line.append(cell);
    for (const figure of columns) {
      const value = group.values[figure.name], winner = best(figure.name);
      const isNoisy = value && value.deviation !== null && (value.deviation > 0 || figure.unit !== "bytes");
      const text = value ? formatted(figure, value.mean) + (isNoisy ? ` ± ${formatted(figure, value.deviation)}` : "") : "–";
      const gap = gaps[figure.name].get(i);
      const mark = winner === i ? (group.runs.length > 1 ? " ★" : "") : !gap || allSingle ? "" : gap.equivalent ? " =" : { true: "", false: " ≈", null: " ?" }[gap.beyond];
      line.append(element("td", text + mark, winner === i ? { class: "best" } : {}));
    }
    return line;
  });
  const header = element("thead"), body = element("tbody");
  header.append(head);
  body.append(...lines);
  table.replaceChildren(header, body);
}

function drawDifferences() {
  const figure = figures[$("quality").value], reference = Number($("reference").value);
  const header = element("thead"), titles = element("tr"), body = element("tbody");
  for (const [text, kind] of [["Head", "text"], [figure ? figure.title : "", ""], ["difference", ""], ["interval", ""], ["verdict", "text"]])
    titles.append(element("th", text, { scope: "col", class: kind }));
  header.append(titles);
  const gaps = figure ? against(figure.name, reference) : new Map();
  for (const i of visible()) {
    const value = figure && data.groups[i].values[figure.name], line = element("tr");
    if (!value) continue;
    const name = element("th", null, { scope: "row" });
    name.append(swatch(data.groups[i]), data.groups[i].label);
    line.append(name, element("td", formatted(figure, value.mean)));
    const gap = gaps.get(i);
    const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + formatted(figure, Math.abs(value));
    line.append(element("td", gap ? signed(gap.mean) : "–"));
    line.append(element("td", gap && gap.low !== null ? `${signed(gap.low)} to ${signed(gap.high)}` : "–"));
    const words = { true: "more than noise", false: "not distinguishable", null: "too few runs to decide" };
    const same = gap && gap.equivalent ? `, within ${data.within} points` : "";
    const verdict = i === reference ? "the reference" : !gap ? "not compared" : words[gap.beyond] + same;
    line.append(element("td", verdict, { class: gap && gap.beyond ? "text beyond" : "text" }));
    body.append(line);
  }
  $("differences").replaceChildren(header, body);
}
