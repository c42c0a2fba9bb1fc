"use strict";
// Uploads, forms and job pages, over the REST API.
const api = "/api/v1";
const $ = (id) => document.getElementById(id);
const say = (text) => { const m = $("message"); if (m) m.textContent = text; };
const pause = (ms) => new Promise((go) => setTimeout(go, ms));
const key = () => ($("key") && $("key").value) || sessionStorage.getItem("key") || "";

async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (key()) { sessionStorage.setItem("key", key()); headers.Authorization = `Bearer ${key()}`; }
  if (options.json !== undefined) { headers["Content-Type"] = "application/json"; options.body = JSON.stringify(options.json); }
  const answer = await fetch(path.startsWith("/") ? path : `${api}/${path}`, { ...options, headers });
  const body = answer.status === 204 ? {} : await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const e = body.error || { message: `The server answers ${answer.status}.`, fix: "" };
    throw Object.assign(new Error(`${e.message} ${e.fix}`), { status: answer.status, answer });
  }
  return body;
}

async function suits(file, max) {
  if (file.size > max) return `The file has ${(file.size / 2 ** 20).toFixed(1)} MB; the limit is ${(max / 2 ** 20).toFixed(1)} MB.`;
  if (!file.size) return "The file is empty.";
  const start = new Uint8Array(await file.slice(0, 8).arrayBuffer());
  const hdf5 = start[0] === 0x89 && start[1] === 0x48 && start[2] === 0x44;
  if (/\.(h5ad|h5mu|h5)$/i.test(file.name) && !hdf5 && new TextDecoder().decode(start.slice(0, 6)) !== "MuData")
    return "The name says HDF5, but the content is something else.";
  if (!/\.(h5ad|h5mu|h5|zip|tar|tgz|csv|tsv|txt|gz)$/i.test(file.name)) return "This kind of file is not read here: see the list below the button.";
  return "";
}

// Sends what is missing; the server knows how much it has.
async function send(file, id, offset, shown) {
  const step = 4 * 2 ** 20;
  let failures = 0;
  while (offset < file.size) {
    try {
      const state = await ask(`uploads/${id}`, {
        method: "PATCH", body: file.slice(offset, offset + step),
        headers: { "Content-Type": "application/octet-stream", "Upload-Offset": String(offset) },
      });
      offset = state.offset;
      failures = 0;
    } catch (error) {
      if (error.status && error.status !== 409 && error.status < 500 && error.status !== 429) throw error;
      if (++failures > 6) throw Object.assign(new Error("The connection broke. What has come is kept."), { broken: true });
      await pause(300 * 2 ** failures);
      try { offset = (await ask(`uploads/${id}`)).offset; } catch (gone) { if (gone.status === 404) throw gone; }
    }
    shown(100 * offset / file.size);
  }
  await ask(`uploads/${id}/complete`, { method: "POST" });
}

function remembered(file) { return `upload ${file.name} ${file.size} ${file.lastModified}`; }

async function upload(file, bar) {
  bar.hidden = false;
  const shown = (percent) => { bar.value = percent; say(`${percent.toFixed(0)} % sent`); };
  let id = sessionStorage.getItem(remembered(file)), offset = 0;
  if (id) {
    try {
      const state = await ask(`uploads/${id}`);
      if (state.state !== "receiving") return id;
      offset = state.offset;
    } catch { id = null; }
  }
  if (!id) {
    id = (await ask("uploads", { method: "POST", json: { filename: file.name, size: file.size } })).id;
    sessionStorage.setItem(remembered(file), id);
  }
  await send(file, id, offset, shown);
  sessionStorage.removeItem(remembered(file));
  return id;
}

async function checked(id) {
  for (;;) {
    const state = await ask(`uploads/${id}`);
    if (state.state === "accepted") return state;
    if (state.state === "refused") throw new Error(`Refused: ${state.reason}`);
    await pause(500);
  }
}

function uploadForm(form) {
  const input = $("file");
  const start = async () => {
    const file = input.files[0];
    $("resume").hidden = true;
    if (!file) return;
    const wrong = await suits(file, Number(form.dataset.max));
    if (wrong) { say(wrong); return; }
    try {
      location.href = `/uploads/${await upload(file, $("progress"))}`;
    } catch (error) { say(error.message); $("resume").hidden = !error.broken; }
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); start(); });
  $("resume").addEventListener("click", start);
  input.addEventListener("change", async () => { if (input.files[0]) say(await suits(input.files[0], Number(form.dataset.max))); });
  form.addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("over"); });
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    if (event.dataTransfer.files.length) { input.files = event.dataTransfer.files; start(); }
  });
}

function optionsOf(form) {
  const options = {};
  for (const e of form.elements) {
    if (!e.name || e.name.startsWith("@")) continue;
    if (e.dataset.type === "boolean") options[e.name] = e.checked;
    else if (e.dataset.type === "list" && e.type === "checkbox") { if (e.checked) (options[e.name] ||= []).push(e.value); }
    else if (e.value === "") continue;
    else if (e.dataset.type === "list") options[e.name] = [e.value];
    else options[e.name] = e.dataset.type === "number" ? Number(e.value) : e.value;
  }
  return options;
}

function askForm(form) {
  const id = form.dataset.upload, kind = form.dataset.kind;
  const about = async () => {
    try {
      const e = await ask(`uploads/${id}/estimate`, { method: "POST", json: { kind, options: optionsOf(form) } });
      $("estimate").textContent = `About ${e.seconds < 90 ? `${e.seconds} seconds` : `${Math.round(e.seconds / 60)} minutes`} and ${(e.memory / 1e9).toFixed(1)} GB of memory on this machine, once it is your turn.`;
    } catch { $("estimate").textContent = ""; }
  };
  form.addEventListener("change", about);
  about();
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const job = { kind, query: id, options: optionsOf(form) };
      const predictor = form.querySelector('[name="@predictor"]:checked');
      if (predictor) job.predictor = predictor.value;
      const file = $("reference-file") && $("reference-file").files[0];
      if (file) {
        const wrong = await suits(file, Number($("reference-file").dataset.max));
        if (wrong) throw new Error(wrong);
        job.reference = await upload(file, $("progress"));
        say("The labelled file is being checked.");
        await checked(job.reference);
      } else if ($("reference")) {
        if (!$("reference").value) throw new Error("Choose labelled cells: a file of yours, or a curated study.");
        job.reference = $("reference").value;
      }
      say("In line.");
      location.href = `/jobs/${(await ask("jobs", { method: "POST", json: job })).id}`;
    } catch (error) { say(error.message); }
  });
}

function jobPage(box) {
  if (!["queued", "running"].includes(box.dataset.state)) return;
  const show = (job) => {
    if (!["queued", "running"].includes(job.state)) { location.reload(); return; }
    $("state").textContent = job.state;
    $("state").className = `tag ${job.state}`;
    $("stage").textContent = job.stage;
    $("percent").value = job.percent;
    const facts = [];
    if (job.position) facts.push(`Place in line: ${job.position}`);
    if (job.cells_per_second) facts.push(`${job.cells_per_second.toLocaleString()} per second`);
    if (job.seconds_left) facts.push(`about ${job.seconds_left} seconds left`);
    $("detail").textContent = facts.join(", ");
  };
  const events = new EventSource(`${api}/jobs/${box.dataset.job}/events`);
  events.addEventListener("status", (event) => show(JSON.parse(event.data)));
  events.addEventListener("gone", () => { location.href = "/"; });
  setInterval(async () => {
    if (events.readyState === EventSource.CLOSED) try { show(await ask(`jobs/${box.dataset.job}`)); } catch { /* asked again */ }
  }, 3000);
}

function buttons() {
  const on = (id, go) => { const b = $(id); if (b) b.addEventListener("click", () => go(b.dataset.url).catch((error) => say(error.message))); };
  on("cancel", async (url) => { await ask(url, { method: "POST" }); say("Being cancelled."); });
  on("again", async (url) => { location.href = `/jobs/${(await ask(url, { method: "POST" })).id}`; });
  on("delete", async (url) => { if (!confirm("Delete every byte now?")) return; await ask(url, { method: "DELETE" }); location.href = "/"; });
}

function filter(input) {
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    let n = 0;
    for (const row of $(input.dataset.table).tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((w) => text.includes(w));
      n += !row.hidden;
    }
    $("shown").textContent = `${n} shown`;
  });
}

async function waiting(box) {
  for (;;) {
    const state = await ask(`uploads/${box.dataset.upload}`).catch(() => ({ state: "checking" }));
    if (["accepted", "refused"].includes(state.state)) { location.reload(); return; }
    await pause(600);
  }
}

if ($("upload")) uploadForm($("upload"));
if ($("ask")) askForm($("ask"));
if ($("job")) jobPage($("job"));
if ($("waiting")) waiting($("waiting"));
if ($("filter")) filter($("filter"));
buttons();
