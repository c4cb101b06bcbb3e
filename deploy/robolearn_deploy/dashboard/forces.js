// Forces and touch as they are now: an arrow as the person sees it from behind the arm, curves over time, a map of touch.

const SPAN_MS = 8000;
let felt = []; // per stream: {name, shape, points: [[ms, values]], canvas, text}
let most = 5; // N, of the arrow's length; grows with what comes

document.addEventListener("hello", () => {
  const streams = Object.entries(hello.forces ?? {});
  $("forces").hidden = !streams.length;
  felt = streams.map(([name, shape]) => {
    const figure = document.createElement("figure"), caption = element("figcaption", name), text = element("span", "nothing yet");
    const canvas = document.createElement("canvas");
    caption.append(" ", text);
    figure.append(caption, canvas);
    return { name, shape, points: [], figure, canvas, text };
  });
  $("forces").replaceChildren(...felt.map((one) => one.figure));
});

document.addEventListener("state", () => {
  for (const [number, ms, values] of state.forces ?? []) felt[number]?.points.push([ms, values]);
  for (const { points } of felt) while (points.length && points[0][0] < state.now - SPAN_MS) points.shift();
});

const size = (v) => Math.hypot(...v.map((x) => x ?? 0));

let drawn = null; // the state that is shown

(function frame() {
  requestAnimationFrame(frame);
  if (document.hidden || !state || state === drawn || !online()) return;
  drawn = state;
  for (const one of felt) {
    const last = one.points.at(-1);
    if (!last) continue;
    if (one.shape.length === 1 && one.shape[0] % 6 === 0) drawWrench(one, last[1]);
    else drawTouch(one, last[1]);
  }
})();

// Wrenches (6 for each arm): force N, torque N m, in the base frame.
function drawWrench({ points, canvas, text }, now) {
  const [g, width, height] = surface(canvas), colours = getComputedStyle(document.documentElement);
  const colour = (name) => colours.getPropertyValue("--" + name), arms = now.length / 6, side = height / arms;
  text.textContent = [...Array(arms).keys()].map((k) =>
    `${size(now.slice(6 * k, 6 * k + 3)).toFixed(1)} N, ${size(now.slice(6 * k + 3, 6 * k + 6)).toFixed(2)} N m`).join("; ");
  most = Math.max(5, ...points.map(([, v]) => size(v.slice(0, 3))));
  g.font = "11px system-ui, sans-serif";
  for (let k = 0; k < arms; k++) {
    const [fx, fy, fz] = now.slice(6 * k, 6 * k + 3).map((v) => v ?? 0), middle = side / 2, top = k * side;
    const length = (middle - 6) / most, toX = middle - fy * length, toY = top + middle - fz * length;
    g.strokeStyle = colour("line");
    g.lineWidth = 1;
    g.beginPath(); g.arc(middle, top + middle, middle - 4, 0, 7); g.stroke();
    g.strokeStyle = g.fillStyle = colour("sent");
    g.lineWidth = 4;
    g.beginPath(); g.moveTo(middle, top + middle); g.lineTo(toX, toY); g.stroke();
    g.beginPath(); g.arc(toX, toY, 5, 0, 7); g.fill(); // the head; the disc below is what goes away from the person
    g.globalAlpha = 0.3;
    g.beginPath(); g.arc(middle, top + middle, Math.abs(fx) * length, 0, 7); g.fill();
    g.globalAlpha = 1;
    g.fillStyle = colour("soft");
    g.fillText(`${most.toFixed(0)} N`, 4, top + 12);
    const left = side + 36, at = (ms) => left + ((ms - serverNow() + SPAN_MS) / SPAN_MS) * (width - left), y = (v) => top + middle - (v / most) * (middle - 6);
    g.strokeStyle = colour("line");
    g.lineWidth = 1;
    for (const v of [-most, 0, most]) {
      g.beginPath(); g.moveTo(left, y(v)); g.lineTo(width, y(v)); g.stroke();
      g.fillText(v.toFixed(0), side + 8, y(v) + 4);
    }
    ["measured", "plan", "sent"].forEach((name, axis) => {
      g.strokeStyle = g.fillStyle = colour(name);
      g.lineWidth = 1.5;
      line(g, points.map(([ms, v]) => [at(ms), v[6 * k + axis] === null ? null : y(v[6 * k + axis])]));
      g.fillText("xyz"[axis], left + 4 + 12 * axis, top + 12);
    });
  }
}

function drawTouch({ shape, canvas, text }, values) {
  const [g, width, height] = surface(canvas), columns = shape.length > 1 ? shape.at(-1) : Math.ceil(Math.sqrt(values.length));
  const rows = Math.ceil(values.length / columns), cell = Math.min(width / columns, height / rows), peak = Math.max(1e-9, ...values.map((v) => Math.abs(v ?? 0)));
  text.textContent = `most ${peak.toPrecision(3)}`;
  values.forEach((v, i) => {
    const share = Math.abs(v ?? 0) / peak;
    g.fillStyle = `hsl(${220 - 220 * share} 80% ${25 + 35 * share}%)`;
    g.fillRect((i % columns) * cell, Math.floor(i / columns) * cell, cell - 1, cell - 1);
  });
}
