// Small charts as SVG: they draw in a millisecond and take their colours from the style sheet.

import {el, figure, svg} from "./dom.js"

const WIDE = 390;
const EDGE = { left: 54, right: 12, top: 12, bottom: 38 };

/** Round numbers between low and high, about `wanted` of them. */
function ticks(low, high, wanted = 5) {
  const raw = (high - low) / wanted || 1, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((k) => k * size).find((s) => s >= raw) ?? raw, out = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) out.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return out;
}

function logTicks(low, high) {
  const out = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const k of high / low < 30 ? [1, 2, 5] : [1]) if (k * 10 ** power >= low * 0.999 && k * 10 ** power <= high * 1.001) out.push(k * 10 ** power);
  }
  return out.length > 1 ? out : [low, high];
}

/** An empty chart: {x, y} map data to the picture, `plot` takes what is drawn, `node` is the figure. */
function framed({ title, x: [x0, x1], y: [y0, y1], xlabel, ylabel, log = false, tall = 200, yticks = true }) {
  const bottom = tall - EDGE.bottom, across = log ? Math.log : (value) => value;
  const x = (value) => EDGE.left + ((across(value) - across(x0)) / (across(x1) - across(x0) || 1)) * (WIDE - EDGE.left - EDGE.right);
  const y = (value) => bottom - ((value - y0) / (y1 - y0 || 1)) * (bottom - EDGE.top);
  const text = (at, content, more) => svg("text", { x: at[0], y: at[1], ...more }, content);
  const plot = svg("g", null);
  const node = el("figure", { class: "chart" }, svg("svg", { viewBox: `0 0 ${WIDE} ${tall}`, role: "img", "aria-label": title },
    (log ? logTicks(x0, x1) : ticks(x0, x1)).map((at) => [
      svg("line", { class: "grid", x1: x(at), x2: x(at), y1: EDGE.top, y2: bottom }),
      text([x(at), bottom + 15], figure(at), { "text-anchor": "middle" })]),
    yticks && ticks(y0, y1, 4).map((at) => [
      svg("line", { class: "grid", x1: EDGE.left, x2: WIDE - EDGE.right, y1: y(at), y2: y(at) }),
      text([EDGE.left - 6, y(at) + 4], figure(at), { "text-anchor": "end" })]),
    text([(EDGE.left + WIDE - EDGE.right) / 2, tall - 6], xlabel, { "text-anchor": "middle", class: "axis" }),
    ylabel && text([12, (EDGE.top + bottom) / 2], ylabel, { "text-anchor": "middle", class: "axis", transform: `rotate(-90 12 ${(EDGE.top + bottom) / 2})` }),
    plot), el("figcaption", null, title));
  return { node, plot, x, y, bottom };
}

/** Bars of counts over [low, high], with named vertical rules. */
export function histogram({ title, counts, low, high, rules = [], xlabel, ylabel = "" }) {
  const most = Math.max(1, ...counts), { node, plot, x, y, bottom } = framed({ title, x: [low, high], y: [0, most * 1.2], xlabel, ylabel });
  const width = (high - low) / counts.length;
  plot.append(...counts.map((size, k) => svg("rect", {
    class: "column", x: x(low + k * width) + 0.5, width: Math.max(0.5, x(low + width) - x(low) - 1), y: y(size), height: bottom - y(size),
  }, svg("title", null, `${figure(low + k * width)} to ${figure(low + (k + 1) * width)}: ${size}`))));
  for (const rule of rules) {
    if (rule.at < low || rule.at > high) continue;
    const right = x(rule.at) > WIDE * 0.7;
    plot.append(svg("line", { class: "rule", x1: x(rule.at), x2: x(rule.at), y1: EDGE.top, y2: bottom }),
      svg("text", { x: x(rule.at) + (right ? -5 : 5), y: EDGE.top + 11, "text-anchor": right ? "end" : "start", class: "strong" }, rule.name));
  }
  return node;
}

export function binned(values, bins = 40) {
  const finite = Array.from(values).filter(Number.isFinite);
  let low = Infinity, high = -Infinity;
  for (const value of finite) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (!finite.length) return { counts: [0], low: 0, high: 1 };
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const counts = new Array(bins).fill(0);
  for (const value of finite) counts[Math.min(bins - 1, Math.floor((bins * (value - low)) / (high - low)))]++;
  return { counts, low, high };
}

function span(values, pad = 0.05) {
  const finite = values.filter(Number.isFinite), low = Math.min(...finite), high = Math.max(...finite);
  const more = (high - low || Math.abs(high) || 1) * pad;
  return [low - more, high + more];
}

/** Lines with markers and, where given, bands. `series`: {x, y, low?, high?, estimated?}. */
export function lines({ title, series, xlabel, ylabel, log = false, level = null, chosen = null, zero = false }) {
  const xs = series.flatMap((s) => s.x), ys = series.flatMap((s) => [...s.y, ...(s.low ?? []), ...(s.high ?? [])]);
  if (level) ys.push(level.at);
  if (zero) ys.push(0);
  const { node, plot, x, y, bottom } = framed({ title, x: log ? [Math.min(...xs), Math.max(...xs)] : span(xs, 0), y: span(ys), xlabel, ylabel, log });
  const path = (px, py) => px.map((value, k) => `${x(value).toFixed(1)},${y(py[k]).toFixed(1)}`);
  for (const s of series) {
    if (s.low) plot.append(svg("polygon", { class: "band", points: [...path(s.x, s.high), ...path(s.x, s.low).reverse()].join(" ") }));
    plot.append(svg("polyline", { class: s.estimated ? "line estimated" : "line", points: path(s.x, s.y).join(" ") }));
    if (!s.estimated) plot.append(...s.x.map((value, k) => svg("circle", { class: "dot", cx: x(value), cy: y(s.y[k]), r: 2.6 }, svg("title", null, `${figure(value)}: ${figure(s.y[k])}`))));
  }
  if (level) {
    plot.append(svg("line", { class: "level", x1: EDGE.left, x2: WIDE - EDGE.right, y1: y(level.at), y2: y(level.at) }),
      svg("text", { x: EDGE.left + 4, y: y(level.at) + 13, class: "strong" }, level.name));
  }
  if (chosen !== null) {
    plot.append(svg("line", { class: "rule", x1: x(chosen), x2: x(chosen), y1: EDGE.top, y2: bottom }),
      svg("text", { x: x(chosen) + 5, y: EDGE.top + 11, class: "strong" }, "chosen"));
  }
  return node;
}

/** Predicted against actual, with the intervals of both and the line where both are equal. */
export function dots({ title, predicted, actual, low, high, left, right, xlabel, ylabel }) {
  const ends = span([predicted, actual, low, high, left, right].flatMap((values) => values ?? []));
  const { node, plot, x, y } = framed({ title, x: ends, y: ends, xlabel, ylabel, tall: 350 });
  plot.append(svg("line", { class: "level", x1: x(ends[0]), x2: x(ends[1]), y1: y(ends[0]), y2: y(ends[1]) }));
  predicted.forEach((value, k) => {
    if (low && Number.isFinite(low[k])) plot.append(svg("line", { class: "error", x1: x(value), x2: x(value), y1: y(low[k]), y2: y(high[k]) }));
    if (left && Number.isFinite(left[k])) plot.append(svg("line", { class: "error across", x1: x(left[k]), x2: x(right[k]), y1: y(actual[k]), y2: y(actual[k]) }));
    plot.append(svg("circle", { class: "dot", cx: x(value), cy: y(actual[k]), r: 2.8 }));
  });
  return node;
}
