// The map of points: Plotly's WebGL scatter with our own hover card, ring, keyboard and tools.

import {el, escaped, isDark, save, say} from "./dom.js"

const TOOLS = [["pan", "Move", "drag moves the map, the wheel zooms"], ["lasso", "Select freely", "draw around points to select them"], ["select", "Select a box", "drag a box to select points"]];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function extent(points, offset) {
  let low = Infinity, high = -Infinity;
  for (let k = offset; k < points.length; k += 2) {
    if (!Number.isFinite(points[k])) continue;
    low = Math.min(low, points[k]);
    high = Math.max(high, points[k]);
  }
  const pad = (high - low || 1) * 0.05;
  return [low - pad, high + pad];
}

/** `given`: points Float32Array (t, 2), colours (t,), shown (t,) booleans or null, name, label(i), card(i), chosen, selection, choose(i), open(i), select(list), legend. */
export class PointMap {
  constructor(given) {
    Object.assign(this, given);
    this.x = Array.from({ length: this.points.length / 2 }, (_, i) => this.points[2 * i]);
    this.y = Array.from(this.x, (_, i) => this.points[2 * i + 1]);
    this.home = { x: extent(this.points, 0), y: extent(this.points, 1) };
    this.plot = el("div", { class: "plot" });
    this.ring = el("i", { class: "ring", hidden: true });
    this.box = el("div", {
      class: "map-box", tabindex: "0", role: "application", "aria-label": `${this.name}. Arrow keys move to the nearest point in that direction, Enter opens it.`,
      onkeydown: (event) => this.key(event),
    }, this.plot, this.ring);
    this.tools = el("div", { class: "tools", role: "toolbar", "aria-label": "map tools" },
      this.select && TOOLS.map(([mode, name, help]) => el("button", { type: "button", title: help, "data-mode": mode, "aria-pressed": String(mode === "pan"), onclick: () => this.mode(mode) }, name)),
      el("button", { type: "button", title: "show all points", onclick: () => this.reset() }, "Reset"),
      el("span", { class: "gap" }),
      ["png", "svg"].map((kind) => el("button", { type: "button", title: `download the map as ${kind.toUpperCase()}`, onclick: () => this.picture(kind) }, kind.toUpperCase())));
    this.node = el("div", { class: "map" }, this.tools, this.box);
  }

  get size() {
    return Math.max(3.5, Math.min(10, 190 / Math.sqrt(this.x.length)));
  }

  trace() {
    const seen = (values) => (this.shown ? values.map((value, i) => (this.shown[i] ? value : null)) : values);
    return {
      type: "scattergl", mode: "markers", x: seen(this.x), y: seen(this.y), hoverinfo: "none", showlegend: false,
      marker: { size: this.size, color: this.colours, opacity: 0.9 },
      selectedpoints: this.selection?.length ? this.selection : null, unselected: { marker: { opacity: 0.12 } },
    };
  }

  layout() {
    const axis = (range) => ({ range: [...range], visible: false, fixedrange: false, zeroline: false });
    return {
      margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", dragmode: "pan",
      xaxis: axis(this.home.x), yaxis: axis(this.home.y), showlegend: false, newselection: { line: { color: isDark() ? "#fff" : "#222", width: 1 } },
    };
  }

  /** Draws; the node must be in the page. */
  async mount() {
    await Plotly.newPlot(this.plot, [this.trace()], this.layout(), { responsive: true, displayModeBar: false, scrollZoom: true, doubleClick: false });
    const on = (name, act) => this.plot.on(name, act), card = document.getElementById("card");
    on("plotly_hover", (event) => this.hover(event, card));
    on("plotly_unhover", () => (card.hidden = true));
    on("plotly_click", (event) => {
      const i = event.points[0].pointIndex;
      card.hidden = true;
      if (i === this.chosen) this.open(i);
      else this.move(i);
    });
    on("plotly_selected", (event) => event && this.select?.(event.points.map((point) => point.pointIndex)));
    for (const name of ["plotly_relayout", "plotly_relayouting", "plotly_afterplot"]) on(name, () => this.place());
    this.place();
  }

  hover(event, card) {
    const { clientX, clientY } = event.event;
    card.replaceChildren(...this.card(event.points[0].pointIndex));
    card.hidden = false;
    card.style.left = `${Math.max(4, Math.min(clientX + 16, innerWidth - card.offsetWidth - 8))}px`;
    card.style.top = `${Math.max(4, Math.min(clientY + 16, innerHeight - card.offsetHeight - 8))}px`;
  }

  /** New colours, visible points or selection. */
  repaint(changes) {
    Object.assign(this, changes);
    return Plotly.react(this.plot, [this.trace()], this.plot.layout);
  }

  mode(mode) {
    for (const button of this.tools.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    return Plotly.relayout(this.plot, { dragmode: mode });
  }

  reset() {
    return Plotly.relayout(this.plot, { "xaxis.range": [...this.home.x], "yaxis.range": [...this.home.y], selections: [] });
  }

  /** Where point i is in the box, in pixels. */
  pixel(i) {
    const { xaxis, yaxis } = this.plot.layout ?? this.layout(), share = (value, [low, high]) => (value - low) / (high - low);
    return [share(this.x[i], xaxis.range) * this.box.clientWidth, (1 - share(this.y[i], yaxis.range)) * this.box.clientHeight];
  }

  place() {
    this.ring.hidden = this.chosen === null || this.chosen === undefined;
    if (this.ring.hidden) return;
    const [left, top] = this.pixel(this.chosen), size = this.size + 12;
    this.ring.hidden = left < 0 || top < 0 || left > this.box.clientWidth || top > this.box.clientHeight;
    Object.entries({ left, top, width: size, height: size }).forEach(([name, value]) => this.ring.style.setProperty(name, `${value}px`));
  }

  move(i) {
    this.chosen = i;
    this.place();
    say(this.label(i));
    this.choose(i);
  }

  key(event) {
    if (event.key === "Enter" && event.target === this.box && Number.isInteger(this.chosen)) this.open(this.chosen);
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    const next = this.nearest(ARROWS[event.key]);
    if (next !== null) this.move(next);
  }

  /** The nearest visible point in a direction: along it distance counts once, across it twice. */
  nearest([right, up]) {
    const wide = this.home.x[1] - this.home.x[0], high = this.home.y[1] - this.home.y[0];
    const none = !Number.isInteger(this.chosen);
    const from = none ? [(this.home.x[0] + this.home.x[1]) / 2, (this.home.y[0] + this.home.y[1]) / 2] : [this.x[this.chosen], this.y[this.chosen]];
    let best = null, least = Infinity;
    for (let i = 0; i < this.x.length; i++) {
      if (i === this.chosen || (this.shown && !this.shown[i])) continue;
      const dx = (this.x[i] - from[0]) / wide, dy = (this.y[i] - from[1]) / high;
      const along = dx * right + dy * up, across = Math.abs(dx * up) + Math.abs(dy * right);
      const cost = none ? Math.hypot(dx, dy) : along > 1e-9 && across <= along * 1.5 ? along + 2 * across : Infinity;
      if (cost < least) [best, least] = [i, cost];
    }
    return best;
  }

  /** A file with a legend: Plotly's strings are HTML, so names are escaped. */
  async picture(kind) {
    const ink = isDark() ? "#e6e8ec" : "#1d2128", legend = this.legend, extra = legend?.kind === "category"
      ? legend.items.slice(0, 40).map((item) => ({ type: "scatter", mode: "markers", x: [null], y: [null], name: escaped(item.name), marker: { size: 9, color: item.colour } }))
      : legend ? [{ type: "scatter", mode: "markers", x: [null], y: [null], showlegend: false, marker: {
        color: [0], cmin: legend.low, cmax: legend.high, showscale: true, colorbar: { title: { text: escaped(this.colourName ?? "") }, thickness: 12 },
        colorscale: legend.stops.map((colour, k) => [k / (legend.stops.length - 1), colour]) } }] : [];
    const layout = { ...this.layout(), ...this.ranges(), width: 1200, height: 800, margin: { l: 20, r: 170, t: 50, b: 20 }, showlegend: legend?.kind === "category",
      title: { text: escaped(this.name), font: { size: 16 } }, font: { color: ink, family: "system-ui, sans-serif" }, paper_bgcolor: isDark() ? "#14161a" : "#ffffff" };
    const url = await Plotly.toImage({ data: [this.trace(), ...extra], layout }, { format: kind, width: 1200, height: 800, scale: 2 });
    save(`map.${kind}`, url);
    return url;
  }

  ranges() {
    const { xaxis, yaxis } = this.plot.layout;
    return { xaxis: { range: [...xaxis.range], visible: false }, yaxis: { range: [...yaxis.range], visible: false } };
  }
}
