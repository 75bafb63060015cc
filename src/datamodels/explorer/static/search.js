// The search box: numbers, ids, labels and texts of both sides, as a list that arrow keys walk.

import {count, el} from "./dom.js"
import {go} from "./state.js"
import {nounOf, thumb, wording} from "./cards.js"

const FOUND = 8;  // shown of each side

/** Indices whose number, id, label or text fits: exact ones first. */
function matches(words, size, text) {
  const exact = [], begin = [], rest = [], needle = text.toLowerCase();
  for (let i = 0; i < size; i++) {
    const id = words.id(i).toLowerCase(), label = words.label(i).toLowerCase();
    if (id === needle || String(i) === needle) exact.push(i);
    else if (id.startsWith(needle) || label === needle) begin.push(i);
    else if (id.includes(needle) || label.includes(needle) || words.text(i).toLowerCase().includes(needle)) rest.push(i);
  }
  return [...exact, ...begin, ...rest];
}

export function searchBox(source) {
  const list = el("ul", { id: "found", role: "listbox", "aria-label": "found", hidden: true });
  let active = -1, wanted = 0;
  const close = () => {
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const option = (k, act, ...content) => el("li", { role: "option", id: `found-${k}`, "aria-selected": "false", onmousedown: (event) => event.preventDefault(), onclick: () => {
    close();
    input.blur();
    act();
  } }, ...content);
  const fill = async () => {
    const text = input.value.trim(), mine = ++wanted;
    if (!text) return close();
    const sides = ["targets", "train"], words = await Promise.all(sides.map((side) => wording(source, side)));
    if (mine !== wanted) return undefined;
    const found = sides.map((side, k) => matches(words[k], side === "targets" ? source.about.n_targets : source.about.n_train, text));
    let at = 0;
    const options = sides.flatMap((side, k) => found[k].slice(0, FOUND).map((i) => option(at++, () => go({ view: side === "targets" ? "target" : "train", index: i }),
      thumb(source, side, i, 28), el("span", null, el("b", null, nounOf(side, i)), ` ${words[k].label(i)}`, words[k].id(i) !== String(i) && el("small", null, ` ${words[k].id(i)}`), words[k].text(i) && el("small", { class: "snippet" }, words[k].text(i))))));
    if (found[0].length > 1) options.push(option(at++, () => go({ view: "map", selection: [...found[0]].sort((a, b) => a - b) }), el("span", null, `Select the ${count(found[0].length, "matching target")} on the map`)));
    list.replaceChildren(...(options.length ? options : [el("li", { class: "quiet" }, "nothing found")]));
    list.hidden = false;
    active = -1;
    input.setAttribute("aria-expanded", "true");
    return undefined;
  };
  const walk = (step) => {
    const options = list.querySelectorAll("[role=option]");
    if (!options.length) return;
    options[active]?.setAttribute("aria-selected", "false");
    active = (active + step + options.length) % options.length;
    options[active].setAttribute("aria-selected", "true");
    options[active].scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", options[active].id);
  };
  const input = el("input", {
    type: "search", id: "search", placeholder: "Search ids, labels, texts   /", role: "combobox", "aria-label": "search targets and training examples", "aria-expanded": "false", "aria-controls": "found", "aria-autocomplete": "list", autocomplete: "off",
    oninput: fill, onfocus: fill, onblur: close,
    onkeydown: async (event) => {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        walk(event.key === "ArrowDown" ? 1 : active < 0 ? 0 : -1);
      }
      if (event.key === "Enter") {
        if (list.hidden) await fill();
        list.querySelectorAll("[role=option]")[Math.max(0, active)]?.click();
      }
      if (event.key === "Escape") {
        event.stopPropagation();
        input.value = "";
        close();
        input.blur();
      }
    },
  });
  return el("div", { class: "search" }, input, list);
}
