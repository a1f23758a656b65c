// The page of `vl2 gateway`: it speaks the same OpenAI API as every other client, and nothing else.

const STAGES = ["prompt", "preprocess", "encoder", "prefill", "decode"]; // of a request's way, as the server names them
const element = (id) => document.getElementById(id);
let medium = null; // {file, url, kind, duration}
let messages = []; // of the conversation, without the medium
let running = null; // AbortController of the answer that is being written

// --- the medium ---

function kindOf(file) {
  const kind = file.type.split("/")[0];
  if (file.type === "image/gif") return "video";
  return ["video", "image", "audio"].includes(kind) ? kind : "file";
}

function showMedium(file) {
  removeMedium();
  const kind = kindOf(file);
  medium = { file, kind, url: URL.createObjectURL(file), duration: null };
  const tag = { video: file.type === "image/gif" ? "img" : "video", image: "img", audio: "audio", file: "p" }[kind];
  const shown = document.createElement(tag);
  if (tag === "p") shown.textContent = "This browser cannot show this kind of file; the server may know it.";
  else shown.src = medium.url;
  if (tag === "img") shown.alt = file.name;
  if (tag === "video" || tag === "audio") {
    shown.controls = true;
    if (tag === "video") shown.muted = shown.loop = shown.autoplay = shown.playsInline = true;
    const about = medium;
    shown.addEventListener("loadedmetadata", () => about === medium && showSegment(shown.duration));
  }
  element("medium").replaceChildren(shown);
  element("name").textContent = file.name;
  element("sound").hidden = kind !== "video";
  element("preview").hidden = false;
  newConversation();
  element("question").focus();
}

function removeMedium() {
  if (medium) URL.revokeObjectURL(medium.url);
  medium = null;
  element("medium").replaceChildren();
  for (const id of ["preview", "segment", "frames"]) element(id).hidden = true;
  element("with_audio").checked = false;
}

function showSegment(duration) {
  if (!Number.isFinite(duration) || duration < 0.3) return;
  medium.duration = duration;
  for (const id of ["start", "end"]) element(id).max = duration.toFixed(1);
  element("start").value = 0;
  element("end").value = duration.toFixed(1);
  element("segment").hidden = false;
  moveHandle(null);
}

function moveHandle(event) {
  const start = element("start"), end = element("end");
  if (Number(start.value) > Number(end.value)) {
    if (event?.target === start) start.value = end.value;
    else end.value = start.value;
  }
  element("part").textContent = `${Number(start.value).toFixed(1)} s to ${Number(end.value).toFixed(1)} s`;
}

let strips = 0; // that were begun: one that is not the last ends early

async function showFrames(times) {
  const number = ++strips;
  const strip = element("frames");
  strip.replaceChildren();
  strip.hidden = !times.length;
  const film = document.createElement("video");
  film.muted = true;
  film.src = medium.url;
  let readable = true;
  for (const seconds of times) {
    const item = document.createElement("li");
    const picture = readable ? await frameAt(film, seconds) : null;
    if (number !== strips) return;
    readable = picture !== null;
    if (picture) item.append(picture);
    item.append(`${seconds.toFixed(2)} s`);
    strip.append(item);
  }
}

function frameAt(film, seconds) {
  return new Promise((resolve) => {
    const late = setTimeout(() => resolve(null), 2000); // a file that this browser cannot decode: its times alone
    film.addEventListener("seeked", () => {
      clearTimeout(late);
      const canvas = document.createElement("canvas");
      canvas.height = 104;
      canvas.width = Math.max(1, Math.round((104 * film.videoWidth) / film.videoHeight) || 104);
      canvas.getContext("2d").drawImage(film, 0, 0, canvas.width, canvas.height);
      resolve(canvas);
    }, { once: true });
    film.currentTime = seconds;
  });
}

// --- questions and answers ---

function readAsDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.replace(/^data:[^,]*,/, "data:application/octet-stream;base64,"));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
}

async function bodyOf() {
  const asked = messages.map((message) => ({ ...message }));
  const body = { model: element("model").value, messages: asked, stream: true, stream_options: { include_usage: true } };
  body.max_tokens = Number(element("max_tokens").value) || 256;
  for (const name of ["temperature", "top_p", "seed"]) if (element(name).value !== "") body[name] = Number(element(name).value);
  if (!medium) return body;
  const data = await readAsDataUrl(medium.file);
  const file = { file_data: data, filename: medium.file.name };
  asked[0].content = [{ type: "file", file }, { type: "text", text: asked[0].content }];
  const start = Number(element("start").value), end = Number(element("end").value);
  if (medium.duration !== null && start > 0) body.start = start;
  if (medium.duration !== null && end < Number(element("end").max)) body.end = end;
  if (element("with_audio").checked && medium.kind === "video") body.with_audio = true;
  return body;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const lines = text.split("\n\n");
    text = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}

function say(kind, text) {
  const line = document.createElement("p");
  line.className = kind;
  line.textContent = text;
  element("log").append(line);
  line.scrollIntoView({ block: "nearest" });
  return line;
}

function showError(text) {
  element("error").textContent = text;
  element("error").hidden = !text;
}

function showStages(extra) {
  const times = STAGES.map((stage) => [stage, extra.seconds[stage] || 0]).filter(([, seconds]) => seconds > 0);
  const total = times.reduce((sum, [, seconds]) => sum + seconds, 0);
  const line = say("stages", times.map(([stage, seconds]) => `${stage} ${(1000 * seconds).toFixed(0)} ms`).join(", "));
  const bar = document.createElement("span");
  bar.className = "bar";
  bar.setAttribute("aria-hidden", "true");
  for (const [, seconds] of times) {
    const part = document.createElement("i");
    part.style.width = `${(100 * seconds) / total}%`;
    bar.append(part);
  }
  line.prepend(bar);
}

async function ask(question) {
  showError("");
  messages.push({ role: "user", content: question });
  say("user", question);
  const line = say("assistant", "");
  running = new AbortController();
  setRunning(true);
  let text = "";
  try {
    const body = JSON.stringify(await bodyOf());
    const headers = { "content-type": "application/json" };
    const response = await fetch("v1/chat/completions", { method: "POST", headers, body, signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      line.textContent = text += event.choices[0]?.delta.content ?? "";
      if (event.vl2) {
        showStages(event.vl2);
        if (medium?.kind === "video" && event.vl2.frames) showFrames(event.vl2.frames.map((frame) => frame.seconds).filter(Number.isFinite));
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") showError(error instanceof TypeError ? "The server does not answer; try again later." : error.message);
    else line.append(" (stopped)");
  } finally {
    if (text) messages.push({ role: "assistant", content: text });
    else {
      messages.pop();
      line.remove();
    }
    running = null;
    setRunning(false);
  }
}

function setRunning(on) {
  element("ask").disabled = on;
  element("stop").disabled = !on;
}

function newConversation() {
  running?.abort();
  messages = [];
  element("log").replaceChildren();
  showError("");
}

// --- wiring ---

async function addModels() {
  try {
    const found = await (await fetch("v1/models")).json();
    element("model").replaceChildren(...found.data.map((model) => new Option(model.id)));
  } catch {
    showError("The server does not answer; load the page again later.");
  }
}

async function addExamples() {
  const names = await (await fetch("examples")).json().catch(() => []);
  element("examples").replaceChildren(...names.map((name, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `Example ${place + 1}`;
    button.title = name;
    button.addEventListener("click", async () => {
      const content = await (await fetch(`examples/${encodeURIComponent(name)}`)).blob();
      showMedium(new File([content], name, { type: content.type }));
    });
    return button;
  }));
}

element("choose").addEventListener("click", () => element("file").click());
element("file").addEventListener("change", (event) => event.target.files[0] && showMedium(event.target.files[0]));
element("remove").addEventListener("click", () => { removeMedium(); newConversation(); });
element("reset").addEventListener("click", newConversation);
element("stop").addEventListener("click", () => running?.abort());
for (const id of ["start", "end"]) element(id).addEventListener("input", moveHandle);
const drop = element("drop");
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) showMedium(event.dataTransfer.files[0]);
  });
}
element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = element("question").value.trim();
  if (!question || running) return;
  element("question").value = "";
  ask(question);
});
element("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("form").requestSubmit();
  }
});
await Promise.all([addModels(), addExamples()]);
