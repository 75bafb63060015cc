// Elements, numbers and downloads. Data becomes text nodes only, so no label is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An element; attributes: functions are listeners (onclick), style is an object, null and false are left out. */
export function el(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** Text for Plotly, which reads its strings as HTML. */
export function escaped(text) {
  return String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

/** A number in three figures, with a true minus; `full` keeps zeros at its end, for columns of numbers. */
export function figure(value, full = false) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value), three = size.toPrecision(3);
  let text = size >= 1000 ? Math.round(size).toLocaleString("en") : full && size ? three : String(Number(three));
  if (size && size < 1e-4) text = size.toExponential(1);
  return value < 0 ? `−${text}` : text;
}

export function signed(value) {
  return value > 0 ? `+${figure(value, true)}` : figure(value, true);
}

/** A bar that fills `share` of its length. */
export function shareBar(share, name) {
  return el("span", { class: "share", role: "img", "aria-label": `${name} ${Math.round(100 * share)} %` }, el("i", { style: { width: `${100 * share}%` } }));
}

export function count(value, one, many = `${one}s`) {
  return `${value.toLocaleString("en")} ${value === 1 ? one : many}`;
}

/** Tells a screen reader what has changed. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

export function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

export function save(name, content, type) {
  const url = content.startsWith?.("data:") ? content : URL.createObjectURL(new Blob([content], { type }));
  el("a", { href: url, download: name }).click();
  if (url.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Rows of cells as CSV (RFC 4180). */
export function csv(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined || Number.isNaN(value) ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

export function saveCsv(name, rows) {
  save(name, csv(rows), "text/csv;charset=utf-8");
}

/** Positions of the k largest scores, largest first; those that are not finite never count. */
export function largest(scores, k) {
  const order = [];
  for (let i = 0; i < scores.length; i++) if (Number.isFinite(scores[i])) order.push(i);
  return order.sort((a, b) => scores[b] - scores[a] || a - b).slice(0, k);
}
