const CURVES = ["#2a7fb8", "#c2571a", "#2f8f5b", "#8a5fbf", "#b3467d", "#7a7f2a"];
const BOX = { wide: 620, high: 340, left: 66, right: 16, top: 14, bottom: 46 };

/** Values that an axis names: whole decades of a logarithmic one, else 1, 2 or 5 times a power. */
function ticks(low, high, log) {
  if (log) {
    const first = Math.ceil(low - 1e-9), last = Math.floor(high + 1e-9), step = Math.max(1, Math.ceil((last - first) / 6));
    const found = [];
    for (let n = first; n <= last; n += step) found.push(n);
    return found.length > 1 ? found : [low, high];
  }
  const raw = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw), found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

/** A number beside an axis: no more digits than it has. */
function tick(value) {
  const number = Number(value.toPrecision(4)), size = Math.abs(number);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? number.toExponential().replace("e+", "e") : String(number);
}

const there = (value) => typeof value === "number";

function extent(values, log) {
  const some = values.filter((value) => there(value) && (!log || value > 0)).map((value) => log ? Math.log10(value) : value);
  if (!some.length) return [0, 1];
  const low = some.reduce((a, b) => Math.min(a, b)), high = some.reduce((a, b) => Math.max(a, b));
  if (low === high) return [low - 0.5, high + 0.5];
  return log ? [low, high] : [low > 0 && low < 0.4 * high ? 0 : low, high];
}

function drawFigure(figure) {
  const whole = make("figure"), points = figure.curves.flatMap((curve) => curve.points);
  const [x0, x1] = extent(points.map((point) => point[0]), figure.log[0]);
  const [y0, y1] = extent(points.map((point) => point[1]), figure.log[1]);
  const across = (v) => BOX.left + (v - x0) / (x1 - x0) * (BOX.wide - BOX.left - BOX.right);
  const up = (v) => BOX.high - BOX.bottom - (v - y0) / (y1 - y0) * (BOX.high - BOX.top - BOX.bottom);
  const picture = svg("svg", { viewBox: `0 0 ${BOX.wide} ${BOX.high}`, width: BOX.wide, role: "img", "aria-label": `${figure.title}: ${figure.y} over ${figure.x}` });
  const text = (log) => (v) => tick(log ? 10 ** v : v);
  for (const v of ticks(y0, y1, figure.log[1])) {
    picture.append(svg("line", { class: "axis", x1: BOX.left, x2: BOX.wide - BOX.right, y1: up(v), y2: up(v) }));
    picture.append(svg("text", { class: "soft", x: BOX.left - 8, y: up(v), "text-anchor": "end", "dominant-baseline": "middle" }, text(figure.log[1])(v)));
  }
  const named = figure.ticks ? figure.ticks.map((name, n) => [n, name]).filter(([n]) => n >= x0 && n <= x1) : ticks(x0, x1, figure.log[0]).map((v) => [v, text(figure.log[0])(v)]);
  const step = Math.ceil(named.length / 12);
  named.filter((_, n) => n % step === 0).forEach(([v, name]) => {
    const x = across(v), anchor = x > BOX.wide - 50 ? "end" : "middle";
    picture.append(svg("text", { class: "soft", x: anchor === "end" ? BOX.wide : x, y: BOX.high - BOX.bottom + 18, "text-anchor": anchor }, cutName(name)));
  });
  picture.append(svg("text", { x: (BOX.left + BOX.wide - BOX.right) / 2, y: BOX.high - 8, "text-anchor": "middle" }, figure.x));
  const telling = figure.curves.filter((curve) => curve.name), others = figure.curves.filter((curve) => !curve.name);
  others.forEach((curve) => drawCurve(picture, curve, -1, figure.log, across, up));
  telling.forEach((curve, n) => drawCurve(picture, curve, n, figure.log, across, up));
  whole.append(make("h3", figure.title), make("p", figure.y === figure.title ? "" : figure.y, "sub"), picture, keyOf(telling), ...figure.notes.map((note) => make("p", note, "hint")));
  return whole;
}

/** A line; one without a name, whose number is −1, is one of many behind the others. */
function drawCurve(picture, curve, n, log, across, up) {
  let path = "", drawing = false;
  const dots = [];
  for (const [x, y] of curve.points) {
    const good = there(x) && there(y) && (!log[0] || x > 0) && (!log[1] || y > 0);
    if (good) {
      const [a, b] = [across(log[0] ? Math.log10(x) : x), up(log[1] ? Math.log10(y) : y)];
      path += `${drawing ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`;
      dots.push([a, b, `${curve.name}: ${short(x)}, ${short(y)}`]);
    }
    drawing = good;
  }
  if (n < 0) {
    picture.append(svg("path", { d: path || "M0 0", class: "behind" }));
    return;
  }
  const stroke = CURVES[n % CURVES.length];
  picture.append(svg("path", { d: path || "M0 0", fill: "none", stroke, "stroke-width": 2, "stroke-dasharray": curve.dashed ? "6 4" : "none" }));
  if (dots.length > 60) return;
  for (const [a, b, said] of dots) {
    const dot = svg("circle", { cx: a, cy: b, r: 3, fill: stroke });
    dot.append(svg("title", {}, said));
    picture.append(dot);
  }
}

function keyOf(curves) {
  const key = make("div", null, "legend");
  curves.forEach((curve, n) => {
    const one = make("span"), piece = svg("svg", { width: 26, height: 10, "aria-hidden": "true" });
    piece.append(svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: CURVES[n % CURVES.length], "stroke-width": 2, "stroke-dasharray": curve.dashed ? "6 4" : "none" }));
    one.append(piece, curve.name);
    key.append(one);
  });
  return key;
}
