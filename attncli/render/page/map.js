const canvas = at("canvas");
const LARGEST = 30, NAMED = 11; // pixels of a cell; from which on it has its name beside it
const cursor = { row: 0, column: 0 };
let view = null, inside = [], geometry = null, shadeChosen = false, turn = 0;

const isWeights = () => view.map.kind === "weights";

async function openMap(n) {
  const map = data.maps[n];
  at("which").value = n;
  at("drawn").hidden = false;
  at("map-bar").hidden = false;
  showCard(map.head);
  await enter(new View(map, map), []);
}

/** Show a map, or a part of one that lies inside others; of two that are asked for, the later. */
async function enter(next, outer) {
  const mine = ++turn;
  await next.load();
  if (mine !== turn) return;
  view = next;
  inside = outer;
  at("map-title").textContent = view.map.title || "Mask";
  cursor.row = cursor.column = 0;
  const empty = !view.height || !view.width;
  canvas.hidden = empty;
  at("out").hidden = !inside.length;
  at("deeper").hidden = !view.map.closer?.length;
  canvas.setAttribute("aria-label", `${view.map.title || "Mask"}, ${view.rows.stop} queries by ${view.columns.stop} keys`);
  showParts();
  if (empty) {
    at("readout").textContent = `${view.rows.stop} × ${view.columns.stop}: nothing to show`;
    put(at("legend"));
    put(at("strongest"));
    at("row-title").textContent = "";
    at("lines-box").hidden = true;
    return;
  }
  // where rows see ever more keys, the weights of the first ones would pale all others
  const causal = view.height > 64 && view.value(0, view.width - 1) === HIDDEN && view.value(view.height - 1, 0) !== HIDDEN;
  if (!shadeChosen) at("shade").value = causal ? "row" : "matrix";
  at("shade").parentElement.hidden = !isWeights();
  draw();
  read(cursor.row, cursor.column);
  look(cursor.row);
}

// -- drawing ----------------------------------------------------------------------------------

function measure() {
  const pen = canvas.getContext("2d"), room = Math.max(at("drawn").clientWidth, 200);
  pen.font = "11px system-ui, sans-serif";
  const widest = (which, count) => {
    let most = 0;
    for (let n = 0; n < count; n += Math.ceil(count / 400)) most = Math.max(most, pen.measureText(cutName(view.block(which, n))).width);
    return Math.ceil(most);
  };
  const left = Math.min(widest("rows", view.height), 120) + 10;
  const longest = view.width * NAMED < room ? widest("columns", view.width) : 0, right = 6 + Math.ceil(Math.min(longest, 120) / 2);
  let wide = Math.min(LARGEST, (room - left - right) / view.width), high = Math.min(LARGEST, 620 / view.height);
  if (Math.max(wide, high) < 4 * Math.min(wide, high)) wide = high = Math.min(wide, high);
  const named = wide >= NAMED;
  const top = named ? Math.min(Math.ceil(longest * 0.87) + 14, 120) : 20;
  return { left, top, wide, high, named, room, width: left + wide * view.width + (named ? right : 6), height: top + high * view.height + 2 };
}

/** A name of at most 18 letters; none is cut in two. */
function cutName(name) {
  if (name.length <= 18) return name;
  const letters = [...name];
  return letters.length > 18 ? `${letters.slice(0, 9).join("")}…${letters.slice(-8).join("")}` : name;
}

function draw() {
  if (!view || !view.values) return;
  geometry = measure();
  const { left, top, wide, high, width, height } = geometry, scale = devicePixelRatio || 1;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.imageSmoothingEnabled = wide < 1 || high < 1;
  pen.drawImage(cells(), left, top, wide * view.width, high * view.height);
  if (Math.min(wide, high) >= 6) marks(pen);
  labels(pen);
  outlines(pen);
  pen.strokeStyle = dark() ? "#ffb454" : "#d9480f";
  pen.lineWidth = 2;
  pen.strokeRect(left + cursor.column * wide - 1, top + cursor.row * high - 1, Math.max(wide, 3) + 2, Math.max(high, 3) + 2);
  legend();
}

/** One pixel a cell, to be enlarged. */
function cells() {
  const picture = make("canvas"), shade = at("shade").value;
  picture.width = view.width;
  picture.height = view.height;
  const pen = picture.getContext("2d"), image = pen.createImageData(view.width, view.height);
  const scale = isWeights() ? null : numberScale(), shades = scale ? scale.shade : color, whole = view.top() || 1;
  const table = Array.from({ length: 256 }, (_, n) => shades(n / 255));
  const away = hiddenColor();
  for (let row = 0, n = 0; row < view.height; row++) {
    const most = shade === "row" ? view.top(row) || 1 : whole;
    for (let column = 0; column < view.width; column++, n++) {
      const value = view.values[n];
      const part = scale ? scale.share(value) : share(value / most, shade);
      const rgb = value === HIDDEN ? away : Number.isNaN(value) ? NOT_A_NUMBER : table[Math.round(255 * Math.min(Math.max(part, 0), 1))];
      image.data.set(rgb, 4 * n);
      image.data[4 * n + 3] = 255;
    }
  }
  pen.putImageData(image, 0, 0);
  return picture;
}

const keptColor = (part) => color(0.65 * part);

/** How numbers other than weights become shares of a scale, its colours, and what its ends are. */
function numberScale() {
  const { kind, log, diverging } = view.map;
  if (kind === "mask") return { share: (value) => value, low: 0, high: 1, shade: keptColor };
  let low = Infinity, high = -Infinity, least = Infinity;
  for (const value of view.values) {
    if (!Number.isFinite(value)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
    if (value > 0) least = Math.min(least, value);
  }
  if (diverging) {
    const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return { share: (value) => (1 + value / most) / 2, low: -most, high: most, shade: (of) => around(2 * of - 1) };
  }
  if (log && least < high) {
    const decades = Math.log(high / least);
    return { share: (value) => value > 0 ? 0.05 + 0.95 * Math.log(value / least) / decades : 0, low: least, high, shade: color };
  }
  return { share: (value) => high > low ? (value - low) / (high - low) : 0.5, low, high, shade: color };
}

const DECADES = 4;
function share(part, shade) {
  const of = Math.min(Math.max(part, 0), 1);
  if (shade === "linear") return of;
  if (shade === "log") return of > 0 ? Math.max(0, 1 + Math.log10(of) / DECADES) : 0;
  return Math.sqrt(of);
}

/** Hidden cells are crossed, and NaN says so: neither is told by its colour alone. */
function marks(pen) {
  const { left, top, wide, high } = geometry;
  pen.lineWidth = 1;
  pen.strokeStyle = dark() ? "#5a564f" : "#c2bbb0";
  pen.fillStyle = "#ffffff";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.beginPath();
  for (let row = 0; row < view.height; row++) {
    for (let column = 0; column < view.width; column++) {
      const value = view.value(row, column), x = left + column * wide, y = top + row * high;
      if (value === HIDDEN) {
        pen.moveTo(x + 1, y + high - 1);
        pen.lineTo(x + wide - 1, y + 1);
      } else if (Number.isNaN(value)) {
        pen.fillText("?", x + wide / 2, y + high / 2);
      }
    }
  }
  pen.stroke();
}

function labels(pen) {
  const { left, top, wide, high, named } = geometry;
  pen.fillStyle = getComputedStyle(at("readout")).color;
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (let row = 0; row < view.height; row += every(view.height, high, 14)) {
    const single = high >= NAMED || view.rows.stop === view.height;
    pen.fillText(single ? cutName(view.block("rows", row)) : place(view.rows, start(view.rows, row)), left - 6, top + (row + 0.5) * high, left - 8);
  }
  pen.textAlign = "left";
  const step = named ? 1 : every(view.width, wide, 58);
  for (let column = 0; column < view.width; column += step) {
    const x = left + (column + 0.5) * wide;
    if (!named) {
      if (left + column * wide + 30 > geometry.width) continue;
      pen.fillText(String(place(view.columns, start(view.columns, column))), left + column * wide, top - 10);
      continue;
    }
    pen.save();
    pen.translate(x + 3, top - 5);
    pen.rotate(-Math.PI / 3);
    pen.fillText(cutName(view.block("columns", column)), 0, 0);
    pen.restore();
  }
}

const every = (count, size, room) => size >= room - 3 ? 1 : [2, 5, 10, 20, 32, 50, 64, 100, 128].find((n) => n * size >= room) || count;

/** Where closer parts lie. */
function outlines(pen) {
  const { left, top, wide, high } = geometry;
  pen.strokeStyle = dark() ? "#e4e7ec" : "#1f2430";
  pen.setLineDash([4, 3]);
  pen.lineWidth = 1;
  for (const part of view.parts) {
    const [y, h] = span(part.rows, "rows", high), [x, w] = span(part.columns, "columns", wide);
    pen.strokeRect(left + x, top + y, w, h);
  }
  pen.setLineDash([]);
}

/** Where a part lies on an axis of what is shown, in pixels: its start and its length. */
function span(number, which, size) {
  const axis = view[which], part = data.axes[number], first = (part.at || 0) - (axis.at || 0);
  return [first / axis.size * size, part.stop / axis.size * size];
}

function legend() {
  const largest = view.top(), shade = at("shade").value, all = view.values;
  const low = shade === "log" ? weight(largest / 10 ** DECADES) : "0";
  const pieces = isWeights() ? [ramp(low, shade === "row" ? "each row’s largest" : weight(largest), color, weightTicks(shade, largest))] : [numberRamp()];
  if (isWeights()) pieces.push(make("span", { matrix: "√ scale", row: "√ scale, by row", linear: "linear scale", log: "log scale" }[shade]));
  if (all.includes(HIDDEN)) pieces.push(swatch(hiddenColor(), "hidden"));
  if (all.some(Number.isNaN)) pieces.push(swatch(NOT_A_NUMBER, isWeights() ? "NaN" : "none"));
  const high = Math.ceil(view.rows.stop / view.height), wide = Math.ceil(view.columns.stop / view.width);
  const how = { mask: "the share kept of", weights: "the largest of", numbers: view.map.mean ? "the mean of" : "the furthest from 0 of" }[view.map.kind];
  if (view.pooled) pieces.push(make("span", `each cell is ${how} up to ${high} × ${wide}`));
  pieces.push(...view.map.notes.map((note) => make("span", note)));
  put(at("legend"), ...pieces);
}

/** What stands at a quarter, half and three quarters of the scale of weights. */
function weightTicks(shade, largest) {
  const part = { linear: (of) => of, log: (of) => 10 ** (DECADES * (of - 1)) }[shade] || ((of) => of * of);
  return [0.25, 0.5, 0.75].map((of) => [of, shade === "row" ? percent(part(of)) : tick(Number((largest * part(of)).toPrecision(2)))]);
}

function numberRamp() {
  if (view.map.kind === "mask") return view.pooled ? ramp("some", "all kept", keptColor) : swatch(keptColor(1), "kept");
  const scale = numberScale(), said = [`${view.map.name} ${short(scale.low)}`, `${short(scale.high)}${view.map.log ? ", log scale" : ""}`];
  return ramp(...said, scale.shade);
}

// -- reading ----------------------------------------------------------------------------------

function read(row, column) {
  const value = view.value(row, column), many = (which, n) => stop(view[which], n) - start(view[which], n) > 1;
  const [first, second] = view.map.words, words = (word, several) => `${several ? { query: "queries", key: "keys" }[word] || `${word}s` : word} `;
  put(at("readout"), words(first, many("rows", row)), make("bdi", view.called("rows", row)), " → ",
    words(second, many("columns", column)), make("bdi", view.called("columns", column)), ": ", make("b", said(value)));
}

function said(value) {
  if (value === HIDDEN) return "hidden by the mask";
  if (Number.isNaN(value)) return isWeights() ? "NaN" : "none";
  if (isWeights()) return weight(value);
  if (view.map.kind === "numbers") return short(value);
  return value >= 1 ? "kept" : `${short(100 * value)} % kept`;
}

function cellAt(event) {
  const box = canvas.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left - geometry.left) / geometry.wide);
  const row = Math.floor((event.clientY - box.top - geometry.top) / geometry.high);
  return row >= 0 && row < view.height && column >= 0 && column < view.width ? [row, column] : null;
}

function move(row, column) {
  cursor.row = Math.min(Math.max(row, 0), view.height - 1);
  cursor.column = Math.min(Math.max(column, 0), view.width - 1);
  draw();
  read(cursor.row, cursor.column);
  look(cursor.row);
}

// -- closer, and back out ---------------------------------------------------------------------

/** The part of the map under the cursor that there is in smaller blocks. */
function partHere() {
  const row = place(view.rows, start(view.rows, cursor.row)), column = place(view.columns, start(view.columns, cursor.column));
  const holds = (number, position) => position >= (data.axes[number].at || 0) && position < (data.axes[number].at || 0) + data.axes[number].stop;
  return view.parts.find((part) => holds(part.rows, row) && holds(part.columns, column));
}

const goInto = (part) => enter(new View(view.map, part), [...inside, view]);

async function goOut() {
  if (inside.length) await enter(inside.at(-1), inside.slice(0, -1));
}

function showParts() {
  const range = (number) => `${data.axes[number].at || 0}–${(data.axes[number].at || 0) + data.axes[number].stop - 1}`;
  put(at("parts"), ...view.parts.map((part) => {
    const size = data.axes[part.rows].size, button = make("button", `Closer: queries ${range(part.rows)} × keys ${range(part.columns)}, ${size === 1 ? "every weight" : `blocks of ${size}`}`);
    button.type = "button";
    button.addEventListener("click", () => goInto(part));
    return button;
  }));
}

Object.defineProperty(View.prototype, "parts", {
  get() {
    const lies = (inner, outer) => (inner.at || 0) >= (outer.at || 0) && (inner.at || 0) + inner.stop <= (outer.at || 0) + outer.stop;
    const finer = (this.map.closer || []).filter((part) => part !== this.part
      && data.axes[part.rows].size < this.rows.size && lies(data.axes[part.rows], this.rows) && lies(data.axes[part.columns], this.columns));
    const next = Math.max(0, ...finer.map((part) => data.axes[part.rows].size));
    return finer.filter((part) => data.axes[part.rows].size === next);
  },
});

function listenToMap() {
  canvas.addEventListener("pointermove", (event) => {
    const cell = cellAt(event);
    if (cell) read(...cell);
  });
  canvas.addEventListener("pointerleave", () => read(cursor.row, cursor.column));
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (!cell) return;
    move(...cell);
    const part = partHere();
    if (part) goInto(part);
  });
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -1e9], End: [0, 1e9] };
  canvas.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (step) move(cursor.row + step[0], cursor.column + step[1]);
    else if (event.key === "Escape" && inside.length) goOut();
    else if (event.key === "Enter" && partHere()) goInto(partHere());
    else if (event.key === "Enter") move(cursor.row, cursor.column);
    else return;
    event.preventDefault();
  });
  at("out").addEventListener("click", goOut);
  at("shade").addEventListener("change", () => { shadeChosen = true; draw(); });
  at("which").addEventListener("change", (event) => {
    const head = data.maps[Number(event.target.value)].head;
    if (head === null) openMap(Number(event.target.value));
    else openHead(head);
  });
  new ResizeObserver(() => { if (geometry && Math.abs(at("drawn").clientWidth - geometry.room) > 1) draw(); }).observe(at("drawn"));
}

function showMaps() {
  put(at("kept"), ...data.kept.map((line) => make("li", line)));
  if (!data.maps.length) return;
  data.maps.forEach((map, n) => {
    const option = make("option", map.head === null ? map.title || "Mask" : heads.names[map.head]);
    option.value = n;
    at("which").append(option);
  });
  listenToMap();
  const first = data.maps[0].head;
  if (first === null) openMap(0);
  else openHead(first);
}
