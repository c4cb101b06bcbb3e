// A phone as the hand: a pad for its fingers, and the way that it is turned, both while the deadman is pressed.
import { follow, grip, inControl, sources } from "./teleop.js";

const touch = $("touch"), deadman = $("deadman");
let held = null, moved = [0, 0, 0], fingers = new Map(); // id -> {x, y, lifts}
let attitude = null; // [alpha, beta, gamma] in degrees, as the browser tells

const coarse = matchMedia("(any-pointer: coarse)");
document.addEventListener("hello", () => {
  const planes = Object.values(hello.arms).some((one) => one.plane);
  touch.hidden = !coarse.matches || planes;
});

deadman.addEventListener("pointerdown", (event) => {
  if (!inControl()) return;
  held = event.pointerId;
  deadman.setPointerCapture(held);
  show();
  follow();
});
for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
  deadman.addEventListener(end, (event) => { if (event.pointerId === held) { release(); follow(); } });
}
deadman.addEventListener("contextmenu", (event) => event.preventDefault());

function release() {
  held = null;
  fingers.clear();
  grip.towards = 0;
  show();
}

function show() {
  touch.classList.toggle("held", held !== null);
  deadman.classList.toggle("held", held !== null);
}

for (const area of [$("pad"), $("lift")]) {
  area.addEventListener("pointerdown", (event) => {
    area.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY, lifts: area.id === "lift" });
  });
  area.addEventListener("pointermove", (event) => {
    const finger = fingers.get(event.pointerId);
    if (!finger) return;
    const width = $("pad").clientWidth, dx = (event.clientX - finger.x) / width, dy = (event.clientY - finger.y) / width;
    finger.x = event.clientX; finger.y = event.clientY;
    if (held === null) return; // a finger that comes back begins where it is
    moved = finger.lifts ? [moved[0], moved[1] - dy, moved[2]] : [moved[0] + dx, moved[1], moved[2] + dy];
    follow();
  });
  for (const end of ["pointerup", "pointercancel"]) area.addEventListener(end, (event) => fingers.delete(event.pointerId));
}

for (const button of document.querySelectorAll("[data-grip]")) {
  button.addEventListener("pointerdown", (event) => { button.setPointerCapture(event.pointerId); grip.towards = Number(button.dataset.grip); });
  for (const end of ["pointerup", "pointercancel"]) button.addEventListener(end, () => { grip.towards = 0; });
}

addEventListener("deviceorientation", ({ alpha, beta, gamma }) => {
  if (alpha === null || beta === null || gamma === null) return;
  attitude = [alpha, beta, gamma];
  $("turning").textContent = "";
});

$("turns").addEventListener("change", async () => {
  if (!$("turns").checked) return;
  let why = isSecureContext ? "" : "This browser tells how it is turned over https alone.";
  try { // Safari asks the person
    if (await window.DeviceOrientationEvent?.requestPermission?.() === "denied") why = "You have not allowed it.";
  } catch (error) { why = error.message; }
  $("turning").textContent = why || (attitude ? "" : "Waiting for the phone to say how it is turned.");
});

sources.push({
  read() {
    if (held === null) return null;
    return $("turns").checked && attitude ? { phone: [...moved, ...attitude] } : { drag: [...moved, 0, 0, 0] };
  },
  release,
});

// A phone that sleeps moves nothing; better that it stays awake while it is in control.
let awake = null;
document.addEventListener("state", async () => {
  if (inControl() === Boolean(awake) || !touch.offsetParent) return;
  if (awake) { awake.release?.(); awake = null; return; }
  awake = {};
  awake = await navigator.wakeLock?.request("screen").catch(() => null) ?? {};
});
