// The controls, and what a change of them draws again.
function choices(id, list, chosen) {
  const select = $(id);
  select.replaceChildren(...list.map(([value, text]) => element("option", text, { value })));
  if (list.some(([value]) => value === chosen)) select.value = chosen;
}

function drawHeads() {
  const present = headsOfProblem(), on = headsShown();
  $("heads").replaceChildren(
    ...present.map((name) => {
      const members = groupsOfProblem().filter((i) => data.groups[i].head === name);
      const box = element("label"), check = element("input", null, { type: "checkbox", "data-head": name });
      check.checked = members.some((i) => shown[i]);
      check.indeterminate = check.checked && !members.every((i) => shown[i]);
      check.addEventListener("change", () => { for (const i of members) shown[i] = check.checked; update(); $("heads").querySelector(`input[data-head="${CSS.escape(name)}"]`).focus(); });
      check.disabled = isFull() && !on.includes(name);
      box.append(check, " ", swatch(data.groups[members[0]], check.checked), name);
      return box;
    }),
  );
  const more = present.length > LIMIT;
  $("several").hidden = !more;
  $("show-best").textContent = `Show the best ${LIMIT}`;
  $("limit").textContent = more ? `${on.length} of ${present.length} heads are shown, and at most ${LIMIT} at once. ` + (isFull() ? "Clear a box to show another head." : "") : "";
}

function update() {
  $("trained").textContent = data.problems[problem()].trained;
  $("outcome").textContent = data.problems[problem()].outcome;
  giveColours();
  drawHeads();
  scatter("against-time", $("time-axis").value);
  scatter("against-memory", $("memory-axis").value);
  drawTable();
  drawOption();
  drawCurves();
  drawDifferences();
}

// The full head is the reference, if there is one.
function chooseReference() {
  const groups = groupsOfProblem();
  const full = groups.find((i) => data.groups[i].isFull) ?? groups[0];
  choices("reference", groups.map((i) => [String(i), data.groups[i].label]), String(full));
}

function begin() {
  $("about").textContent = `${data.title}, compared ${data.where}. Created ${data.created}.`;
  const titled = (list) => list.map((figure) => [figure.name, figure.title]);
  const measured = data.figures.filter((figure) => figure.better);
  choices("quality", titled([...measured.filter((f) => f.kind === "quality"), ...measured.filter((f) => f.kind === "fidelity"), ...measured.filter((f) => f.kind === "cost")]), data.sweepMetric);
  data.problems.forEach((_, of) => showBest($("quality").value, of));
  const isReferred = data.groups.some((group) => group.isFull);
  $("rule").textContent = `At first: ${isReferred ? "the full head, and those" : "those"} best in ${$("quality").selectedOptions[0].textContent}.`;
  choices("problem", data.problems.map((problem, i) => [String(i), `${problem.name}, at ${problem.point}`]));
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
  choices("curve", data.curves.map((curve) => [curve.name, curve.title]), $("quality").value);
  choices("curve-axis", Object.entries(data.axes), data.equal);
  chooseReference();
  $("within").textContent = data.within;
  const notes = [...data.notes, ...data.leftOut.map((run) => `Left out: ${run.name} (${run.reason})`)];
  $("notes").replaceChildren(...(notes.length ? notes : ["All runs are finished and compared."]).map((text) => element("li", text)));
  $("runs").replaceChildren(...data.groups.flatMap((group) => group.runs.map((run) => element("li", `${group.label}, seed ${run.seed}: ${run.folder}`))));
  for (const id of ["quality", "problem", "time-axis", "memory-axis", "option", "cost", "curve", "curve-axis", "reference"])
    $(id).addEventListener("change", () => {
      if (id === "problem") chooseReference();
      update();
    });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  $("show-best").addEventListener("click", () => { showBest($("quality").value); update(); });
  $("show-none").addEventListener("click", () => { for (const i of groupsOfProblem()) shown[i] = false; update(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  update();
  document.documentElement.dataset.ready = "yes";
}

begin();
