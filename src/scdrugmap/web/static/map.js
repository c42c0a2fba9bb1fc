"use strict";
// The map: one canvas; colours, places and genes come one by one as plain buffers.
(async () => {
  const box = document.getElementById("result");
  const at = `/api/v1/jobs/${box.dataset.job}`;
  const began = performance.now();
  const json = async (path) => (await fetch(at + path)).json();
  const buffer = async (path) => { const r = await fetch(at + path); if (!r.ok) throw new Error("not found"); return r.arrayBuffer(); };
  const about = await json("/map");
  const palette = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5d3a9b", "#999933", "#882255", "#44aa99", "#661100", "#6e6e6e"];
  const viridis = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];
  const cache = new Map();
  const field = (name) => about.fields.find((f) => f.name === name);
  const n = about.n_cells;

  async function values(f) {
    if (!cache.has(f.id)) {
      const raw = await buffer(f.gene ? `/genes/${encodeURIComponent(f.gene)}` : `/fields/${f.id}`);
      cache.set(f.id, f.kind === "category" ? new Uint16Array(raw) : new Float32Array(raw));
      if (cache.size > 12) cache.delete(cache.keys().next().value);
    }
    return cache.get(f.id);
  }

  // One layer per colour: points of one colour are drawn several times faster than points with a colour each.
  function layers(f, v) {
    const paints = [], of = new Map(), grey = "#c8c8c8";
    const number = (c) => { if (!of.has(c)) { of.set(c, paints.length); paints.push(c); } return of.get(c); };
    const shades = Array.from({ length: 24 }, (_, i) => shade(i / 23)), width = f.high - f.low || 1;
    const codes = f.kind === "category"
      ? f.categories.map((_, i) => number(colour(f, i)))
      : shades.map(number);
    const none = number(grey), to = new Uint8Array(n), counts = new Uint32Array(paints.length);
    for (let i = 0; i < n; i++) {
      const x = v[i];
      if (f.kind === "category") to[i] = x === 65535 ? none : codes[x];
      else to[i] = Number.isNaN(x) ? none : codes[Math.max(0, Math.min(23, Math.floor(24 * (x - f.low) / width)))];
      counts[to[i]]++;
    }
    const rows = Array.from(counts, (c) => new Uint32Array(c)), at = new Uint32Array(paints.length);
    for (let i = 0; i < n; i++) rows[to[i]][at[to[i]]++] = i;
    return paints.map((c, k) => ({ colour: c, rows: rows[k] })).filter((l) => l.rows.length);
  }

  function shade(t) {
    const k = Math.min(4, Math.floor(5 * t)), part = 5 * t - k, hex = (c, i) => parseInt(viridis[c].slice(i, i + 2), 16);
    return `rgb(${[1, 3, 5].map((i) => Math.round(hex(k, i) * (1 - part) + hex(k + 1, i) * part)).join(",")})`;
  }

  function colour(f, i) {
    const fixed = { resistant: "#d55e00", sensitive: "#0072b2", "resistant|sensitive": "#8c8c8c", "": "#bdbdbd", True: "#d55e00", False: "#0072b2" };
    return fixed[f.categories[i]] || palette[i % palette.length];
  }

  function square(fill, className) {
    const c = document.createElement("canvas");
    c.width = 100; c.height = 10;
    if (className) c.className = className;
    const pen = c.getContext("2d");
    pen.fillStyle = typeof fill === "function" ? fill(pen) : fill;
    pen.fillRect(0, 0, 100, 10);
    return c;
  }

  function legend(f) {
    const out = document.getElementById("legend");
    out.replaceChildren();
    const add = (thing, text) => { const d = document.createElement("div"); d.className = "key"; if (thing) d.append(thing); d.append(document.createTextNode(text)); out.append(d); };
    add(null, f.name);
    if (f.kind === "number") {
      out.append(square((pen) => { const g = pen.createLinearGradient(0, 0, 100, 0); viridis.forEach((c, i) => g.addColorStop(i / 5, c)); return g; }, "bar"));
      add(null, `${f.low.toPrecision(3)} to ${f.high.toPrecision(3)}`);
    } else f.categories.slice(0, 60).forEach((c, i) => add(square(colour(f, i)), c || "none"));
  }

  const map = document.getElementById("map"), lasso = document.getElementById("lasso");
  let geneShown = null;
  async function place(number) {
    const raw = new Float32Array(await buffer(`/layouts/${number}`));
    const x = new Float32Array(n), y = new Float32Array(n);
    for (let i = 0; i < n; i++) { x[i] = raw[2 * i]; y[i] = raw[2 * i + 1]; }
    return { x, y };
  }

  const size = n > 200000 ? 1.5 : n > 20000 ? 3 : 5;
  const axis = { visible: false, showgrid: false, zeroline: false };
  let places = null, drawnLayers = [];

  async function draw(f) {
    drawnLayers = layers(f, await values(f));
    const take = (from, rows) => { const out = new Float32Array(rows.length); for (let i = 0; i < rows.length; i++) out[i] = from[rows[i]]; return out; };
    const traces = drawnLayers.map((l) => ({
      type: "scattergl", mode: "markers", x: take(places.x, l.rows), y: take(places.y, l.rows), hoverinfo: "skip",
      marker: { size, color: l.colour, opacity: 0.85, line: { width: 0 } }, unselected: { marker: { opacity: 0.15 } },
    }));
    const layout = {
      dragmode: lasso.getAttribute("aria-pressed") === "true" ? "lasso" : "pan", margin: { l: 4, r: 4, t: 4, b: 4 }, xaxis: axis, selections: [],
      yaxis: { ...axis, scaleanchor: n > 200000 ? undefined : "x" }, showlegend: false, uirevision: places.name, selectionrevision: f.name,
    };
    await Plotly.react(map, traces, layout, { displaylogo: false, responsive: true, scrollZoom: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "lasso2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]] });
    legend(f);
    map.dataset.colour = f.name;
  }

  async function firstDraw(f) {
    places = { name: 0, ...await place(0) };
    await draw(f);
    map.on("plotly_selected", (event) => { if (event && event.points) select(event.points.map((p) => drawnLayers[p.curveNumber].rows[p.pointIndex])); });
    map.on("plotly_deselect", () => select(null));
    await new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));
    const took = performance.now() - began;
    map.dataset.painted = took.toFixed(0);
    document.getElementById("paint").textContent = `${n.toLocaleString()} cells, drawn after ${(took / 1000).toFixed(1)} s. ${about.layouts[0].name === "tsne" && n > 4000 ? "Places of 4,000 cells were computed, the others lie between their neighbours." : ""}`;
  }

  function table(head, rows) {
    const t = document.createElement("table"), h = t.createTHead().insertRow(), b = t.createTBody();
    for (const c of head) { const th = document.createElement("th"); th.scope = "col"; th.textContent = c; h.append(th); }
    for (const r of rows) { const tr = b.insertRow(); for (const c of r) tr.insertCell().textContent = c; }
    return t;
  }

  const text = (v) => v === null || v === undefined ? "" : typeof v === "number" && !Number.isInteger(v) ? v.toFixed(3) : String(v);
  async function rowsOf(path) {
    const { rows, n_cells } = await json(path);
    return { n_cells, view: rows.length ? table(Object.keys(rows[0]), rows.map((r) => Object.values(r).map(text))) : document.createTextNode("none") };
  }

  async function select(indices) {
    const out = document.getElementById("selection");
    out.replaceChildren();
    if (!indices || !indices.length) return;
    const pred = field(`${box.dataset.key}_pred`), codes = await values(pred);
    const sample = box.dataset.sample && field(box.dataset.sample), groups = sample && sample.kind === "category" ? await values(sample) : null;
    const total = pred.categories.map(() => 0), by = new Map();
    for (const i of indices) {
      if (codes[i] !== 65535) total[codes[i]]++;
      if (groups) {
        const name = groups[i] === 65535 ? "none" : sample.categories[groups[i]];
        if (!by.has(name)) by.set(name, [0, ...pred.categories.map(() => 0)]);
        by.get(name)[0]++;
        if (codes[i] !== 65535) by.get(name)[1 + codes[i]]++;
      }
    }
    const head = document.createElement("p");
    head.id = "selected-count";
    head.textContent = `${indices.length.toLocaleString()} cells selected: ${pred.categories.map((c, k) => `${total[k].toLocaleString()} ${c}`).join(", ")}.`;
    out.append(head);
    if (groups) out.append(table([box.dataset.sample, "cells", ...pred.categories], [...by].sort((a, b) => b[1][0] - a[1][0]).slice(0, 50).map(([k, v]) => [k, ...v])));
    const d = document.createElement("details"), s = document.createElement("summary"), holder = document.createElement("div");
    s.textContent = `First ${Math.min(50, indices.length)} of these cells`;
    holder.className = "scroll";
    d.append(s, holder);
    d.addEventListener("toggle", async () => { if (d.open && !holder.hasChildNodes()) holder.append((await rowsOf(`/cells?rows=${indices.slice(0, 50).join(",")}`)).view); });
    out.append(d);
  }

  const menu = document.getElementById("color"), layouts = document.getElementById("layout"), genes = document.getElementById("gene");
  for (const f of about.fields) menu.add(new Option(f.name, f.name));
  about.layouts.forEach((l, i) => layouts.add(new Option(l.title, i)));
  menu.addEventListener("change", () => { genes.value = ""; geneShown = null; draw(field(menu.value)); });
  layouts.addEventListener("change", async () => {
    places = { name: layouts.value, ...await place(layouts.value) };
    await draw(current());
  });
  const current = () => geneShown || field(menu.value);
  genes.addEventListener("input", async () => {
    const names = await json(`/genes?search=${encodeURIComponent(genes.value)}`);
    document.getElementById("genes").replaceChildren(...names.map((g) => new Option(g, g)));
  });
  genes.addEventListener("change", async () => {
    if (!genes.value) return;
    try {
      const f = { id: `gene ${genes.value}`, name: genes.value, gene: genes.value, kind: "number", low: 0, high: 1 };
      const v = await values(f);
      for (let i = 0; i < v.length; i++) if (v[i] > f.high) f.high = v[i];
      geneShown = f;
      await draw(f);
    } catch { document.getElementById("paint").textContent = "This gene is not in the file."; }
  });
  lasso.addEventListener("click", () => {
    const on = lasso.getAttribute("aria-pressed") !== "true";
    lasso.setAttribute("aria-pressed", on);
    Plotly.relayout(map, { dragmode: on ? "lasso" : "pan" });
  });
  document.getElementById("select-shown").addEventListener("click", () => select(Array.from({ length: n }, (_, i) => i)));

  let start = 0;
  async function page(step) {
    start = Math.max(0, start + step);
    const { n_cells, view } = await rowsOf(`/cells?start=${start}&stop=${start + 25}`);
    document.getElementById("cells").replaceChildren(view);
    document.getElementById("page").textContent = `Cells ${start + 1} to ${Math.min(start + 25, n_cells)} of ${n_cells.toLocaleString()}`;
    document.getElementById("before").disabled = start === 0;
    document.getElementById("next").disabled = start + 25 >= n_cells;
  }
  document.getElementById("before").addEventListener("click", () => page(-25));
  document.getElementById("next").addEventListener("click", () => page(25));

  const first = field(`${box.dataset.key}_pred`) || about.fields[0];
  menu.value = first.name;
  try { await firstDraw(first); } catch (error) { document.getElementById("paint").textContent = "This browser cannot draw the map (WebGL is missing); the tables below hold the same numbers."; console.warn(error); }
  await page(0);
})();
