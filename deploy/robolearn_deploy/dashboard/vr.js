// A VR headset (WebXR): its controllers as hands, the robot's cameras as panels in a plain room.
import { arms, follow, inControl, letGoOfAll, sources } from "./teleop.js";
import { say } from "./collect.js";

const ROOM = "local-floor"; // x right, y up, z towards where the person came from; metres
const FAR = 1.6, HIGH = 1.45, WIDE = 1.3; // m: of the panels
const TRIGGER = 0, SQUEEZE = 1, LOWER = 4, UPPER = 5; // buttons of "xr-standard" controllers
let session = null, space = null, gl = null, drawing = null, hands = new Map(); // handedness -> reading

async function whyNot() {
  if (!isSecureContext) return "not from here: browsers allow it to pages at https alone (--page-self-signed)";
  if (!navigator.xr) return "not from here: this browser has no WebXR; open this page in the headset's own";
  const there = await navigator.xr.isSessionSupported("immersive-vr").catch(() => false);
  return there ? "" : "not from here: this browser knows of no headset; open this page in the headset's own";
}

whyNot().then((why) => {
  $("headset").hidden = Boolean(why);
  $("vr").textContent = why || "“Enter VR”, above";
});
$("immerse").addEventListener("click", () => begin().catch((error) => {
  session?.end().catch(() => {});
  answer(`VR: ${error.message}`, true);
}));

async function begin() {
  session = await navigator.xr.requestSession("immersive-vr", { optionalFeatures: [ROOM] });
  session.addEventListener("end", () => { letGoOfAll(); hands.clear(); session = null; });
  session.addEventListener("visibilitychange", () => { if (session.visibilityState !== "visible") { hands.clear(); letGoOfAll(); } });
  gl = document.createElement("canvas").getContext("webgl2", { xrCompatible: true, antialias: false });
  await session.updateRenderState({ baseLayer: new XRWebGLLayer(session, gl) });
  space = await session.requestReferenceSpace(ROOM).catch(() => session.requestReferenceSpace("local"));
  drawing = prepare(gl);
  for (const camera of hello.cameras) looks.add(camera);
  look();
  session.requestAnimationFrame(frame);
}

function frame(_, at) {
  if (!session) return;
  session.requestAnimationFrame(frame);
  hands.clear();
  if (session.visibilityState === "visible") for (const input of session.inputSources) readHand(input, at);
  follow();
  const view = at.getViewerPose(space);
  if (view) draw(view);
}

// ---- hands: squeeze is the deadman, the trigger closes; the lower button starts and stops, the upper one is the e-stop

const down = new Set();

function readHand(input, at) {
  const pose = input.gripSpace && at.getPose(input.gripSpace, space), buttons = input.gamepad?.buttons ?? [];
  edge(`${input.handedness} upper`, buttons[UPPER]?.pressed, () => press("E_STOP"));
  edge(`${input.handedness} lower`, buttons[LOWER]?.pressed, () => say(state?.can.includes("START") ? "START" : "STOP"));
  const stick = input.gamepad?.axes[3] ?? 0;
  edge(`${input.handedness} up`, stick < -0.8, () => say("SUCCESS"));
  edge(`${input.handedness} down`, stick > 0.8, () => say("FAILURE"));
  if (!pose || pose.emulatedPosition || !buttons[SQUEEZE]?.pressed) return; // a guessed position is none
  const { position: p, orientation: q } = pose.transform;
  hands.set(input.handedness, { hand: [p.x, p.y, p.z, q.w, q.x, q.y, q.z], gripper: 1 - buttons[TRIGGER].value });
}

function edge(name, pressed, act) {
  if (pressed && !down.has(name)) { down.add(name); act(); }
  if (!pressed) down.delete(name);
}

// Of two arms the left hand moves the first; one arm goes with either hand.
for (const [side, number] of [["right", 1], ["left", 0], ["none", 0]]) {
  sources.push({ read() {
    const reading = hands.get(side), all = arms();
    return reading ? { ...reading, arm: all.length > 1 ? all[number] : all[0] } : null;
  } });
}

// ---- the room: a panel for each camera, one with words, a grid on the floor

const VERTEX = `#version 300 es
uniform mat4 projection, view, model; in vec3 place; in vec2 uv; out vec2 at;
void main() { at = uv; gl_Position = projection * view * model * vec4(place, 1.0); }`;
const FRAGMENT = `#version 300 es
precision mediump float; uniform sampler2D picture; uniform vec4 plain; in vec2 at; out vec4 colour;
void main() { colour = plain.a > 0.0 ? plain : texture(picture, at); }`;

function prepare(g) {
  const program = g.createProgram();
  for (const [kind, source] of [[g.VERTEX_SHADER, VERTEX], [g.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = g.createShader(kind);
    g.shaderSource(shader, source);
    g.compileShader(shader);
    g.attachShader(program, shader);
  }
  g.linkProgram(program);
  const lines = [];
  for (let i = -5; i <= 5; i++) lines.push(i, 0, -5, 0, 0, i, 0, 5, 0, 0, -5, 0, i, 0, 0, 5, 0, i, 0, 0);
  const square = [-0.5, -0.5, 0, 0, 1, 0.5, -0.5, 0, 1, 1, -0.5, 0.5, 0, 0, 0, 0.5, 0.5, 0, 1, 0];
  const words = Object.assign(document.createElement("canvas"), { width: 1024, height: 128 });
  const uniforms = ["projection", "view", "model", "plain"].map((name) => [name, g.getUniformLocation(program, name)]);
  return {
    program, words, written: "", square: shape(g, program, square), floor: shape(g, program, lines), lines: lines.length / 5,
    uniforms: Object.fromEntries(uniforms), textures: new Map(),
  };
}

function shape(g, program, numbers) {
  const made = g.createVertexArray();
  g.bindVertexArray(made);
  g.bindBuffer(g.ARRAY_BUFFER, g.createBuffer());
  g.bufferData(g.ARRAY_BUFFER, new Float32Array(numbers), g.STATIC_DRAW);
  for (const [name, length, offset] of [["place", 3, 0], ["uv", 2, 12]]) {
    const where = g.getAttribLocation(program, name);
    g.enableVertexAttribArray(where);
    g.vertexAttribPointer(where, length, g.FLOAT, false, 20, offset);
  }
  return made;
}

function draw(view) {
  const g = gl, d = drawing, layer = session.renderState.baseLayer;
  g.bindFramebuffer(g.FRAMEBUFFER, layer.framebuffer);
  g.clearColor(0.08, 0.09, 0.11, 1);
  g.clear(g.COLOR_BUFFER_BIT | g.DEPTH_BUFFER_BIT);
  g.enable(g.DEPTH_TEST);
  g.useProgram(d.program);
  write(d);
  const panels = [...pictures.values()].filter((shown) => shown.at !== null).map((shown, i, all) => {
    const high = (WIDE * shown.canvas.height) / shown.canvas.width, turn = ((all.length - 1) / 2 - i) * 1.05 * (WIDE / FAR);
    return { canvas: shown.canvas, new: shown.at, model: panel(turn, HIGH, WIDE, high) };
  });
  panels.push({ canvas: d.words, new: d.written, model: panel(0, HIGH - 0.65, WIDE, WIDE / 8) });
  for (const one of panels) upload(g, d, one);
  for (const eye of view.views) {
    const port = layer.getViewport(eye);
    g.viewport(port.x, port.y, port.width, port.height);
    g.uniformMatrix4fv(d.uniforms.projection, false, eye.projectionMatrix);
    g.uniformMatrix4fv(d.uniforms.view, false, eye.transform.inverse.matrix);
    g.uniform4f(d.uniforms.plain, 0.25, 0.28, 0.32, 1);
    g.uniformMatrix4fv(d.uniforms.model, false, panel(0, 0, 1, 1, 0));
    g.bindVertexArray(d.floor);
    g.drawArrays(g.LINES, 0, d.lines);
    g.uniform4f(d.uniforms.plain, 0, 0, 0, 0);
    g.bindVertexArray(d.square);
    for (const { canvas, model } of panels) {
      g.bindTexture(g.TEXTURE_2D, d.textures.get(canvas).texture);
      g.uniformMatrix4fv(d.uniforms.model, false, model);
      g.drawArrays(g.TRIANGLE_STRIP, 0, 4);
    }
  }
}

// Column-major: a panel that far away, turned about the person, facing them.
function panel(turn, high, width, height, far = FAR) {
  const c = Math.cos(turn), s = Math.sin(turn);
  return new Float32Array([width * c, 0, -width * s, 0, 0, height, 0, 0, s, 0, c, 0, -far * s, high, -far * c, 1]);
}

function upload(g, d, { canvas, new: at }) {
  const known = d.textures.get(canvas) ?? { texture: g.createTexture(), at: null };
  d.textures.set(canvas, known);
  if (known.at === at) return;
  known.at = at;
  g.bindTexture(g.TEXTURE_2D, known.texture);
  g.texImage2D(g.TEXTURE_2D, 0, g.RGBA, g.RGBA, g.UNSIGNED_BYTE, canvas);
  g.texParameteri(g.TEXTURE_2D, g.TEXTURE_MIN_FILTER, g.LINEAR);
  g.texParameteri(g.TEXTURE_2D, g.TEXTURE_WRAP_S, g.CLAMP_TO_EDGE);
  g.texParameteri(g.TEXTURE_2D, g.TEXTURE_WRAP_T, g.CLAMP_TO_EDGE);
}

function write(d) {
  const c = state?.collect, back = !online() ? "#c81e1e" : c?.stage === "EPISODE" ? "#7f1010" : "#1a1e24";
  const what = !online() ? "Not connected" : c ? `${$("stage").textContent} ${$("clock").textContent}  ${c.episodes} of ${c.goal}: ${c.task}` : (state?.state ?? "").replace("_", "-");
  const hint = !inControl() ? "Take control on the page first."
    : ![...session.inputSources].some((input) => input.gripSpace) ? "No controller is here: take one in your hand (a phone in a viewer has none)."
    : "squeeze: move, trigger: close, A X: start and stop, stick: up success, down failure, B Y: E-STOP";
  if (d.written === back + what + hint) return;
  d.written = back + what + hint;
  const canvas = d.words, g = canvas.getContext("2d");
  g.fillStyle = back;
  g.fillRect(0, 0, canvas.width, canvas.height);
  g.fillStyle = "#fff";
  g.font = "600 40px system-ui, sans-serif";
  g.fillText(what, 20, 48, 984);
  g.font = "30px system-ui, sans-serif";
  g.fillText(hint, 20, 98, 984);
}
