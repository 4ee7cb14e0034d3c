// ---------------------------------------------------------------- what it says
const element = (name, text, attributes = {}) => { const made = make(name, attributes); made.textContent = text; return made; };
const named = edge => `${nodes[edge.source].name} \u2192 ${nodes[edge.target].name}`;

function report(focus) {
  const parts = [], bold = (text, after) => [element("b", text), after];
  parts.push(bold(whole(state.shown.length), ` of ${whole(edges.length)} edges`));
  parts.push(bold(whole(state.visible.size), ` of ${whole(nodes.length)} nodes`));
  if (state.count) parts.push(["on paths of at least ", element("b", percent(least())), " of each layer's largest"]);
  parts.push([element("b", percent(leastMass())), " or more of every layer's |effect|"]);
  const strong = edges.filter(edge => edge.prominence >= least()).length;  // with loose ends, which carry nothing
  const known = data.curve.filter(([size]) => size <= strong).at(-1);
  if (known && !state.hidden.size) {
    const scores = Object.entries(known[1]).map(([target, f]) => `${f === null ? "undefined" : f.toFixed(2)} (${target})`);
    parts.push(["faithfulness ", element("b", scores.join(", ")), ` with the ${whole(known[0])} strongest`]);
  }
  if (focus) parts.push([`paths through ${nodes[state.picked].name}: `, element("b", whole(focus.nodes.size)), " nodes, ",
    element("b", whole(focus.edges.size)), " edges"]);
  find("status").replaceChildren(...parts.flatMap((part, i) => i ? [" \u00b7 ", ...part] : part));
}
/** The share of |effect| that is shown, in the layer that loses most. */
function leastMass() {
  const kept = new Map(), total = new Map(), on = new Set(state.shown);
  for (const edge of edges) {
    const layer = nodes[edge.target].column;
    total.set(layer, (total.get(layer) || 0) + edge.prominence);
    kept.set(layer, (kept.get(layer) || 0) + (on.has(edge) ? edge.prominence : 0));
  }
  return Math.min(1, ...[...total].filter(([, all]) => all > 0).map(([layer, all]) => kept.get(layer) / all));
}
function tableOf(attributes) {
  const list = make("dl");
  for (const [key, value] of Object.entries(attributes)) {
    const nested = value && typeof value === "object" && !Array.isArray(value) && !Object.keys(value).some(name => name.startsWith("$"));
    list.append(element("dt", key));
    if (nested && Object.keys(value).length) list.append(tableOf(value));
    else list.append(element("dd", nested ? "none" : worded(value)));
  }
  return list;
}
function neighbours(title, node, here, there) {
  const found = edges.filter(edge => edge[here] === node.index).sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  if (!found.length) return [];
  const list = make("ol");
  for (const edge of found.slice(0, 8)) {
    const other = nodes[edge[there]], row = make("li"), button = make("button", {type: "button"});
    button.append(element("span", other.name), element("span", edge.value === null ? "" : short(edge.value)));
    button.addEventListener("click", () => visit(other.index));
    row.append(button);
    list.append(row);
  }
  return [element("h3", found.length > 8 ? `${title}, the 8 largest of ${whole(found.length)}` : title), list];
}
function describeNode(node) {
  const parts = [element("h2", node.name)];
  if (node.picture) parts.push(make("img", {src: data.pictures[node.picture.index], alt: `What ${node.name} does`}));
  parts.push(tableOf(node.of), ...neighbours("From", node, "target", "source"), ...neighbours("To", node, "source", "target"));
  find("details").replaceChildren(...parts);
}
function describeEdge(edge) {
  const row = data.edgeRows[edge.index], of = {...data.edgeSame};
  data.edgeNames.forEach((name, i) => { if (!row[i]?.$absent) of[name] = row[i]; });
  find("details").replaceChildren(element("h2", named(edge)), tableOf(of));
}
function describe() {
  if (state.picked !== null) return describeNode(nodes[state.picked]);
  find("details").replaceChildren(element("p", "Point at a node or an edge for its attributes. Click a node, or press Enter on it, to "
    + "see only the paths through it; click it again, or press Escape, to see all. Arrow keys follow the strongest edges."));
}

// ---------------------------------------------------------------- what one can do
function pick(index) {
  state.picked = state.picked === index ? null : index;
  if (index !== null) state.at = index;
  emphasise();
  describe();
}
function show(count) {
  state.count = Math.max(0, Math.min(edges.length, count));
  const slider = find("count");
  slider.value = edges.length > 1 ? Math.round(100 * Math.log(Math.max(state.count, 1)) / Math.log(edges.length)) : 100;
  draw();
  slider.setAttribute("aria-valuetext", `the ${whole(state.shown.length)} strongest of ${whole(edges.length)} edges`);
}
/** Go to a node, with as many edges shown as it takes to see it. */
function visit(index) {
  if (!state.visible.has(index)) show(edges.findIndex(edge => edge.source === index || edge.target === index) + 1);
  state.picked = index;
  state.at = index;
  emphasise();
  describe();
  step(index);
}
function step(index) {
  state.at = index;
  marks.forEach((mark, i) => mark.setAttribute("tabindex", i === index ? "0" : "-1"));
  marks[index].focus({preventScroll: true});
  marks[index].scrollIntoView({block: "nearest", inline: "nearest"});
}
/** The node that an arrow key leads to: along the most prominent edge shown, or up and down the column. */
function towards(key, index) {
  const along = {ArrowRight: ["source", "target"], ArrowLeft: ["target", "source"]}[key];
  if (along) return state.shown.find(edge => edge[along[0]] === index)?.[along[1]];
  const column = [...state.visible].filter(i => nodes[i].column === nodes[index].column);
  column.sort((a, b) => state.items.get(a).y - state.items.get(b).y);
  return column[column.indexOf(index) + (key === "ArrowDown" ? 1 : -1)];
}
marks.forEach((mark, index) => {
  mark.addEventListener("click", () => pick(index));
  mark.addEventListener("pointerenter", () => describeNode(nodes[index]));
  mark.addEventListener("pointerleave", describe);
  mark.addEventListener("focus", () => { state.at = index; describeNode(nodes[index]); });
  mark.addEventListener("keydown", event => {
    if (event.key === "Enter" || event.key === " ") pick(index);
    else if (event.key.startsWith("Arrow")) { const next = towards(event.key, index); if (next !== undefined) step(next); }
    else return;
    event.preventDefault();
  });
});
find("edges").addEventListener("pointerover", event => {
  if (event.target.dataset.edge !== undefined) describeEdge(edges[event.target.dataset.edge]);
});
find("edges").addEventListener("pointerout", describe);
document.querySelector("#drawing svg").addEventListener("click", event => {
  if (event.target === event.currentTarget && state.picked !== null) pick(state.picked);
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape" && state.picked !== null) pick(state.picked);
  else if (event.key === "/" && document.activeElement !== find("search")) { find("search").focus(); event.preventDefault(); }
});
find("count").addEventListener("input", () => show(Math.round(Math.exp(find("count").value / 100 * Math.log(Math.max(edges.length, 1))))));
find("fit").addEventListener("click", fit);
for (const [id, factor] of [["smaller", 1 / 1.2], ["larger", 1.2]]) {
  find(id).addEventListener("click", () => { state.zoom = Math.min(4, Math.max(0.2, state.zoom * factor)); resize(); });
}
window.addEventListener("resize", draw);

/** Units whose name holds the words, as buttons; Enter goes to the first. */
function matches() {
  const words = find("search").value.trim().toLowerCase();
  return words ? nodes.filter(node => node.name.toLowerCase().includes(words) || node.label.toLowerCase().includes(words)) : [];
}
find("search").addEventListener("input", () => {
  if (!find("search").value.trim()) return describe();
  const found = matches(), list = make("ol");
  for (const node of found.slice(0, 20)) {
    const row = make("li"), button = element("button", node.name, {type: "button"});
    button.addEventListener("click", () => visit(node.index));
    row.append(button);
    list.append(row);
  }
  find("details").replaceChildren(element("h2", found.length === 1 ? "1 unit found" : `${whole(found.length)} units found`), list);
});
find("search").addEventListener("keydown", event => {
  if (event.key === "Enter" && matches().length) visit(matches()[0].index);
  if (event.key === "Escape") { find("search").value = ""; describe(); }
});

// ---------------------------------------------------------------- the key to the drawing
function line(width, colour, dashed) {
  const picture = make("svg", {width: 28, height: 10, "aria-hidden": "true"});
  const stroke = make("line", {x1: 0, x2: 28, y1: 5, y2: 5, "stroke-width": width});
  stroke.style.stroke = colour;
  if (dashed) stroke.setAttribute("stroke-dasharray", "5 3");
  picture.append(stroke);
  return picture;
}
function entry(mark, text) { const made = make("span"); made.append(mark, text); return made; }
function key() {
  const parts = [], values = edges.flatMap(edge => edge.parts.map(part => part.value || 0));
  data.factors.forEach((factor, i) => {
    const button = make("button", {type: "button", "aria-pressed": "true"});
    button.append(line(3, colourOf(factor)), factor.name);
    button.addEventListener("click", () => {
      state.hidden.has(i) ? state.hidden.delete(i) : state.hidden.add(i);
      button.setAttribute("aria-pressed", String(!state.hidden.has(i)));
      draw();
    });
    parts.push(button);
  });
  if (!data.factors.length && values.some(value => value > 0)) parts.push(entry(line(3, "var(--raises)"), "raises"));
  if (!data.factors.length && values.some(value => value < 0)) parts.push(entry(line(3, "var(--lowers)"), "lowers"));
  if (edges.some(edge => edge.uncertain)) parts.push(entry(line(1.5, "var(--faint)", true), "interval covers 0"));
  if (values.some(value => value)) {
    const what = data.factors.length ? "|share of the total effect| " : "|effect| ";
    [1, 10, 100].forEach((part, i) => parts.push(entry(line(lineWidth(data.largest / part), "var(--neutral)"), (i ? "" : what) + short(data.largest / part) + (i || data.factors.length ? "" : data.unit))));
  }
  find("key").replaceChildren(...parts);
}

key();
find("about").lastElementChild.append(tableOf(data.about));
show(data.start);
fit();
describe();
