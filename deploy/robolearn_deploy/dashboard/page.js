"use strict";
// Shows what the robot's process sends; decides nothing. Times are ms since that process began; see serverNow().
// The modules beside it use its names, and hear of what comes by the events "hello" and "state" of the document.

const SPAN_MS = 8000, AHEAD_MS = 1500; // of a strip chart, before and after now
const SILENT_MS = 1000; // without a message what is shown is old
const RETRY_MS = 5000; // without a message: a network that has gone says nothing, and the connection is made anew
const CONFIRM_MS = 1500; // in which a command should show its effect
const FOLLOWED = ["MOVING", "RUNNING", "HOLDING"]; // states in which the chunk in force says what is to come
const CURVES = ["requested", "sent", "measured"];
const $ = (id) => document.getElementById(id);

let socket = null, hello = null, state = null, plan = { times: [], actions: [] };
let samples = []; // [ms, requested (N), sent (N), measured (N)]
let heard = [0, 0]; // the newest instant of the robot's process that came, and performance.now() then
let heardAt = -Infinity, offset = null; // performance.now(): of the last message; minus the server's clock, at the least
let over = false, pictures = new Map(), pending = new Map(), looks = new Set(), armed = -Infinity;
let triedAt = -Infinity; // performance.now() of the last attempt to connect

// ---- connection

function connect() {
  if (socket) {
    socket.onmessage = socket.onclose = null;
    socket.close();
  }
  triedAt = performance.now();
  socket = new WebSocket((location.protocol === "https:" ? "wss://" : "ws://") + location.host + "/socket");
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => {
    heardAt = performance.now();
    if (data instanceof ArrayBuffer) return showPicture(data);
    const message = JSON.parse(data);
    ({ hello: begin, state: update, noted, refused, over: end, hints })[message.kind](message);
  };
  socket.onclose = () => {
    heardAt = -Infinity;
    triedAt = performance.now() - RETRY_MS + 1000;
    showLink();
  };
}

function send(message) {
  if (!online() || socket.readyState !== WebSocket.OPEN) return false;
  socket.send(JSON.stringify(message));
  return true;
}

const online = () => performance.now() - heardAt < SILENT_MS;
const serverNow = () => (offset === null ? 0 : performance.now() - offset);

function showLink() {
  const live = online(), quiet = live && state && state.state && serverNow() - state.tick > SILENT_MS;
  document.body.classList.toggle("offline", !live);
  $("link").textContent = live ? hello?.viewer ?? "connected" : over ? "ended" : "not connected";
  let text = "";
  if (!live) text = over ? "The run is over." : "Not connected: what you see is old. E-STOP cannot be sent; use the robot's own button.";
  else if (quiet) text = `The robot's control loop has been silent for ${seconds(serverNow() - state.tick)}.`;
  $("banner").textContent = text;
  $("banner").hidden = !text;
  if (!live) enable([]);
}

// ---- what comes

function begin(message) {
  hello = message;
  samples = []; state = null; offset = null; over = false;
  pending.clear(); pictures.clear(); $("answer").textContent = ""; $("log").replaceChildren();
  $("rig").textContent = document.title = hello.rig;
  looks = new Set();
  $("cameras").replaceChildren(...hello.cameras.map(cameraFigure));
  $("cameras").hidden = !hello.cameras.length;
  showLink();
  $("joints").querySelector("h2").firstChild.textContent = hello.units.includes("rad") ? "Joints " : "Action ";
  $("charts").replaceChildren(...hello.names.map(chart));
  document.dispatchEvent(new Event("hello"));
}

function update(message) {
  heard = [message.now, performance.now()];
  send({ seen: message.n });
  const late = performance.now() - message.now;
  offset = offset === null ? late : Math.min(offset + 0.05, late); // follows a clock that drifts, not a late message
  if (message.plan) plan = message.plan;
  samples.push(...message.samples);
  while (samples.length && samples[0][0] < message.now - SPAN_MS - 1000) samples.shift();
  state = message;
  for (const event of message.events ?? []) log(event);
  if (message.figures) showFigures(message.figures);
  for (const [name, wait] of pending) {
    if (wait.done?.(state)) { pending.delete(name); answer(`${wait.title}: done`); }
  }
  showState();
  document.dispatchEvent(new Event("state"));
}

function noted({ command, note }) {
  const wait = pending.get(command);
  if (wait && !wait.done) wait.done = (s) => s.heard > note;
}

function refused({ why, command }) {
  pending.delete(command ?? "instruct");
  answer(why, true);
}

function hints(message) {
  document.dispatchEvent(Object.assign(new Event("hints"), { found: message }));
}

function end() {
  over = true;
}

function showState() {
  const s = state, name = s.state ?? "not started";
  $("state").textContent = name.replace("_", "-");
  $("state").className = name;
  $("cause").textContent = s.cause ?? "";
  const facts = {
    phase: !s.collect && { STARTING: "starting", EPISODE: "in an episode", RESET: "between episodes", ENDING: "ending" }[s.phase],
    episode: s.collect ? "" : s.state && s.episode >= 0 ? `${s.episode + 1} (${s.episodes} over, ${s.successes} successes)` : "none yet",
    arm: s.condition?.toLowerCase().replaceAll("_", " ") ?? "-",
    chunk: s.collect ? "" : s.state && s.chunk >= 0 ? `number ${s.chunk}` : "none",
    teleoperator: s.state === "TELEOP" ? (s.person ? "held by a person" : "not held") : "",
  };
  const rows = Object.entries(facts).filter(([, value]) => value);
  $("facts").replaceChildren(...rows.flatMap(([key, value]) => [element("dt", key), element("dd", value)]));
  $("instruction").textContent = s.instruction || "none";
  $("limit").textContent = s.limit ? `now: ${s.limit.toLowerCase().replace("_", " ")}` : "";
  enable(s.can);
}

function enable(can) {
  const holder = state?.control.holder, theirs = holder && holder !== hello.viewer;
  for (const button of document.querySelectorAll("[data-do]")) {
    const name = button.dataset.do;
    button.disabled = name !== "E_STOP" && (!can.includes(name) || (theirs && name !== "PAUSE"));
    button.classList.toggle("pending", pending.has(name));
    button.classList.toggle("next", name === "RELEASE" || (name === "RESUME" && Boolean(state?.paused)));
  }
  $("instruct").querySelector("button").disabled = !can.length || theirs;
}

function showFigures(f) {
  const spread = (values) => (values ? `p50 ${short(values[0])}, p99 ${short(values[1])}, max ${short(values[2])} ms` : "not measured");
  $("late").textContent = `${spread(f.lateness)}; ${f.missed} missed`;
  $("slow").textContent = `${spread(f.delay)}; ${f.refused} refused`;
  bars($("lateness"), f.late_counts, f.late_edges.map(String), true);
  bars($("delay"), f.delay_counts, f.delay_counts.slice(1).map((_, i) => String(Math.round((i + 1) * f.delay_step))), false);
  const rows = Object.entries(f.limited).map(([reason, ticks]) => {
    const row = element("li", reason);
    row.append(element("span", `${ticks} ticks`));
    return row;
  });
  $("limited").replaceChildren(...(rows.length ? rows : [element("li", "nothing had to be changed")]));
}

function log({ at_ms, text }) {
  const line = element("li", text), when = new Date(Date.now() - (serverNow() - at_ms));
  line.prepend(element("time", when.toTimeString().slice(0, 8)));
  $("log").prepend(line);
  while ($("log").children.length > 100) $("log").lastChild.remove();
}

// ---- what goes

const EFFECT = {
  E_STOP: (s) => s.state === "E_STOPPED",
  RELEASE: (s) => s.state !== "E_STOPPED",
  PAUSE: (s) => s.paused,
  RESUME: (s) => !s.paused && s.state !== "E_STOPPED",
  TAKE_OVER: (s) => s.state === "TELEOP",
  HAND_BACK: (s) => s.state !== "TELEOP",
}; // the others are done when the supervisor has taken note of them

function press(name) {
  const title = document.querySelector(`[data-do=${name}]`).firstChild.textContent.replace(/: press again$/, "");
  if (name === "END" && performance.now() - armed > 3000) {
    armed = performance.now();
    return answer(`Press “${title}” again to end it.`);
  }
  if (!send({ do: name })) return answer(`${title} WAS NOT SENT: not connected`, true);
  pending.set(name, { title, at: performance.now(), done: EFFECT[name] });
  answer(`${title}: sent, waiting for the robot`);
}

function answer(text, bad = false) {
  $("answer").textContent = text;
  $("answer").classList.toggle("bad", bad);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button) press(button.dataset.do);
});

const typing = (event) => event.target instanceof HTMLInputElement && event.target.type !== "range";
for (const kind of ["keydown", "keyup"]) {
  document.addEventListener(kind, (event) => {
    if (event.code !== "Escape" && (event.code !== "Space" || typing(event))) return;
    event.preventDefault(); // the space bar would press the button that has the focus
    event.stopPropagation();
    if (kind === "keydown" && !event.repeat) press("E_STOP");
  }, { capture: true });
}

$("instruct").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim().replace(/\s+/g, " ");
  if (!send({ instruct: text })) return answer("The instruction WAS NOT SENT: not connected", true);
  pending.set("instruct", { title: "Instruction", at: performance.now(), done: (s) => !text || s.instruction === text });
  answer("Instruction: sent, waiting for the robot");
});

setInterval(() => {
  showLink();
  if (performance.now() - Math.max(heardAt, triedAt) > RETRY_MS) connect();
  $("since").textContent = state?.state ? `for ${seconds(serverNow() - state.entered)}` : "";
  for (const [name, wait] of pending) {
    if (performance.now() - wait.at < CONFIRM_MS) continue;
    pending.delete(name);
    answer(`${wait.title}: NOT CONFIRMED by the robot`, true);
  }
}, 200);

// ---- cameras: only those on the screen are asked for

const watched = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) looks.add(target.dataset.camera);
    else looks.delete(target.dataset.camera);
  }
  look();
});
document.addEventListener("visibilitychange", look);

function look() {
  send({ look: document.hidden ? [] : [...looks] });
}

function cameraFigure(name) {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas");
  canvas.width = 4; canvas.height = 3;
  const caption = element("figcaption", name), age = element("span", "no picture yet");
  caption.append(age);
  figure.append(canvas, caption);
  figure.dataset.camera = name;
  pictures.set(name, { figure, canvas, age, at: null });
  watched.observe(figure);
  return figure;
}

async function showPicture(data) {
  const head = new DataView(data), name = hello.cameras[head.getUint8(0)];
  const bitmap = await createImageBitmap(new Blob([new Uint8Array(data, 9)], { type: "image/jpeg" }));
  const shown = pictures.get(name);
  shown.at = head.getFloat64(1, true);
  if (shown.canvas.width !== bitmap.width || shown.canvas.height !== bitmap.height) {
    shown.canvas.width = bitmap.width;
    shown.canvas.height = bitmap.height;
  }
  shown.canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  showAge(shown);
  send({ got: name });
}

function showAge({ figure, age, at }) {
  if (at === null) return;
  const ms = serverNow() - at;
  age.textContent = ms < 1000 ? `${Math.max(0, Math.round(ms))} ms old` : `${seconds(ms)} old`;
  figure.classList.toggle("old", ms > 1000);
}

setInterval(() => pictures.forEach(showAge), 250);

// ---- drawing

function chart(name) {
  const box = document.createElement("div"), title = document.createElement("p");
  title.append(element("b", name), element("span", ""));
  box.append(title, document.createElement("canvas"));
  return box;
}

let drawn = null; // the state that the charts show: what comes 20 times a second need not be drawn 60 times

function drawCharts() {
  requestAnimationFrame(drawCharts);
  if (document.hidden || !state || state === drawn || !online()) return;
  drawn = state;
  const now = serverNow(), colour = getComputedStyle(document.documentElement);
  [...$("charts").children].forEach((box, joint) => {
    const canvas = box.lastChild, place = canvas.getBoundingClientRect();
    if (place.bottom > 0 && place.top < innerHeight) drawChart(box, joint, now, (name) => colour.getPropertyValue("--" + name));
  });
}

function drawChart(box, joint, now, colour) {
  const [g, width, height] = surface(box.lastChild);
  const followed = FOLLOWED.includes(state.state) ? plan.times : [];
  const ahead = followed.map((t, i) => [t, plan.actions[i][joint]]).filter(([t]) => t >= now - 100);
  let low = Infinity, high = -Infinity;
  const see = (v) => { if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); } };
  for (const sample of samples) for (let k = sample[0] < now - SPAN_MS ? 4 : 1; k <= 3; k++) see(sample[k][joint]);
  for (const [, v] of ahead) see(v);
  if (low > high) return;
  const room = Math.max(0.1 * (high - low), (0.1 - (high - low)) / 2);
  low -= room; high += room;
  const left = 40, x = (t) => left + ((t - now + SPAN_MS) / (SPAN_MS + AHEAD_MS)) * (width - left), y = (v) => height - ((v - low) / (high - low)) * height;
  g.font = "11px system-ui, sans-serif";
  g.fillStyle = colour("soft");
  g.strokeStyle = colour("line");
  g.textAlign = "right";
  g.lineWidth = 1;
  for (const share of [0.1, 0.5, 0.9]) {
    const v = low + share * (high - low);
    g.fillText(v.toFixed(Math.abs(v) < 100 ? 2 : 0), left - 5, y(v) + 4);
    g.beginPath(); g.moveTo(left, y(v)); g.lineTo(width, y(v)); g.stroke();
  }
  g.strokeStyle = colour("soft");
  g.beginPath(); g.moveTo(x(now), 0); g.lineTo(x(now), height); g.stroke();
  g.save();
  g.beginPath(); g.rect(left, 0, width - left, height); g.clip();
  CURVES.forEach((name, k) => {
    g.strokeStyle = colour(name);
    g.lineWidth = [4, 1.5, 1.5][k];
    line(g, samples.map((s) => [x(s[0]), s[k + 1][joint] === null ? null : y(s[k + 1][joint])]));
  });
  g.strokeStyle = colour("plan");
  g.lineWidth = 2;
  g.setLineDash([5, 3]);
  line(g, ahead.map(([t, v]) => [x(t), y(v)]));
  g.restore();
  const last = samples.at(-1)?.[3][joint];
  box.firstChild.lastChild.textContent = last == null ? "-" : `${last.toFixed(hello.units[joint] === "px" ? 0 : 3)} ${hello.units[joint]}`;
}

function line(g, points) {
  g.beginPath();
  let drawn = false;
  for (const [px, py] of points) {
    if (py === null) drawn = false;
    else if (drawn) g.lineTo(px, py);
    else { g.moveTo(px, py); drawn = true; }
  }
  g.stroke();
}

// `edges` stand between the bars; `logarithmic`: heights, so that one late tick among thousands is seen
function bars(canvas, counts, edges, logarithmic) {
  const [g, width, height] = surface(canvas), colour = getComputedStyle(document.documentElement);
  const tall = (n) => (logarithmic ? Math.log1p(n) : n), most = Math.max(1, ...counts.map(tall)), floor = height - 32, step = width / counts.length;
  g.font = "11px system-ui, sans-serif";
  g.textAlign = "center";
  counts.forEach((n, i) => {
    const size = n ? Math.max(2, (tall(n) / most) * (floor - 16)) : 0;
    g.fillStyle = colour.getPropertyValue("--measured");
    g.fillRect(i * step + 1, floor - size, step - 2, size);
    g.fillStyle = colour.getPropertyValue("--soft");
    if (n && step > 22) g.fillText(n < 10000 ? n : Math.round(n / 1000) + "k", (i + 0.5) * step, floor - size - 3);
  });
  g.fillStyle = colour.getPropertyValue("--soft");
  const every = Math.ceil(32 / step);
  edges.forEach((text, i) => { if ((i + 1) % every === 0) g.fillText(text, (i + 1) * step, floor + 13); });
  g.textAlign = "right";
  g.fillText(logarithmic ? "ms; heights logarithmic" : "ms", width, height - 4);
}

// The canvas at the screen's resolution, empty; sizes in CSS pixels.
function surface(canvas) {
  const width = canvas.clientWidth, height = canvas.clientHeight, ratio = devicePixelRatio;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, height);
  return [g, width, height];
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

const short = (v) => (v < 10 ? v.toFixed(2) : v.toFixed(0));

function seconds(ms) {
  const s = Math.max(0, ms / 1000);
  return s < 60 ? `${s.toFixed(1)} s` : `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
}

connect();
requestAnimationFrame(drawCharts);
