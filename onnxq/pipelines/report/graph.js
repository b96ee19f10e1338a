// Draw the graph when it comes into view: placing some hundred nodes takes a moment.
/* global cytoscape, cytoscapeDagre */

const LEAST_ZOOM = 0.02, MOST_ZOOM = 3;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function look() {
  return [
    { selector: "node", style: {
      label: "data(label)", shape: "round-rectangle", height: 28,
      width: (node) => Math.min(node.data("label").length * 7 + 16, 260),
      "font-size": 12, "text-valign": "center", "text-max-width": 250, "text-wrap": "ellipsis",
      "background-color": (node) => colour(`--kind-${node.data("style")}`) || colour("--kind-other"),
      color: colour("--kind-ink"), "border-width": 0 } },
    { selector: "edge", style: {
      width: 1.2, "line-color": colour("--quiet"), "target-arrow-color": colour("--quiet"),
      "target-arrow-shape": "triangle", "arrow-scale": 0.8, "curve-style": "bezier" } },
    { selector: "node.found", style: { "border-width": 4, "border-color": colour("--bad") } },
    { selector: "node:selected", style: { "border-width": 4, "border-color": colour("--ink") } },
  ];
}

function elements(nodes) {
  const boxes = nodes.map((node, i) => ({ data: { id: `n${i}`, label: node.label, style: node.style } }));
  const arrows = nodes.flatMap((node, i) =>
    node.reads.map((from) => ({ data: { id: `e${from}-${i}`, source: `n${from}`, target: `n${i}` } })));
  return [...boxes, ...arrows];
}

function described([name, operator, kind, sqnr, before, after]) {
  const parts = [`${operator} ${name}: ${kind}`];
  if (sqnr !== null) parts.push(`SQNR ${sqnr} dB`);
  if (after !== undefined) parts.push(`${before} ms in float, ${after} ms now`);
  return parts.join(", ");
}

function show(place, node) {
  const list = document.createElement("ul");
  for (const member of node.members) {
    const item = document.createElement("li");
    item.textContent = described(member);
    list.append(item);
  }
  place.replaceChildren(list);
}

function control(parent, label, act) {
  const button = document.createElement("button");
  button.textContent = label;
  button.addEventListener("click", act);
  parent.append(button);
}

function draw(root) {
  const nodes = JSON.parse(root.querySelector("script").textContent);
  const canvas = root.querySelector(".canvas"), chosen = root.querySelector(".chosen");
  const graph = cytoscape({
    container: canvas, elements: elements(nodes), style: look(), minZoom: LEAST_ZOOM, maxZoom: MOST_ZOOM,
    userZoomingEnabled: false,  // the wheel scrolls the page until the graph is clicked
    layout: { name: "dagre", rankDir: "TB", nodeSep: 14, rankSep: 34, ranker: "tight-tree", animate: false },
  });
  const start = () => {
    graph.fit(undefined, 20);
    if (graph.zoom() < 0.35) {  // a long graph: begin at its top, readable
      graph.zoom(0.7);
      graph.center(graph.nodes()[0]);
      graph.panBy({ x: 0, y: 40 - graph.nodes()[0].renderedPosition("y") });
    }
  };
  start();
  graph.on("tap", () => graph.userZoomingEnabled(true));
  canvas.addEventListener("mouseleave", () => graph.userZoomingEnabled(false));
  graph.on("select", "node", (event) => show(chosen, nodes[Number(event.target.id().slice(1))]));
  document.addEventListener("themechange", () => graph.style(look()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => graph.style(look()));
  addControls(root, graph, nodes, start);
  root.graph = graph;
}

function addControls(root, graph, nodes, start) {
  const bar = document.createElement("div");
  bar.className = "controls";
  const middle = () => ({ x: graph.width() / 2, y: graph.height() / 2 });
  const zoom = (factor) => graph.zoom({ level: graph.zoom() * factor, renderedPosition: middle() });
  const box = document.createElement("input");
  box.type = "search";
  box.placeholder = "find a node by name or operator";
  box.ariaLabel = box.placeholder;
  const told = document.createElement("span");
  let found = [], next = 0;
  box.addEventListener("input", () => {
    const wanted = box.value.trim().toLowerCase();
    const fits = ([name, operator]) => `${operator} ${name}`.toLowerCase().includes(wanted);
    found = wanted ? nodes.flatMap((node, i) => (node.members.some(fits) ? [`#n${i}`] : [])) : [];
    next = 0;
    graph.nodes().removeClass("found");
    for (const id of found) graph.$(id).addClass("found");
    told.textContent = wanted ? `${found.length} found` : "";
    if (found.length) step();
  });
  const step = () => {
    if (!found.length) return;
    const node = graph.$(found[next++ % found.length]);
    graph.nodes().unselect();
    node.select();
    graph.zoom(Math.max(graph.zoom(), 0.8));
    graph.center(node);
  };
  box.addEventListener("keydown", (event) => event.key === "Enter" && step());
  bar.append(box);
  control(bar, "next", step);
  control(bar, "+", () => zoom(1.4));
  control(bar, "−", () => zoom(1 / 1.4));
  control(bar, "whole", () => graph.fit(undefined, 20));
  control(bar, "start", start);
  bar.append(told);
  root.querySelector(".canvas").before(bar);
}

cytoscape.use(cytoscapeDagre);
const watcher = new IntersectionObserver((seen) => {
  for (const one of seen) {
    if (!one.isIntersecting) continue;
    watcher.unobserve(one.target);
    draw(one.target);
  }
}, { rootMargin: "200px" });
for (const root of document.querySelectorAll(".graph")) watcher.observe(root);
