// The page of the server: a client of its videos API.
const at = id => document.getElementById(id);
const POLL_MS = 600, PAGE = 24;
const LABELS = { input_reference: "First frame", last_image: "Last frame", video: "Video", second_video: "Second video",
  mask: "Mask", keyframe: "Picture", direction: "Direction", seconds: "Seconds", strength: "Strength", story: "Story",
  rolling: "Finish frame after frame" };
const ABOUT = { seconds: "Length of the new part; empty: the model's own", strength: "0: the video itself; 1: another one",
  story: "For a long video: a prompt on each line, which take turns", mask: "White parts are made anew",
  rolling: "For a long video: each frame is finished before the last one is begun" };
const FILES = { input_reference: "image/*", last_image: "image/*", mask: "image/*", video: "video/*", second_video: "video/*" };
const INPUT_NAMES = { input_reference: "image", last_image: "last_image", mask: "mask" };
let page = null, shown = null, videos = [], more = false, watching = false;
const references = {};  // field -> {id} or {file_id}, instead of a file

class ApiError extends Error {}

async function api(path, options = {}) {
  const answer = await fetch(path, options);
  if (answer.ok) return answer.json();
  const { error } = await answer.json().catch(() => ({ error: { message: `the server answered ${answer.status}` } }));
  if (answer.status === 401 && path !== "login") at("lock").showModal();
  throw new ApiError(error.message);
}

function make(tag, properties = {}, ...children) {
  const { data = {}, aria = {}, ...own } = properties;
  const element = Object.assign(document.createElement(tag), own);
  Object.assign(element.dataset, data);
  for (const [key, value] of Object.entries(aria)) element.setAttribute(key === "role" ? key : `aria-${key}`, value);
  element.append(...children);
  return element;
}

const task = () => page.tasks.find(one => one.name === document.querySelector("[name=task]:checked").value);
const content = (video, variant = "video") => `v1/videos/${video.id}/content?variant=${variant}`;
const running = video => video.status === "queued" || video.status === "in_progress";

function fail(error) {
  if (!(error instanceof ApiError)) console.error(error);
  at("error").textContent = error instanceof ApiError ? error.message : "The server can't be reached.";
  at("error").hidden = false;
}

// The form

function field(name, element, about = "") {
  element.id = `field-${name}`;
  const label = make("label", { htmlFor: element.id, textContent: LABELS[name.replace(/\d$/, "")] || capital(name) });
  const small = make("small", { id: `about-${name}`, textContent: about });
  if (about) element.setAttribute("aria-describedby", small.id);
  return make("div", { className: "field", data: { field: name.replace(/\d$/, "") } }, label, element, ...(about ? [small] : []));
}

const capital = name => (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ");
const select = (choices, value) =>
  Object.assign(make("select", {}, ...choices.map(one => make("option", { value: one, textContent: one }))), { value });

function fileField(name, accept) {
  const input = make("input", { type: "file", accept });
  const box = field(name, input, ABOUT[name]);
  const given = make("div", { className: "given", hidden: true, data: { given: name } });
  input.onchange = () => {
    delete references[name];
    const [file] = input.files;
    if (file && file.size > page.max_bytes) {
      fail(new ApiError(`${file.name}: ${mib(file.size)} MiB; at most ${mib(page.max_bytes)} MiB are taken`));
      input.value = "";
    }
    showGiven(name, input.files[0] && URL.createObjectURL(input.files[0]), accept);
  };
  box.append(given);
  return box;
}

const mib = bytes => (bytes / 2 ** 20).toFixed(1).replace(".0", "");

function showGiven(name, url, accept) {
  const box = document.querySelector(`[data-given="${name}"]`);
  if (!box) return;
  const options = { src: url, alt: "", muted: true, loop: true, autoplay: true, playsInline: true };
  const drop = make("button", { type: "button", textContent: "Remove", aria: { label: `Remove ${LABELS[name.replace(/\d$/, "")]}` } });
  drop.onclick = () => { at(`field-${name}`).value = ""; delete references[name]; showGiven(name) };
  box.hidden = !url;
  box.replaceChildren(...(url ? [make(accept.startsWith("video") ? "video" : "img", options), drop] : []));
}

function buildForm() {
  at("model").textContent = page.model;
  for (const { name, label } of page.tasks) {
    const radio = make("input", { type: "radio", name: "task", value: name, checked: name === "text", onchange: showTask });
    at("tasks").append(make("label", {}, radio, label));
  }
  for (const text of page.examples) {
    const use = () => { at("prompt").value = text; at("prompt").focus() };
    at("examples").append(make("button", { type: "button", textContent: text, onclick: use }));
  }
  const inputs = Object.entries(FILES).map(([name, accept]) => fileField(name, accept));
  for (let n = 0; n < page.keyframes; n++) {
    const time = make("input", { type: "number", min: 0, step: "any", value: n * 0.5, id: `time-${n}` });
    const label = make("label", { htmlFor: time.id, textContent: "At second" });
    const picture = fileField(`keyframe${n}`, "image/*");
    inputs.push(make("div", { className: "pair", data: { field: "keyframe" } }, make("div", { className: "field" }, label, time), picture));
  }
  inputs.push(field("direction", select(page.directions, page.directions[0])));
  inputs.push(field("seconds", make("input", { inputMode: "decimal" }), ABOUT.seconds));
  inputs.push(field("strength", make("input", { type: "range", min: 0, max: 1, step: 0.05, value: page.strength }), ABOUT.strength));
  inputs.push(field("story", make("textarea", { rows: 2 }), ABOUT.story));
  inputs.push(field("rolling", make("input", { type: "checkbox" }), ABOUT.rolling));
  inputs.at(-1).classList.add("tick");
  at("inputs").append(...inputs);
  at("settings").append(
    field("seed", make("input", { inputMode: "numeric" }), "Empty: another one each time"),
    field("negative_prompt", make("input", { value: page.negative_prompt }), "What the video should not show"),
    field("watermark", make("input", { maxLength: 100 }), "A text in the corner"));
  for (const { name, about, unit, choices, number, value } of page.settings) {
    const element = choices.length ? select(choices, value) : make("input", { value, inputMode: number ? "decimal" : "text" });
    at("settings").append(field(name, element, about + (unit && !about.includes(unit) ? ` (${unit})` : "")));
  }
  showTask();
}

function showTask() {
  const { fields, about } = task();
  at("about").textContent = about;
  for (const box of document.querySelectorAll("#inputs > [data-field]")) box.hidden = !fields.includes(box.dataset.field);
}

function readForm() {
  const { name, fields } = task(), form = new FormData();
  const put = (key, value) => { if (String(value).trim() !== "") form.append(key, value) };
  const file = (key, id) => {
    const [sent] = at(`field-${id}`).files;
    if (sent) form.append(key, sent);
    else for (const [kind, value] of Object.entries(references[id] || {})) form.append(`${key}[${kind}]`, value);
  };
  const story = at("field-story").value.trim();
  put("prompt", at("prompt").value.trim() || (fields.includes("story") ? story.split("\n")[0] : ""));
  put("task", name);
  for (const field of fields) {
    if (field in FILES) file(field, field);
    else if (field === "rolling") { if (at("field-rolling").checked) put("rolling", "true") }
    else if (field !== "keyframe") put(field, at(`field-${field}`).value);
  }
  if (fields.includes("keyframe")) {
    for (let n = 0; n < page.keyframes; n++) {
      const given = at(`field-keyframe${n}`).files.length || references[`keyframe${n}`];
      if (given) file(keyframeKey(n), `keyframe${n}`);
    }
  }
  for (const field of ["seed", "watermark"]) put(field, at(`field-${field}`).value);
  if (at("field-negative_prompt").value !== page.negative_prompt) form.append("negative_prompt", at("field-negative_prompt").value || " ");
  for (const { name, value } of page.settings) {
    if (at(`field-${name}`).value !== String(value)) put(name, at(`field-${name}`).value);
  }
  return form;
}

const keyframeKey = n => `keyframe[${Number(at(`time-${n}`).value)}]`;

at("form").onsubmit = async event => {
  event.preventDefault();
  at("error").hidden = true;
  at("make").disabled = true;
  try {
    const video = await api("v1/videos", { method: "POST", body: readForm() });
    videos.unshift(video);
    show(video);
    render();
    watch();
  } catch (error) { fail(error) }
  at("make").disabled = false;
};

// The result

function show(video) {
  const other = shown?.id !== video.id || shown.status !== video.status;
  shown = video;
  at("job").hidden = false;
  at("status").textContent = told(video);
  at("status").className = video.status === "failed" ? "error" : "";
  at("progress").hidden = !running(video);
  at("progress").value = video.progress;
  if (running(video)) showPreview(video);
  if (!other) return;
  at("actions").hidden = false;
  for (const id of ["use", "download"]) at(id).hidden = video.status !== "completed";
  at("delete").textContent = running(video) ? "Cancel" : "Delete";
  at("made").hidden = false;
  const facts = { task: video.task, size: video.size, seconds: video.seconds, seed: video.seed, fps: video.fps, frames: video.frames,
    "negative prompt": video.negative_prompt, ...video.settings, ...video.inputs, notes: video.notes.join("; "), id: video.id };
  at("facts").replaceChildren(...Object.entries({ prompt: video.prompt, ...facts }).filter(([, value]) => value !== "" && value !== null)
    .map(([key, value]) => make("tr", {}, make("th", { scope: "row", textContent: key.replaceAll("_", " ") }), make("td", { textContent: value }))));
  if (video.status === "completed") {
    const player = make("video", { src: content(video), loop: true, autoplay: true, muted: true, playsInline: true, controls: true,
      className: smallest(video) < 200 ? "small" : "", aria: { label: `Video: ${video.prompt}` } });
    at("stage").replaceChildren(player);
    at("download").href = content(video);
  } else if (!running(video)) at("stage").replaceChildren(make("p", { className: "faint", textContent: "Not made." }));
}

const smallest = video => Math.min(...video.size.split("x"));

function told(video) {
  const seed = `seed ${video.seed}`, first = video.queue_position;
  if (video.status === "queued") return `Waiting: ${first} before it · ${seed}`;
  if (video.status === "failed") return video.error.message;
  if (video.status === "completed") return `Made · ${seed}${video.notes.length ? " · " + video.notes.join("; ") : ""}`;
  return video.steps ? `Step ${video.step} of ${video.steps} · ${seed}` : `Reading the inputs · ${seed}`;
}

async function showPreview(video) {
  const answer = await fetch(`v1/videos/${video.id}/preview`).catch(() => null);
  if (shown?.id !== video.id || !running(shown)) return;
  if (!answer || answer.status !== 200) {
    if (!at("stage").querySelector("img")?.src.startsWith("blob:")) {
      at("stage").replaceChildren(make("p", { className: "faint", textContent: "In the making" }));
    }
    return;
  }
  const url = URL.createObjectURL(await answer.blob());
  const image = make("img", { src: url, alt: "Preview", className: smallest(video) < 200 ? "small" : "" });
  image.onload = () => URL.revokeObjectURL(url);
  at("stage").replaceChildren(image);
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { value: text });  // without https browsers have no clipboard
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

at("copy").onclick = async () => {
  await copy(shown.prompt);
  at("copy").textContent = "Copied";
  setTimeout(() => { at("copy").textContent = "Copy prompt" }, 1500);
};
at("delete").onclick = async () => {
  try { await api(`v1/videos/${shown.id}`, { method: "DELETE" }) } catch (error) { return fail(error) }
  at("status").textContent = running(shown) ? "Cancelled." : "Deleted.";
  videos = videos.filter(video => video.id !== shown.id);
  shown = null;
  for (const id of ["actions", "made", "progress"]) at(id).hidden = true;
  at("stage").replaceChildren(make("p", { className: "faint", textContent: "Your video appears here." }));
  render();
};
at("use").onclick = () => {
  if (!task().fields.includes("video")) choose("extend");
  give("video", { id: shown.id }, content(shown), "video/*");
  at("prompt").focus();
};
at("again").onclick = () => {
  choose(shown.task);
  at("prompt").value = shown.prompt;
  at("field-seed").value = shown.seed;
  at("field-negative_prompt").value = shown.negative_prompt ?? "";
  for (const { name, value } of page.settings) at(`field-${name}`).value = shown.settings[name] ?? value;
  const { inputs } = shown;
  at("field-seconds").value = inputs.seconds ?? "";
  at("field-strength").value = inputs.strength ?? page.strength;
  at("field-direction").value = inputs.direction || page.directions[0];
  at("field-story").value = (inputs.story || []).join("\n");
  at("field-rolling").checked = !!inputs.rolling;
  for (const [field, name] of Object.entries(INPUT_NAMES)) if (inputs[name]) give(field, { file_id: inputs[name] }, input(inputs[name]), "image/*");
  (inputs.videos || []).forEach((name, n) => give(["video", "second_video"][n], { file_id: name }, input(name), "video/*"));
  (inputs.keyframes || []).slice(0, page.keyframes).forEach((text, n) => {
    const [time, name] = text.split(":");
    at(`time-${n}`).value = time;
    give(`keyframe${n}`, { file_id: name }, input(name), "image/*");
  });
  at("prompt").focus();
};

const input = name => `v1/inputs/${name}`;
function choose(name) { document.querySelector(`[name=task][value=${name}]`).checked = true; showTask() }
function give(field, reference, url, accept) {
  at(`field-${field}`).value = "";
  references[field] = reference;
  showGiven(field, url, accept);
}

// The gallery

function card(video) {
  const picture = make("span", { className: "picture" });
  if (video.status === "completed") {
    picture.append(make("img", { src: content(video, "thumbnail"), loading: "lazy", alt: "", className: smallest(video) < 200 ? "small" : "" }));
  } else picture.append({ queued: "Waiting", failed: "Not made" }[video.status] || `${video.progress} %`);
  const label = page.tasks.find(one => one.name === video.task)?.label || video.task;
  const button = make("button", { className: "card", type: "button", data: { id: video.id },
    aria: { current: String(shown?.id === video.id) } },
    picture, make("b", { textContent: `${label} · seed ${video.seed}` }), make("p", { textContent: video.prompt }));
  button.onclick = () => { show(video); render(); at("result").scrollIntoView({ block: "nearest" }) };
  button.onmouseenter = () => {
    if (video.status !== "completed" || picture.querySelector("video")) return;
    picture.append(make("video", { src: content(video), muted: true, loop: true, autoplay: true, playsInline: true }));
  };
  button.onmouseleave = () => picture.querySelector("video")?.remove();
  return make("li", { data: { state: key(video) } }, button);
}

const key = video => `${video.id} ${video.status} ${running(video) ? video.progress : ""} ${shown?.id === video.id}`;

function render() {
  const old = new Map([...at("gallery").children].map(item => [item.dataset.state, item]));
  const focused = document.activeElement?.dataset?.id;
  at("gallery").replaceChildren(...videos.map(video => old.get(key(video)) || card(video)));
  if (focused) document.querySelector(`[data-id="${focused}"]`)?.focus();
  at("empty").hidden = videos.length > 0;
  at("older").hidden = !more;
}

async function refresh() {
  const list = await api(`v1/videos?limit=${PAGE}`);
  const last = videos.findIndex(video => video.id === list.last_id);
  const older = last >= 0 ? videos.slice(last + 1) : [];
  if (!older.length) more = list.has_more;
  videos = [...list.data, ...older];
  const now = shown && videos.find(video => video.id === shown.id);
  if (now) show(now);
  render();
}

at("older").onclick = async () => {
  const list = await api(`v1/videos?limit=${PAGE}&after=${videos.at(-1).id}`);
  videos.push(...list.data);
  more = list.has_more;
  render();
};

async function watch() {
  if (watching) return;
  watching = true;
  while (videos.some(running)) {
    await new Promise(done => setTimeout(done, POLL_MS));
    await refresh().catch(fail);
  }
  watching = false;
}

async function open() {
  page = await api("page.json");
  buildForm();
  await refresh();
  const now = videos.findLast(running);
  if (now) { show(now); render() }
  watch();
}

at("login").onsubmit = async event => {
  event.preventDefault();
  const headers = { "content-type": "application/json" };
  try {
    await api("login", { method: "POST", headers, body: JSON.stringify({ key: at("key").value.trim() }) });
    at("lock").close();
    at("wrong").hidden = at("error").hidden = true;
    await (page ? refresh() : open());
  } catch (error) { at("wrong").textContent = error.message; at("wrong").hidden = false }
};
open().catch(fail);
