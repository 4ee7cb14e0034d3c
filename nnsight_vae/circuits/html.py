"""A circuit as one interactive page: inline SVG and script, nothing fetched, opens from disk years later."""

from __future__ import annotations

import json
import math
from html import escape
from string import Template

import networkx as nx

from nnsight_vae.circuits.layout import strength
from nnsight_vae.circuits.records import Records
from nnsight_vae.circuits.scene import BOX_HEIGHT, Box, Curve, scene
from nnsight_vae.circuits.style import edge_colour

_STEPS = 200  # positions of the threshold slider
_MOST_EDGES = 200  # shown at first; the slider shows the rest


def page(records: Records, graph: nx.DiGraph) -> str:
    """The page: nodes by layer, attributes on hover, focus on click, a slider that hides weak edges.

    Args:
        records: the attributes shown, as JSON data.
        graph: the same graph, laid out as `plots.plot_circuit` does but whole.
    """
    drawing = scene(graph) if graph else None
    numbers = {node: i for i, (node, _) in enumerate(records.nodes)}
    curves = drawing.curves if drawing else []
    attributes = {(source, target): each for source, target, each in records.edges}
    details = {
        "nodes": [{"name": node, "of": each} for node, each in records.nodes],
        "edges": [
            {
                "name": f"{curve.source} → {curve.target}",
                "ends": [numbers[curve.source], numbers[curve.target]],
                "size": abs(curve.strength or 0.0),
                "of": attributes[curve.source, curve.target],
            }
            for curve in curves
        ],
    }
    strengths = sorted(abs(s) for *_, data in graph.edges(data=True) if (s := strength(data)))
    marks = [_edge(i, curve, numbers) for i, curve in enumerate(curves)]
    marks += [_node(numbers[box.node], box) for box in (drawing.boxes if drawing else [])]
    marks += [
        f'<text class="title" x="{x:.1f}" y="18">{escape(title)}</text>'
        for x, title in (drawing.titles if drawing else [])
    ]
    title = " · ".join(str(graph.graph[name]) for name in ("estimand", "method") if graph.graph.get(name))
    return _PAGE.substitute(
        title=escape(title or "Circuit"),
        width=math.ceil(drawing.width if drawing else 100),
        height=math.ceil(drawing.height if drawing else 40),
        marks="\n".join(marks),
        steps=_STEPS,
        largest=json.dumps(strengths[-1] if strengths else 0.0),
        start=math.ceil(_STEPS * strengths[-_MOST_EDGES] / strengths[-1]) if len(strengths) > _MOST_EDGES else 0,
        provenance=escape(json.dumps(records.graph, indent=1, ensure_ascii=False)),
        # "</" would end the script element wherever it stands in a string
        details=json.dumps(details).replace("</", "<\\/").replace("<!--", "<\\u0021--"),
    )


def _edge(number: int, curve: Curve, numbers: dict[str, int]) -> str:
    start = curve.segments[0][0]
    path = f"M{start[0]:.1f},{start[1]:.1f}" + "".join(
        "C" + " ".join(f"{x:.1f},{y:.1f}" for x, y in segment[1:]) for segment in curve.segments
    )
    dash = ' stroke-dasharray="5 3"' if curve.uncertain else ""
    return (
        f'<path class="edge" data-edge="{number}" d="{path}" stroke="{edge_colour(curve.strength)}" '
        f'stroke-width="{curve.width:.2f}"{dash}/>'
    )


def _node(number: int, box: Box) -> str:
    left, top = box.x - box.width / 2, box.y - BOX_HEIGHT / 2
    return (
        f'<g class="node" data-node="{number}" tabindex="0" role="button" aria-label="{escape(str(box.node))}">'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" height="{BOX_HEIGHT}" rx="6" fill="{box.fill}"/>'
        f'<text x="{box.x:.1f}" y="{box.y:.1f}">{escape(box.label)}</text></g>'
    )


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
:root { --ink: #1b1f24; --faint: #6b7280; --page: #fff; --line: #d5d8dd; }
body { margin: 0; font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page); }
header { display: flex; flex-wrap: wrap; gap: 4px 28px; align-items: center; padding: 12px 20px; }
header { border-bottom: 1px solid var(--line); }
h1 { font-size: 15px; margin: 0; }
label { color: var(--faint); } input { width: 240px; vertical-align: middle; }
.key { display: inline-block; width: 22px; border-top: 3px solid; vertical-align: middle; margin: 0 4px 0 10px; }
main { display: flex; align-items: flex-start; }
#drawing { flex: 1; overflow: auto; padding: 8px; }
aside { width: 300px; padding: 12px 20px; position: sticky; top: 0; max-height: 92vh; overflow: auto; }
aside h2 { font-size: 14px; overflow-wrap: anywhere; margin: 0 0 8px; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 12px; margin: 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
pre { font-size: 12px; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--faint); }
svg text { font: 11px system-ui, sans-serif; text-anchor: middle; dominant-baseline: central; fill: #1b1f24; }
svg text { pointer-events: none; } svg text.title { font-weight: 600; fill: var(--faint); }
.node rect { stroke: #9aa1ab; } .node { cursor: pointer; outline: none; }
.node:hover rect, .node:focus rect, .node.picked rect { stroke: var(--ink); stroke-width: 2; }
.node, .edge { transition: opacity .12s; }
.edge { fill: none; opacity: .85; stroke-linecap: butt; } .edge:hover { opacity: 1; filter: brightness(.8); }
.away { opacity: .07; } .hidden { display: none; } .idle { opacity: .3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --faint: #9aa1ab; --page: #16181c; --line: #33373d; }
}
@media print { header label, aside { display: none; } }
</style>
</head>
<body>
<header>
<h1>$title</h1>
<label>hide edges with |effect| below <input id="threshold" type="range" min="0" max="$steps" value="$start">
<output id="below">0</output></label>
<span id="count" role="status"></span>
<span><i class="key" style="color:#0b6cb8"></i>raises<i class="key" style="color:#d8600a"></i>lowers
<i class="key" style="color:#6b7280;border-top-style:dashed"></i>interval covers 0</span>
</header>
<main>
<div id="drawing"><svg width="$width" height="$height" viewBox="0 0 $width $height" role="img" aria-label="$title">
$marks
</svg></div>
<aside><div id="details"><p>Point at a node or an edge for its attributes. Click a node to see only its
paths; click it again, or press Escape, to see all.</p></div>
<details><summary>About this graph</summary><pre>$provenance</pre></details></aside>
</main>
<script type="application/json" id="data">$details</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent), largest = $largest, steps = $steps;
const edges = [...document.querySelectorAll(".edge")], nodes = [...document.querySelectorAll(".node")];
const slider = document.getElementById("threshold");
let picked = null;
const shown = value => value === null ? "none" : typeof value === "number" ? String(+value.toPrecision(4))
  : typeof value === "object" ? JSON.stringify(value) : String(value);
function describe(item) {
  const box = document.getElementById("details"), name = document.createElement("h2");
  const list = document.createElement("dl");
  name.textContent = item.name;
  for (const [key, value] of Object.entries(item.of)) {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = key; text.textContent = shown(value); list.append(term, text);
  }
  box.replaceChildren(name, list);
}
function paths(start) {
  const kept = new Set([start]), ways = [[1, 0], [0, 1]];
  for (const [from, to] of ways) {
    const queue = [start], seen = new Set(queue);
    while (queue.length) {
      const node = queue.pop();
      data.edges.forEach(edge => {
        if (edge.ends[from] === node && edge.on && !seen.has(edge.ends[to])) {
          seen.add(edge.ends[to]); kept.add(edge.ends[to]); queue.push(edge.ends[to]);
        }
      });
    }
    ways[from].reached = seen;
  }
  return {kept, on: edge => ways.some(way => way.reached.has(edge.ends[0]) && way.reached.has(edge.ends[1]))};
}
function draw() {
  const below = largest * slider.value / steps, linked = new Set();
  let count = 0;
  data.edges.forEach(edge => {
    edge.on = edge.size >= below;
    if (edge.on) { count++; edge.ends.forEach(end => linked.add(end)); }
  });
  const focus = picked === null ? null : paths(picked);
  edges.forEach(path => {
    const edge = data.edges[path.dataset.edge];
    path.classList.toggle("hidden", !edge.on);
    path.classList.toggle("away", focus !== null && !focus.on(edge));
  });
  nodes.forEach(node => {
    const id = +node.dataset.node;
    node.classList.toggle("idle", focus === null && !linked.has(id));
    node.classList.toggle("away", focus !== null && !focus.kept.has(id));
    node.classList.toggle("picked", id === picked);
  });
  document.getElementById("below").textContent = below.toPrecision(2);
  document.getElementById("count").textContent = count + " of " + data.edges.length + " edges";
}
function pick(id) { picked = picked === id ? null : id; draw(); }
nodes.forEach(node => {
  const id = +node.dataset.node;
  node.addEventListener("pointerenter", () => describe(data.nodes[id]));
  node.addEventListener("focus", () => describe(data.nodes[id]));
  node.addEventListener("click", () => pick(id));
  node.addEventListener("keydown", event => { if (event.key === "Enter") pick(id); });
});
edges.forEach(path => path.addEventListener("pointerenter", () => describe(data.edges[path.dataset.edge])));
document.addEventListener("keydown", event => { if (event.key === "Escape" && picked !== null) pick(picked); });
slider.addEventListener("input", draw);
draw();
</script>
</body>
</html>
""")
