// What a person's hands do, sent to the robot's process while a deadman is held. Which hands there are: `sources`.
// The view's frame: x to the right, y up, z towards the person. Uses the names of page.js.

const SEND_MS = 15; // between two messages; the robot's process takes 300 a second of everything
const TURN_RAD = 3; // of a drag across a picture's whole width
const WHEEL = 1 / 2000; // picture widths per pixel of the wheel
const LATE_MS = 3000; // it is said so long that a reading came too late
const GRIPPER_S = 1; // from closed to open, by key or trigger

export const inControl = () => Boolean(state && hello && state.control.holder === hello.viewer);
export const arms = () => Object.keys(hello?.arms ?? {});
export const sources = []; // {read(now) -> null without a deadman, or {drag|rate|phone|hand|point: [...], arm?, gripper?}}
export const grip = { value: null, towards: 0 }; // wanted (null: it stays), and where keys and triggers move it

const held = new Map(); // arm -> {source, clutch}
let clutches = 0, sentAt = -Infinity, tickedAt = performance.now();

// ---- the loop: one source at a time moves an arm, until it lets go

export function follow() {
  const now = performance.now(), wanted = new Map();
  moveGripper(now);
  if (inControl() && online() && arms().length) {
    for (const source of sources) {
      const reading = source.read(now), arm = reading?.arm ?? $("arm").value;
      if (reading && (!wanted.has(arm) || held.get(arm)?.source === source)) wanted.set(arm, { source, reading });
    }
  }
  for (const [arm, { source }] of held) if (wanted.get(arm)?.source !== source) letGo(arm);
  for (const [arm, { source }] of wanted) {
    if (held.has(arm)) continue;
    held.set(arm, { source, clutch: ++clutches });
    sentAt = -Infinity;
  }
  if (now - sentAt < SEND_MS) return;
  sentAt = now;
  const stand = $("stand").value, tool = stand === "tool";
  const how = { scale: Number($("scale").value), tool, yaw: tool ? 0 : Number(stand) };
  for (const [arm, { reading }] of wanted) {
    send({ intent: { t: now, heard, gripper: grip.value, ...how, ...reading, arm, clutch: held.get(arm).clutch } });
  }
}

export function letGo(arm) {
  const from = held.get(arm);
  if (!from) return;
  held.delete(arm);
  from.source.release?.();
  send({ intent: { t: performance.now(), heard, arm, clutch: 0 } });
}

export function letGoOfAll() {
  for (const source of sources) source.release?.();
  for (const arm of [...held.keys()]) letGo(arm);
}

function moveGripper(now) {
  const since = Math.min(now - tickedAt, 100) / 1000;
  tickedAt = now;
  if (!grip.towards) return;
  const from = grip.value ?? measuredGripper() ?? 0.5;
  setGripper(Math.min(1, Math.max(0, from + (grip.towards * since) / GRIPPER_S)));
}

export function setGripper(value) {
  grip.value = value;
  $("gripper").value = value;
  $("gripper").nextElementSibling.textContent = `${Math.round(value * 100)} %`;
}

function measuredGripper() {
  const place = hello.names.findIndex((name) => name.endsWith("gripper"));
  return place < 0 ? null : samples.at(-1)?.[3][place] ?? null;
}

// A tab that is hidden or loses the focus has no hands.
for (const [target, event] of [[window, "blur"], [window, "pagehide"], [document, "visibilitychange"]]) {
  target.addEventListener(event, () => { if (event !== "visibilitychange" || document.hidden) letGoOfAll(); });
}
(function frame() { follow(); requestAnimationFrame(frame); })();

// ---- pointer: a button held over a picture

let drag = null; // {canvas, box, pointer, at: [x, y], moved (6)}; box: where the picture was when the button went down

function dropDrag() {
  drag?.canvas.classList.remove("dragged");
  drag = null;
}

const pointer = {
  read() {
    if (!drag) return null;
    const arm = $("arm").value, plane = hello.arms[arm]?.plane;
    return plane ? { point: place(drag), arm } : { drag: drag.moved, arm };
  },
  release: dropDrag,
};

// Only the hand moves the robot: a page that scrolls or is laid out anew beneath a hand that holds does not.
function place({ box, at: [x, y] }) {
  return [(x - box.left) / box.width, (y - box.top) / box.height];
}

$("cameras").addEventListener("pointerdown", (event) => {
  const canvas = event.target.closest("canvas");
  if (!canvas || event.button !== 0 || !inControl() || !arms().length) return;
  const plane = hello.arms[$("arm").value]?.plane, camera = canvas.parentElement.dataset.camera;
  if (plane ? camera !== plane : event.pointerType === "touch") return; // on a phone pictures scroll; see phone.js
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  canvas.classList.add("dragged");
  const box = canvas.getBoundingClientRect(), at = [event.clientX, event.clientY];
  drag = { canvas, box, pointer: event.pointerId, at, moved: [0, 0, 0, 0, 0, 0] };
  document.activeElement?.blur?.();
  follow();
});
$("cameras").addEventListener("pointermove", (event) => {
  if (drag?.pointer !== event.pointerId) return;
  const width = drag.canvas.clientWidth, dx = (event.clientX - drag.at[0]) / width, dy = (event.clientY - drag.at[1]) / width;
  drag.at = [event.clientX, event.clientY];
  const moved = drag.moved;
  drag.moved = event.shiftKey
    ? [moved[0], moved[1], moved[2], moved[3] + TURN_RAD * dy, moved[4] + TURN_RAD * dx, moved[5]]
    : [moved[0] + dx, moved[1] - dy, ...moved.slice(2)];
  follow();
});
for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
  $("cameras").addEventListener(end, (event) => {
    if (drag?.pointer !== event.pointerId) return;
    dropDrag();
    follow();
  });
}
$("cameras").addEventListener("wheel", (event) => {
  if (!drag) return;
  event.preventDefault();
  const amount = event.deltaY + event.deltaX, axis = event.shiftKey ? 5 : 2; // browsers turn shift and wheel sideways
  drag.moved = drag.moved.with(axis, drag.moved[axis] + amount * WHEEL * (event.shiftKey ? TURN_RAD : 1));
  follow();
}, { passive: false });

// ---- keys: those that are held

const ARROWS = { ArrowUp: "KeyW", ArrowLeft: "KeyA", ArrowDown: "KeyS", ArrowRight: "KeyD" };
const AXES = { KeyA: [0, -1], KeyD: [0, 1], KeyF: [1, -1], KeyR: [1, 1], KeyW: [2, -1], KeyS: [2, 1] };
const TURNS = { KeyA: [4, 1], KeyD: [4, -1], KeyW: [3, -1], KeyS: [3, 1], KeyF: [3, 1], KeyR: [3, -1] };
const ROLLS = { KeyQ: [5, 1], KeyE: [5, -1] };
const GRIPS = { KeyO: 1, KeyC: -1 };
const keys = new Set();
let shift = false;

// A slider and a list have a use for the arrows.
const steers = (event) => typing(event) || (event.code in ARROWS && event.target.matches("input, select"));

const keyboard = {
  read() {
    const rate = [0, 0, 0, 0, 0, 0];
    let any = false;
    if (!keys.size) return null;
    for (const key of keys) {
      const [axis, way] = ROLLS[key] ?? (shift ? TURNS : AXES)[key] ?? [];
      if (axis === undefined) continue;
      rate[axis] = Math.max(-1, Math.min(1, rate[axis] + way));
      any = true;
    }
    grip.towards = [...keys].reduce((sum, key) => sum + (GRIPS[key] ?? 0), 0);
    return any || grip.towards ? { rate } : null;
  },
  release() { keys.clear(); grip.towards = 0; },
};

for (const kind of ["keydown", "keyup"]) {
  document.addEventListener(kind, (event) => {
    shift = event.shiftKey;
    const code = ARROWS[event.code] ?? event.code, known = code in AXES || code in ROLLS || code in GRIPS;
    if (kind === "keyup") keys.delete(code);
    else if (known && inControl() && !event.ctrlKey && !event.metaKey && !event.altKey && !steers(event)) {
      if (!event.repeat) keys.add(code);
      event.preventDefault(); // arrows would scroll the page
    }
    follow();
  });
}

// ---- gamepad, standard mapping (W3C): RB (5) is the deadman

const DEAD = 0.12; // of a stick, about its middle

const gamepad = {
  read() {
    const pad = [...navigator.getGamepads()].find((one) => one?.connected && one.mapping === "standard" && one.buttons[5]?.pressed);
    if (!pad) return null;
    const [lx, ly, rx, ry] = pad.axes.slice(0, 4).map((v) => Math.sign(v) * Math.max(0, Math.abs(v) - DEAD) / (1 - DEAD));
    grip.towards = pad.buttons[6].value - pad.buttons[7].value;
    const rate = pad.buttons[4].pressed ? [0, 0, 0, ly, -lx, -rx] : [lx, -ry, ly, 0, -rx, 0];
    return { rate: rate.map((v) => Math.max(-1, Math.min(1, v))) };
  },
  release() { grip.towards = 0; },
};

sources.push(pointer, keyboard, gamepad);

// ---- settings, and who is in control

for (const button of document.querySelectorAll("[data-control]")) {
  button.addEventListener("click", () => {
    letGoOfAll();
    if (!send({ control: button.dataset.control })) answer("This WAS NOT SENT: not connected", true);
  });
}
$("scale").addEventListener("input", () => { $("scale").nextElementSibling.textContent = `${Number($("scale").value).toFixed(1)} ×`; });
$("gripper").addEventListener("input", () => setGripper(Number($("gripper").value)));

document.addEventListener("hello", () => {
  $("teleop").hidden = false;
  $("hands").hidden = !arms().length;
  $("stale").textContent = `${hello.stale_ms} ms`;
  $("arm").replaceChildren(...arms().map((name) => Object.assign(element("option", name), { value: name })));
  $("arm").parentElement.hidden = arms().length < 2;
  const planes = Object.values(hello.arms).map((one) => one.plane);
  for (const figure of $("cameras").children) figure.classList.toggle("plane", planes.includes(figure.dataset.camera));
  const flat = arms().length > 0 && arms().every((name) => hello.arms[name].plane);
  for (const one of document.querySelectorAll("#hands .space")) one.hidden = flat;
  for (const one of document.querySelectorAll("#hands .flat")) one.hidden = !flat;
  $("stand").querySelector("[value=tool]").hidden = !arms().some((name) => hello.arms[name].tool);
  $("gripper").parentElement.hidden = !hello.names.some((name) => name.endsWith("gripper"));
  grip.value = null;
  $("gripper").nextElementSibling.textContent = "stays";
  held.clear();
  late = { count: null, at: -Infinity };
});

document.addEventListener("state", () => {
  const { holder, asker, waits_s } = state.control, mine = inControl(), asks = asker === hello.viewer;
  let text = holder ? (mine ? "You are in control." : `${holder} is in control.`) : "Nobody is in control.";
  if (mine && asker) text = `${asker} asks for the control; it passes in ${Math.ceil(waits_s)} s unless you keep it.`;
  if (asks) text += ` You have asked; it is yours in ${Math.ceil(waits_s)} s unless they keep it.`;
  $("holder").textContent = text;
  document.body.classList.toggle("driving", mine && arms().length > 0);
  document.body.classList.toggle("asked", mine && Boolean(asker));
  const shows = { ask: !mine && !asks, give: mine || asks, grant: mine && asker, refuse: mine && asker };
  for (const button of document.querySelectorAll("[data-control]")) button.hidden = !shows[button.dataset.control];
  $("moving").textContent = arms().length ? motion(mine) : "";
});

let late = { count: null, at: -Infinity }; // readings that came too late, and performance.now() of the newest

const HANDS = { rate: "keys or sticks", drag: "the pointer", phone: "the phone", hand: "a controller", point: "the pointer" };

function motion(mine) {
  const { hands, refused } = state.teleop, moving = Object.entries(hands);
  const count = refused["too old"] ?? 0;
  if (count !== late.count) late = { count, at: late.count === null ? -Infinity : performance.now() };
  const lately = performance.now() - late.at < LATE_MS;
  const tail = lately ? " Some of it comes too late and is not followed: is this computer or its network busy?" : "";
  if (moving.some(([, how]) => how === "jump")) return `The hand has jumped and is not followed: let go and take it again.${tail}`;
  const which = (arm) => (arms().length > 1 ? ` (${arm})` : "");
  if (moving.length) return `Moved by ${moving.map(([arm, how]) => HANDS[how] + which(arm)).join(", ")}.${tail}`;
  if (!mine) return `Take control to move the robot.${tail}`;
  const when = state.collect ? "The robot follows your hand in an episode." : "The robot follows your hand once you press “Take over”.";
  return (state.state === "TELEOP" ? "The robot waits for your hand." : when) + tail;
}
