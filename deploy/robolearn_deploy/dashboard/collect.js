// A collecting session: where it is, what comes next, and how far it has come; cues for the eye and the ear.
import { inControl, sources } from "./teleop.js";

const STAGES = {
  READY: "Ready", RETURNING: "To the start pose", COUNTDOWN: "Get ready", EPISODE: "Recording", STOPPING: "Coming to rest",
  JUDGING: "How was it?", OVER: "The session is over",
};
const BEEPS = { // [Hz, s] one after the other
  COUNT: [[660, 0.09]], GO: [[1320, 0.35]], STOPPED: [[440, 0.25]], SAVED: [[660, 0.1], [990, 0.18]],
  DISCARDED: [[660, 0.1], [440, 0.18]], REFUSED: [[220, 0.3]], FAULT: [[220, 0.25], [180, 0.4]],
  OVER: [[660, 0.12], [880, 0.12], [1320, 0.4]],
};
let cues = null, sound = null;

document.addEventListener("hello", () => { cues = null; });

document.addEventListener("state", () => {
  const c = state.collect;
  $("collect").hidden = !c;
  for (const id of ["instruct", "inforce", "pair"]) $(id).hidden = Boolean(c); // the session sees to what they do
  if (!c) return;
  if ($("verdicts").parentElement !== $("collect")) $("collect").append($("verdicts"));
  $("verdicts").querySelector("[data-do=END]").textContent = "End session";
  document.body.dataset.stage = c.stage;
  if (state.cause?.startsWith("paused by a person") && c.stage !== "EPISODE") $("cause").textContent = "between episodes"; // the session's pause
  $("stage").textContent = c.waiting ? "Move to begin" : STAGES[c.stage];
  const left = c.ends === null || c.waiting ? null : Math.max(0, (c.ends - serverNow()) / 1000);
  $("clock").textContent = left === null || c.stage === "RETURNING" || c.stage === "STOPPING" ? "" : c.stage === "COUNTDOWN" ? Math.ceil(left) : `${left.toFixed(0)} s`;
  $("task").textContent = c.task;
  $("note").textContent = c.waiting ? "Hold the deadman and move: recording begins then." : c.stage === "COUNTDOWN" ? "" : c.note; // the clock counts
  document.querySelector("[data-do=NEXT_TASK]").hidden = c.tasks < 2;
  $("progress").max = c.goal;
  $("progress").value = c.episodes;
  const rate = c.episodes ? `, ${Math.round((100 * c.successes) / c.episodes)} % succeeded` : "";
  const end = c.left_s === null ? "" : `, about ${minutes(c.left_s)} left`;
  $("sofar").textContent = `${c.episodes} of ${c.goal} episodes${rate}; ${minutes(c.recorded_s)} recorded in ${minutes(c.elapsed_s)}${end}` +
    (c.discarded ? `; ${c.discarded} discarded` : "");
  if (cues !== null && c.cues !== cues) cue(c.cue);
  cues = c.cues;
});

const minutes = (s) => (s < 90 ? `${Math.round(s)} s` : `${Math.round(s / 60)} min`);

// A browser makes no sound before the person has touched the page.
for (const kind of ["pointerdown", "keydown"]) {
  document.addEventListener(kind, () => { sound ??= new AudioContext(); sound.resume(); }, { capture: true });
}

export function cue(name) {
  $("collect").dataset.cue = name;
  setTimeout(() => { if ($("collect").dataset.cue === name) delete $("collect").dataset.cue; }, 600);
  if (!sound || !$("audible").checked) return;
  let at = sound.currentTime;
  for (const [hertz, lasts] of BEEPS[name] ?? []) {
    const tone = sound.createOscillator(), volume = sound.createGain();
    tone.frequency.value = hertz;
    volume.gain.setValueAtTime(0.25, at);
    volume.gain.exponentialRampToValueAtTime(0.001, at + lasts);
    tone.connect(volume).connect(sound.destination);
    tone.start(at);
    tone.stop(at + lasts);
    at += lasts;
  }
}

// ---- without the mouse: keys, and the gamepad's other buttons

const KEYS = { Digit1: "SUCCESS", Digit2: "FAILURE", Digit3: "DISCARD", Digit4: "REDO", KeyN: "NEXT_TASK" };
const PAD = { 0: "SUCCESS", 1: "FAILURE", 2: "DISCARD", 3: "REDO", 8: "NEXT_TASK" };
const goOn = () => (state.can.includes("START") ? "START" : "STOP");

export function say(name) { // what the session's buttons say, by other means
  if (state?.collect && inControl() && state.can.includes(name)) press(name);
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || typing(event) || !state?.collect) return;
  if (event.code === "Enter" && !(event.target instanceof HTMLButtonElement)) say(goOn());
  else if (event.code in KEYS) say(KEYS[event.code]);
});

const down = new Set();
sources.push({
  read() { // looks on; no deadman
    const pad = [...navigator.getGamepads()].find((one) => one?.connected && one.mapping === "standard");
    for (const [number, name] of pad && state?.collect ? [...Object.entries(PAD), [9, ""]] : []) {
      const pressed = pad.buttons[number]?.pressed;
      if (pressed && !down.has(number)) say(name || goOn());
      if (pressed) down.add(number); else down.delete(number);
    }
    return null;
  },
});
