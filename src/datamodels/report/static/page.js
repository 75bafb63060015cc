"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const palette = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#edc948", "#76b7b2", "#ff9da7", "#9c755f", "#8a8f98"];
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  const layout = (more) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--ink"), size: 12 },
    margin: { l: 50, r: 10, t: 34, b: 44 }, height: 320, hovermode: "closest",
    ...more,
  });
  const axis = (title, more) => ({ title: { text: title }, gridcolor: colour("--line"), zeroline: false, ...more });

  function drawCurve(c) {
    const x = c.models, traces = [
      { x: [...x, ...[...x].reverse()], y: [...c.high, ...[...c.low].reverse()], fill: "toself", mode: "none",
        fillcolor: "rgba(78,121,167,.2)", hoverinfo: "skip", showlegend: false },
      { x: c.ahead, y: c.estimate, mode: "lines", name: "estimate", line: { dash: "dash", color: "#8a8f98" } },
      { x, y: c.lds, mode: "lines+markers", name: `${c.name}, 95 % interval`, line: { color: palette[0] } },
    ];
    if (c.ceiling) traces.push({ x: [x[0], c.ahead.at(-1) ?? x.at(-1)], y: [c.ceiling, c.ceiling], mode: "lines",
      name: "noise ceiling", line: { color: colour("--ink"), width: 1 } });
    Plotly.newPlot("curve", traces, layout({
      title: { text: "LDS against models", font: { size: 14 } }, legend: { x: 1, y: 0, xanchor: "right", bgcolor: "rgba(0,0,0,0)" },
      xaxis: axis("models", { type: "log", tickvals: [...x, ...c.ahead.slice(-1)], tickformat: ",d" }), yaxis: axis("LDS", { rangemode: "tozero" }),
    }), config);
  }

  function drawHistograms(all) {
    const traces = Object.entries(all).map(([name, values], i) => ({
      x: values, type: "histogram", name, opacity: .7, nbinsx: 40, marker: { color: palette[i % palette.length] },
    }));
    if (!traces.length) return;
    Plotly.newPlot("histogram", traces, layout({
      title: { text: "LDS of each target", font: { size: 14 } }, barmode: "overlay", showlegend: true,
      legend: { x: 0, y: 1, bgcolor: "rgba(0,0,0,0)" },
      xaxis: axis("rank correlation of one target"), yaxis: axis("targets"),
    }), config);
  }

  function drawMap(m) {
    const select = document.getElementById("colour"), legend = document.getElementById("legend");
    const hover = document.getElementById("hover"), place = document.getElementById("map");
    for (const name of Object.keys(m.colours)) select.add(new Option(name, name));
    const byName = (a, b) => a.localeCompare(b, undefined, { numeric: true });
    const paint = () => {
      const values = m.colours[select.value], names = [...new Set(values)].sort(byName);
      const index = new Map(names.map((name, i) => [name, palette[i % palette.length]]));
      legend.replaceChildren(...names.slice(0, 40).map((name) => {
        const item = document.createElement("span"), dot = document.createElement("i");
        dot.style.background = index.get(name);
        item.append(dot, name);
        return item;
      }));
      return values.map((value) => index.get(value));
    };
    const trace = {
      x: m.x, y: m.y ?? m.x.map(() => 0), type: m.x.length > 5000 ? "scattergl" : "scatter", mode: "markers",
      hoverinfo: "none", marker: { size: 8, color: paint(), line: { width: .5, color: colour("--back") } },
    };
    Plotly.newPlot(place, [trace], layout({ height: 520, xaxis: axis("component 1"), yaxis: axis("component 2"), dragmode: "pan" }),
      { ...config, scrollZoom: true });
    select.addEventListener("change", () => Plotly.restyle(place, { "marker.color": [paint()] }));
    place.on("plotly_hover", (event) => {
      const i = event.points[0].pointIndex, lines = [];
      if (m.sheet) {
        const picture = document.createElement("div"), [columns, rows] = m.sheet;
        const percent = (at, count) => count === 1 ? "0" : `${100 * at / (count - 1)}%`;
        picture.className = "picture map-picture";
        picture.style.backgroundPosition = `${percent(i % columns, columns)} ${percent(Math.floor(i / columns), rows)}`;
        lines.push(picture);
      }
      for (const text of [`target ${i}: ${m.names[i]}`, `cluster ${m.colours.cluster[i]}`, m.outputs && m.outputs[i] !== null && `mean output ${m.outputs[i]}`]) {
        if (!text) continue;
        const line = document.createElement("div");
        line.textContent = text;
        lines.push(line);
      }
      hover.replaceChildren(...lines);
      hover.hidden = false;
      const { clientX, clientY } = event.event;
      hover.style.left = `${Math.min(clientX + 16, innerWidth - hover.offsetWidth - 8)}px`;
      hover.style.top = `${Math.min(clientY + 16, innerHeight - hover.offsetHeight - 8)}px`;
    });
    place.on("plotly_unhover", () => { hover.hidden = true; });
  }

  function draw() {
    if (data.curve) drawCurve(data.curve);
    if (document.getElementById("histogram")) drawHistograms(data.histograms);
    if (data.map) drawMap(data.map);
    document.body.dataset.ready = "true";
  }
  draw();
})();
