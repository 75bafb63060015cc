// Colours of points: categories, numbers on viridis, changes on a diverging scale, and their legends.

import {el, figure, isDark, signed} from "./dom.js"

const PALETTE = [
  "#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#edc948", "#76b7b2", "#ff9da7", "#9c755f", "#8ab17d",
  "#5f7adb", "#d37295", "#a0cbe8", "#ffbe7d", "#86bcb6", "#d4a6c8", "#b6992d", "#499894", "#d7b5a6", "#79706e",
];
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const WARM_TO_COOL = ["#b4401f", "#e08a66", "#dcd9d4", "#6f9be0", "#2450b8"];
const WARM_TO_COOL_DARK = ["#ff8a66", "#b5654d", "#50555e", "#5d83cf", "#8fb4ff"];
const SHOWN = 40;
const MISSING = "#9aa0a8";

function mixed(stops) {
  const parts = stops.map((hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)));
  return Array.from({ length: 256 }, (_, k) => {
    const at = (k / 255) * (parts.length - 1), low = Math.min(Math.floor(at), parts.length - 2);
    const rgb = parts[low].map((value, c) => Math.round(value + (at - low) * (parts[low + 1][c] - value)));
    return `rgb(${rgb.join(",")})`;
  });
}

export function categoryColour(code) {
  return code < 0 ? MISSING : PALETTE[code % PALETTE.length];
}

/** The quantile q of finite values, ascending ones given. */
function quantile(ascending, q) {
  return ascending[Math.round(q * (ascending.length - 1))] ?? NaN;
}

function scaled(values, stops, low, high) {
  const table = mixed(stops), width = high - low || 1;
  return Array.from(values, (value) => Number.isFinite(value)
    ? table[Math.max(0, Math.min(255, Math.round((255 * (value - low)) / width)))] : MISSING);
}

/** {colours (t,), legend} of a column; the ends of the scale are the 1st and 99th percentiles. */
export function painted(facts, values) {
  if (facts.kind === "category") {
    const counts = new Map();
    for (const code of values) counts.set(code, (counts.get(code) ?? 0) + 1);
    const order = (code) => (code >= 0 && facts.categories.every((name) => /^\d+$/.test(name)) ? Number(facts.categories[code]) : code);
    const items = [...counts].sort((a, b) => (a[0] < 0) - (b[0] < 0) || order(a[0]) - order(b[0])).map(([code, size]) => (
      { code, size, name: code < 0 ? "missing" : facts.categories[code], colour: categoryColour(code) }));
    return { colours: Array.from(values, categoryColour), legend: { kind: "category", items } };
  }
  const ascending = Float32Array.from(values).filter(Number.isFinite).sort();
  const low = quantile(ascending, 0.01), high = quantile(ascending, 0.99);
  return { colours: scaled(values, VIRIDIS, low, high), legend: { kind: "number", low, high, stops: VIRIDIS, write: figure } };
}

/** Changes: grey at zero, cool for a gain and warm for a loss; the ends are the 99th percentile of the size. */
export function paintedChange(values) {
  const ascending = Float32Array.from(values, Math.abs).filter(Number.isFinite).sort();
  const end = quantile(ascending, 0.99) || quantile(ascending, 1) || 1;
  const stops = isDark() ? WARM_TO_COOL_DARK : WARM_TO_COOL;
  return { colours: scaled(values, stops, -end, end), legend: { kind: "number", low: -end, high: end, stops, write: signed } };
}

/** Which points a legend leaves visible: (t,) booleans, or null for all. */
export function visible(facts, values, hidden) {
  if (facts.kind !== "category" || !hidden.length) return null;
  const gone = new Set(hidden.map((code) => code - 1));  // "missing" is -1, and an address holds no minus
  return Array.from(values, (code) => !gone.has(code));
}

/** A legend: buttons that hide and show categories, or a colour bar. */
export function legendOf(name, legend, hidden, toggle) {
  if (legend.kind === "number") {
    return el("div", { class: "bar-legend", role: "img", "aria-label": `${name}: ${legend.write(legend.low)} to ${legend.write(legend.high)}` },
      el("span", { class: "gradient", style: { background: `linear-gradient(90deg, ${legend.stops.join(",")})` } }),
      el("span", { class: "ends" }, ...[0, 0.5, 1].map((at) => el("span", null, legend.write(legend.low + at * (legend.high - legend.low))))));
  }
  const rest = legend.items.length - SHOWN;
  return el("div", { class: "legend", role: "group", "aria-label": `Show or hide ${name}` },
    legend.items.slice(0, SHOWN).map((item) => el("button", {
      type: "button", "aria-pressed": String(!hidden.includes(item.code + 1)), onclick: (event) => toggle(item.code + 1, event),
    }, el("i", { style: { background: item.colour } }), el("span", null, item.name), el("small", null, item.size.toLocaleString("en")))),
    rest > 0 && el("span", { class: "quiet" }, `and ${rest} more`));
}
