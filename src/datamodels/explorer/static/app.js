// Entry: finds the data, draws the frame, and draws the view that the address bar names.

import {el, isDark, say} from "./dom.js"
import {addressOf, go, link, onState, startState, state} from "./state.js"
import {HttpSource} from "./source.js"
import {FileSource} from "./file.js"
import {wording} from "./cards.js"
import {choice, mapView} from "./map.js"
import {targetView} from "./target.js"
import {trainView} from "./train.js"
import {groupsView} from "./groups.js"
import {whatifView} from "./whatif.js"
import {compareView} from "./compare.js"
import {aboutView} from "./about.js"
import {searchBox} from "./search.js"

const DRAW = { map: mapView, target: targetView, train: trainView, groups: groupsView, whatif: whatifView, compare: compareView, about: aboutView };
const TABS = [["map", "Map"], ["train", "Training examples"], ["groups", "Subgroups"], ["whatif", "What if"], ["compare", "Compare"], ["about", "About"]];
const THEME = "datamodels-theme";

/** localStorage, which a file:// page may be denied. */
function remembered(value) {
  try {
    if (value === undefined) return localStorage.getItem(THEME);
    localStorage.setItem(THEME, value);
  } catch {
    // the choice lasts as long as the page
  }
  return null;
}

function themeSwitch(redraw) {
  const name = () => (isDark() ? "light" : "dark");
  const button = el("button", { type: "button", class: "plain theme", onclick: () => {
    document.documentElement.dataset.theme = name();
    remembered(document.documentElement.dataset.theme);
    paint();
    redraw();
  } });
  const paint = () => {
    button.textContent = isDark() ? "☀" : "☾";
    button.setAttribute("aria-label", `switch to ${name()} colours`);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    paint();
    redraw();
  });
  paint();
  return button;
}

/** The head: tabs, the attribution, search. Only the tabs change afterwards. */
function head(source, redraw) {
  const { about } = source, nav = el("nav", { "aria-label": "views" });
  const attribution = about.attributions.length > 1
    ? choice("Attribution", about.attributions.map((a) => [a.name]), state.attribution, (name) => go({ attribution: name, job: "" })) : null;
  document.getElementById("top").replaceChildren(
    link({ view: "map" }, { class: "brand" }, about.title), searchBox(source), ...(attribution ? [attribution] : []), themeSwitch(redraw), nav);
  return () => {
    const here = state.view === "target" ? "map" : state.view;
    nav.replaceChildren(...TABS.map(([view, name]) => link({ view }, { "aria-current": view === here ? "page" : null },
      name, view === "whatif" && state.whatif.length > 0 && el("span", { class: "badge" }, String(state.whatif.length)))));
    const current = nav.querySelector("[aria-current]");
    if (current) nav.scrollLeft = current.offsetLeft - nav.offsetLeft - 40;
    if (attribution) attribution.querySelector("select").value = state.attribution;
  };
}

function keys() {
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      document.getElementById("search").focus();
    }
    if (event.key === "Escape" && !typing) {
      document.getElementById("card").hidden = true;
      if (state.view !== "map") go({ view: "map", target: state.view === "target" ? state.index : state.target });
    }
  });
}

function problem(error) {
  return el("section", { class: "panel", role: "alert" }, el("h1", null, "This could not be shown"), el("p", null, error.message));
}

/** When what is on the page has been painted: words and numbers need not wait for a map, whose WebGL takes longer. */
function seen() {
  return new Promise((resume) => {
    requestAnimationFrame(() => setTimeout(resume));
    setTimeout(resume, 100);  // a page in the background paints no frames
  });
}

async function start() {
  const chosen = remembered();
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  const place = document.getElementById("content"), inline = document.getElementById("datamodels-data");
  let source;
  try {
    source = inline ? new FileSource(JSON.parse(inline.textContent)) : await HttpSource.open();
  } catch (error) {
    place.replaceChildren(problem(error));
    document.body.dataset.ready = "failed";
    return;
  }
  startState(source.about);
  window.explorer = { state, source, addressOf, drawn: 0 };
  let wanted = 0, page = "";
  const draw = async () => {
    const mine = ++wanted;
    let view;
    try {
      view = await DRAW[state.view](source);
    } catch (error) {
      view = { node: problem(error), title: "Problem" };
    }
    if (mine !== wanted) return;
    for (const plot of place.querySelectorAll(".js-plotly-plot")) Plotly.purge(plot);
    document.getElementById("card").hidden = true;
    place.replaceChildren(view.node);
    tabs();
    document.title = `${view.title ?? "Map"} · ${source.about.title}`;
    const next = `${state.view}/${state.index}`;
    if (page && page !== next) {
      scrollTo(0, 0);
      (place.querySelector("h1") ?? place.querySelector(".map-box") ?? place).focus({ preventScroll: true });
      say(document.title);
    }
    page = next;
    if (view.mount) {
      await seen();
      if (mine !== wanted) return;
      await view.mount();
    }
    window.explorer.drawn++;
    document.body.dataset.ready = "true";
  };
  const tabs = head(source, draw);
  onState(draw);
  keys();
  await draw();
  setTimeout(() => Promise.all(["targets", "train"].map((side) => wording(source, side))), 300);  // so that the next page need not wait
}

start();
