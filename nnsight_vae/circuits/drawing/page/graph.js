"use strict";
// The page's data: nodes, the columns they stand in, and edges from the most prominent paths to the least (html.py writes it).
const data = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
const nodes = data.nodes;
const edges = data.edges.map(([source, target, prominence, onPath, value, uncertain, parts], index) =>
  ({index, source, target, prominence, onPath, value, uncertain, parts: parts.map(([factor, value]) => ({factor, value}))}));
const state = {count: data.start, picked: null, at: null, zoom: 1, hidden: new Set()};

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "rect", "text", "image", "line"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
const whole = number => number.toLocaleString("en-US");
const short = number => String(+number.toPrecision(3)).replace("-", "\u2212");
const percent = part => (part < 0.01 ? short(100 * part) : Math.floor(100 * part + 1e-9)) + " %";
/** An attribute as text; what JSON has no form for comes tagged (circuits/files/FORMAT.md). */
function worded(value) {
  if (value === null || value === undefined) return "none";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(+value.toPrecision(4));
  if (typeof value !== "object") return String(value);
  if ("$float" in value) return value.$float;
  const items = Array.isArray(value) ? value : value.$tuple;
  return items ? items.map(worded).join(", ") || "none" : JSON.stringify(value);
}

// ---------------------------------------------------------------- what is shown
const partsOn = edge => edge.parts.filter(part => !state.hidden.has(part.factor));
/** Edges are shown that lie on a whole path of edges of this prominence or more. */
const least = () => state.count ? edges[state.count - 1].onPath : Infinity;
function shownEdges() {
  let count = state.count;
  while (count && count < edges.length && edges[count].onPath === least()) count++;  // ties are shown together
  return edges.slice(0, count).filter(edge => partsOn(edge).length);
}
function shownNodes(shown) {
  const linked = new Set(shown.flatMap(edge => [edge.source, edge.target]));
  return new Set(nodes.filter(node => linked.has(node.index) || node.look === "end" || !node.degree).map(node => node.index));
}
/** All nodes on paths through a node, along the edges shown, and those edges. */
function paths(start, shown) {
  const reach = (from, to) => {
    const seen = new Set([start]), queue = [start];
    while (queue.length) {
      const node = queue.pop();
      for (const edge of shown) if (edge[from] === node && !seen.has(edge[to])) { seen.add(edge[to]); queue.push(edge[to]); }
    }
    return seen;
  };
  const down = reach("source", "target"), up = reach("target", "source");
  const on = edge => (down.has(edge.source) && down.has(edge.target)) || (up.has(edge.source) && up.has(edge.target));
  return {nodes: new Set([...down, ...up]), edges: new Set(shown.filter(on))};
}

// ---------------------------------------------------------------- where it stands
const GAP = 10, WIDEST_GAP = 26, PASS = 9, TOP = 40, MARGIN = 16;  // pixels: between nodes, for a passing edge, above, beside
const CENTRE = 0.5;  // pull to the middle of the page, beside 1 of the strongest edge of a layer
/** Stacks the visible items of each column in their order, each as near to its neighbours as the gaps allow. */
function place(shown, visible, width) {
  const active = new Set(shown), items = new Map(), stacks = [];
  for (const stack of data.stacks) {
    const column = stack.filter(key => typeof key === "number" ? visible.has(key) : active.has(edges[key[0]]));
    stacks.push(column.map(key => {
      const item = {size: typeof key === "number" ? data.height : PASS, y: 0, beside: []};
      items.set(typeof key === "number" ? key : `${key[0]}@${stacks.length}`, item);
      return item;
    }));
  }
  for (const edge of shown) {
    edge.stops = stopsOf(edge).map(key => items.get(key));
    for (let i = 1; i < edge.stops.length; i++) {
      edge.stops[i].beside.push([edge.stops[i - 1], edge.prominence + 0.02]);
      edge.stops[i - 1].beside.push([edge.stops[i], edge.prominence + 0.02]);
    }
  }
  const gap = gapFor(stacks, width);
  for (const stack of stacks) {
    let place = 0;
    stack.forEach((item, i) => { item.offset = place += i ? (item.size + stack[i - 1].size) / 2 + gap : 0; });
    stack.forEach(item => { item.y = item.offset - place / 2; });
  }
  for (let sweep = 0; sweep < 16; sweep++) for (const stack of sweep % 2 ? [...stacks].reverse() : stacks) settle(stack);
  return items;
}
/** Pixels between nodes: where the drawing is as wide as the page and not as high, its rows move apart. */
function gapFor(stacks, width) {
  const room = find("drawing"), height = room.clientHeight * Math.max(1, width / room.clientWidth) - TOP - MARGIN;
  const gaps = stacks.filter(stack => stack.length > 1)
    .map(stack => (height - stack.reduce((sum, item) => sum + item.size, 0)) / (stack.length - 1));
  return Math.min(WIDEST_GAP, Math.max(GAP, ...[Math.min(...gaps)].filter(Number.isFinite)));
}
function stopsOf(edge) {
  const from = nodes[edge.source].column, to = nodes[edge.target].column, stops = [edge.source], step = Math.sign(to - from);
  for (let column = from + step; step && column !== to; column += step) stops.push(`${edge.index}@${column}`);
  return [...stops, edge.target];
}
/** The closest places in least squares that keep order and gaps (pool adjacent violators). */
function settle(stack) {
  const blocks = [];
  for (const item of stack) {
    const weight = item.beside.reduce((sum, [, pull]) => sum + pull, 0) + CENTRE;
    const wish = item.beside.reduce((sum, [other, pull]) => sum + pull * other.y, 0) / weight;
    let block = {sum: wish - item.offset, items: [item]};
    while (blocks.length && blocks.at(-1).sum / blocks.at(-1).items.length > block.sum / block.items.length) {
      const before = blocks.pop();
      block = {sum: before.sum + block.sum, items: [...before.items, ...block.items]};
    }
    blocks.push(block);
  }
  for (const block of blocks) for (const item of block.items) item.y = block.sum / block.items.length + item.offset;
}

// ---------------------------------------------------------------- drawing
const marks = nodes.map(node => {
  const mark = make("g", {class: `node ${node.look}`, role: "button", tabindex: "-1", "aria-pressed": "false"});
  mark.setAttribute("aria-label", node.name + (node.of.effect == null ? "" : `, effect ${worded(node.of.effect)}`));
  const top = -data.height / 2, picture = node.picture;
  mark.append(make("rect", {x: -node.width / 2, y: top, width: node.width, height: data.height, rx: 6}));
  if (picture) mark.append(make("image", {x: -picture.width / 2, y: top + 4 + (data.tallest - picture.height) / 2, width: picture.width,
    height: picture.height, href: data.pictures[picture.index], preserveAspectRatio: "none"}));
  const text = make("text", {x: 0, y: picture ? -top - 9 : 0});
  text.textContent = node.label;
  mark.append(text);
  mark.dataset.node = node.name;
  return mark;
});
find("nodes").append(...marks);

const lineWidth = value => data.thinnest + (data.thickest - data.thinnest) * Math.sqrt(Math.abs(value || 0) / data.largest);
function curve(edge, shift) {
  let [x, y] = [edge.xs[0], edge.stops[0].y + shift];
  let path = `M${x.toFixed(1)},${y.toFixed(1)}`;
  for (let i = 1; i < edge.stops.length; i++) {
    const [nextX, nextY] = [edge.xs[i], edge.stops[i].y + shift], middle = edge.within ? x + 34 : (x + nextX) / 2;
    path += `C${middle.toFixed(1)},${y.toFixed(1)} ${middle.toFixed(1)},${nextY.toFixed(1)} ${nextX.toFixed(1)},${nextY.toFixed(1)}`;
    [x, y] = [nextX, nextY];
  }
  return path;
}
function columnsOf(visible) {
  const room = data.titles.map((title, i) => {
    const widest = Math.max(0, ...nodes.filter(node => node.column === i && visible.has(node.index)).map(node => node.width));
    return widest ? Math.max(widest, 7.4 * title.length) : 0;
  });
  const used = room.filter(width => width).length, taken = room.reduce((sum, width) => sum + width, 2 * MARGIN);
  const gap = Math.min(110, Math.max(30, (find("drawing").clientWidth - taken) / Math.max(used - 1, 1)));
  let left = MARGIN;
  const centres = room.map(width => { const centre = left + width / 2; left += width ? width + gap : 0; return centre; });
  return {centres, used: room.map(width => width > 0), width: used ? left - gap + MARGIN : 2 * MARGIN};
}
function draw() {
  const shown = shownEdges(), visible = shownNodes(shown), columns = columnsOf(visible), items = place(shown, visible, columns.width);
  const all = [...items.values()], top = Math.min(0, ...all.map(item => item.y - item.size / 2));
  const height = Math.max(0, ...all.map(item => item.y + item.size / 2)) - top + TOP + MARGIN;
  all.forEach(item => { item.y += TOP - top; });
  marks.forEach((mark, i) => {
    mark.style.display = visible.has(i) ? "" : "none";
    if (visible.has(i)) mark.setAttribute("transform", `translate(${columns.centres[nodes[i].column].toFixed(1)},${items.get(i).y.toFixed(1)})`);
  });
  find("titles").replaceChildren(...data.titles.flatMap((title, i) => {
    const text = make("text", {x: columns.centres[i], y: 20});
    text.textContent = title;
    return columns.used[i] ? [text] : [];
  }));
  find("edges").replaceChildren(...[...shown].reverse().flatMap(edge => drawEdge(edge, columns)));
  const picture = document.querySelector("#drawing svg");
  state.size = [columns.width, height];
  picture.setAttribute("viewBox", `0 0 ${columns.width.toFixed(0)} ${height.toFixed(0)}`);
  resize();
  if (state.picked !== null && !visible.has(state.picked)) state.picked = null;
  if (state.at === null || !visible.has(state.at)) state.at = [...visible][0] ?? null;
  Object.assign(state, {shown, visible, items});
  emphasise();
}
const colourOf = factor => `var(--factor-${factor.colour})`;
function drawEdge(edge, columns) {
  const [source, target] = [nodes[edge.source], nodes[edge.target]], side = Math.sign(target.column - source.column) || 1;
  const passed = stopsOf(edge).slice(1, -1).map(key => columns.centres[+key.split("@")[1]]);
  edge.within = source.column === target.column;
  edge.xs = [columns.centres[source.column] + side * source.width / 2, ...passed,
    columns.centres[target.column] - (edge.within ? -1 : side) * target.width / 2];
  const parts = partsOn(edge), widths = parts.map(part => lineWidth(part.value));
  let beside = -widths.reduce((sum, width) => sum + width, 0) / 2;
  return parts.map((part, i) => {
    const sign = part.value > 0 ? " raises" : part.value < 0 ? " lowers" : "";
    const path = make("path", {class: `edge${part.factor === null ? sign : ""}${edge.uncertain ? " uncertain" : ""}`,
      d: curve(edge, beside + widths[i] / 2), "stroke-width": widths[i].toFixed(2)});
    if (part.factor !== null) path.style.stroke = colourOf(data.factors[part.factor]);
    path.dataset.edge = edge.index;
    beside += widths[i];
    return path;
  });
}
function resize() {
  const picture = document.querySelector("#drawing svg");
  picture.setAttribute("width", (state.size[0] * state.zoom).toFixed(0));
  picture.setAttribute("height", (state.size[1] * state.zoom).toFixed(0));
}
function fit() {
  const room = find("drawing");
  state.zoom = Math.min(1.3, Math.max(0.5, Math.min(room.clientWidth / state.size[0], Math.max(room.clientHeight, 300) / state.size[1])));
  resize();
}
function emphasise() {
  const focus = state.picked === null ? null : paths(state.picked, state.shown);
  marks.forEach((mark, i) => {
    mark.classList.toggle("away", focus !== null && !focus.nodes.has(i));
    mark.setAttribute("aria-pressed", String(i === state.picked));
    mark.setAttribute("tabindex", i === state.at ? "0" : "-1");
  });
  for (const path of find("edges").children) {
    path.classList.toggle("away", focus !== null && !focus.edges.has(edges[path.dataset.edge]));
  }
  report(focus);
}
