// The recorded episodes: a list with strips, replay with curves, another verdict or task, and what shall be deleted.
import { inControl } from "./teleop.js";

const EVERY_MS = 3000; // the list is asked for, while it is on the screen
const COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#e07b00", "#9467bd", "#8c564b", "#c2479f", "#0e8f9c"];
let cameras = [], rows = new Map(), reasons = {}, asked = false, visible = false, known = "";
let shown = null; // {number, end, films: [{canvas, pictures: [[s, blob]]}], charts: [{canvas, stream}], at, since}

const mayMark = () => inControl() || (state && !state.control.holder);

document.addEventListener("hello", () => {
  $("episodes").hidden = !hello.records;
  rows.clear(); reasons = {}; known = "";
  $("list").replaceChildren(); $("hinted").textContent = "";
  leave();
  if (hello.records) ask();
});

new IntersectionObserver(([entry]) => { visible = entry.isIntersecting; }).observe($("episodes"));
setInterval(() => { if (visible && !document.hidden && hello?.records && online()) ask(); }, EVERY_MS);

document.addEventListener("state", () => {
  if (!hello.records) return;
  const now = `${state.marks} ${state.collect?.episodes ?? state.episodes}`;
  if (known && now !== known) ask();
  known = now;
});

async function ask() {
  if (asked) return;
  asked = true;
  try {
    const found = await (await fetch("episodes")).json();
    if (found.error) $("count").textContent = found.error;
    else list(found);
  } catch { /* the banner says that the connection is lost */ } finally { asked = false; }
}

// ---- the list

function list({ episodes, cameras: names }) {
  cameras = names;
  const gone = episodes.filter((one) => one.delete).length;
  $("count").textContent = `${episodes.length}${gone ? `, ${gone} of them deleted when the session ends` : ""}`;
  for (const one of [...episodes].reverse()) {
    const text = JSON.stringify(one), row = rows.get(one.uuid);
    if (row?.text === text) continue;
    if (row?.item.contains(document.activeElement) && document.activeElement instanceof HTMLInputElement) continue; // a person writes
    const item = made(one);
    if (row) row.item.replaceWith(item); else place(item, one.number);
    rows.set(one.uuid, { item, text });
  }
}

function place(item, number) { // the newest first
  const after = [...$("list").children].find((other) => Number(other.dataset.number) < number);
  $("list").insertBefore(item, after ?? null);
}

function made(one) {
  const item = document.createElement("li"), number = element("span", `${one.number + 1}`), task = document.createElement("input");
  item.dataset.number = one.number;
  item.className = [one.delete ? "gone" : "", one.changed ? "changed" : ""].join(" ");
  number.className = "number";
  number.append(element("small", `${one.seconds.toFixed(1)} s`));
  task.value = one.task;
  task.title = "Task";
  task.setAttribute("aria-label", `Task of episode ${one.number + 1}`);
  task.addEventListener("change", () => mark(one, { task: task.value.trim() || null }));
  const strip = cameras.length ? Object.assign(new Image(), { loading: "lazy", src: `episodes/${one.number}/strip/${cameras[0]}`, alt: "" }) : element("span", "");
  strip.addEventListener("click", () => replay(one));
  const acts = document.createElement("span");
  acts.className = "acts";
  acts.append(
    act("Replay", () => replay(one)),
    Object.assign(act("✓", () => mark(one, { success: true }), one.success === true), { className: "yes", title: "Success" }),
    Object.assign(act("✗", () => mark(one, { success: false }), one.success === false), { className: "no", title: "Failure" }),
    act(one.delete ? "Keep" : "Delete", () => mark(one, { delete: !one.delete })),
  );
  if (one.changed) acts.append(act("Undo", () => mark(one, { task: null, success: null })));
  item.append(number, task, strip, acts);
  if (reasons[one.number]) item.append(Object.assign(element("span", reasons[one.number].join("; ")), { className: "why" }));
  return item;
}

function act(text, does, pressed) {
  const button = element("button", text);
  button.addEventListener("click", does);
  if (pressed !== undefined) button.setAttribute("aria-pressed", pressed);
  return button;
}

function mark(one, changes) {
  if (!mayMark()) return answer("Another viewer is in control; ask for it first.", true);
  if (!send({ mark: { uuid: one.uuid, ...changes } })) answer("This WAS NOT SENT: not connected", true);
}

$("hint").addEventListener("click", () => {
  if (send({ hints: true })) $("hinted").textContent = "comparing the episodes ...";
});
document.addEventListener("hints", ({ found }) => {
  reasons = found.reasons ?? {};
  const odd = Object.keys(reasons).length;
  $("hinted").textContent = found.error ?? (odd ? `${odd} ${odd === 1 ? "episode stands" : "episodes stand"} out: look at them before you delete any.` : "None stands out.");
  for (const row of rows.values()) row.text = "";
  ask();
});

// ---- replay

async function replay(one) {
  leave();
  const mine = (shown = { number: one.number, end: one.seconds, films: [], charts: [], at: 0, since: null });
  $("replay").hidden = false;
  $("replayed").textContent = `Episode ${one.number + 1}`;
  $("replay").scrollIntoView({ block: "nearest" });
  for (const camera of cameras) load(mine, camera);
  const found = await (await fetch(`episodes/${one.number}/curves`)).json();
  if (shown !== mine) return;
  if (found.error) return answer(found.error, true);
  mine.end = found.end;
  $("seek").max = found.end;
  mine.charts = found.streams.map((stream) => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas"), caption = element("figcaption", stream.name);
    caption.append(" ", element("span", [...new Set(stream.unit.split(",").filter(Boolean))].join(", ")));
    figure.append(caption, canvas);
    $("curves").append(figure);
    return { canvas, stream };
  });
  play();
}

async function load(mine, camera) {
  const canvas = document.createElement("canvas"), film = { canvas, pictures: [], drawn: -1 };
  $("films").append(canvas);
  mine.films.push(film);
  const body = await (await fetch(`episodes/${mine.number}/film/${camera}`)).arrayBuffer(), view = new DataView(body);
  for (let at = 0; at + 8 <= body.byteLength;) {
    const seconds = view.getFloat32(at, true), size = view.getUint32(at + 4, true);
    film.pictures.push([seconds, new Blob([new Uint8Array(body, at + 8, size)], { type: "image/jpeg" })]);
    at += 8 + size;
  }
}

function leave() {
  shown = null;
  $("replay").hidden = true;
  $("films").replaceChildren();
  $("curves").replaceChildren();
}

function play() {
  if (shown.at >= shown.end) shown.at = 0;
  shown.since = performance.now() - 1000 * shown.at;
  $("play").textContent = "Pause";
}

$("leave").addEventListener("click", leave);
$("play").addEventListener("click", () => {
  if (shown.since === null) return play();
  shown.since = null;
  $("play").textContent = "Play";
});
$("seek").addEventListener("input", () => {
  shown.at = Number($("seek").value);
  shown.since = null;
  $("play").textContent = "Play";
});

(function frame() {
  requestAnimationFrame(frame);
  if (!shown || document.hidden) return;
  if (shown.since !== null) {
    shown.at = (performance.now() - shown.since) / 1000;
    if (shown.at >= shown.end) { shown.at = shown.end; shown.since = null; $("play").textContent = "Play"; }
    $("seek").value = shown.at;
  }
  for (const film of shown.films) draw(film, shown.at);
  for (const chart of shown.charts) drawStream(chart, shown);
})();

async function draw(film, at) {
  const found = film.pictures.findLastIndex(([seconds]) => seconds <= at), number = Math.max(0, found);
  if (!film.pictures.length || film.drawn === number) return;
  film.drawn = number;
  const bitmap = await createImageBitmap(film.pictures[number][1]);
  if (film.drawn === number) {
    if (film.canvas.width !== bitmap.width) { film.canvas.width = bitmap.width; film.canvas.height = bitmap.height; }
    film.canvas.getContext("2d").drawImage(bitmap, 0, 0);
  }
  bitmap.close();
}

function drawStream({ canvas, stream }, { end, at }) {
  const [g, width, height] = surface(canvas), colours = getComputedStyle(document.documentElement), left = 44;
  let low = Infinity, high = -Infinity;
  for (const curve of stream.curves) for (const [, v] of curve) if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); }
  if (low > high) return;
  if (high - low < 1e-6) { low -= 0.5; high += 0.5; }
  const x = (t) => left + (t / end) * (width - left), y = (v) => height - 4 - ((v - low) / (high - low)) * (height - 8);
  g.font = "11px system-ui, sans-serif";
  g.fillStyle = colours.getPropertyValue("--soft");
  g.textAlign = "right";
  for (const v of [low, high]) g.fillText(v.toPrecision(3), left - 4, Math.min(height - 2, Math.max(10, y(v) + 4)));
  g.lineWidth = 1.4;
  stream.curves.forEach((curve, i) => {
    g.strokeStyle = COLOURS[i % COLOURS.length];
    line(g, curve.map(([t, v]) => [x(t), v === null ? null : y(v)]));
  });
  g.strokeStyle = colours.getPropertyValue("--text");
  g.beginPath(); g.moveTo(x(at), 0); g.lineTo(x(at), height); g.stroke();
}
