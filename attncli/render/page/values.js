"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const HIDDEN = -Infinity;

/** An element with text, never markup: whatever a token holds, it is only read. */
function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function put(parent, ...children) {
  parent.replaceChildren(...children);
  return parent;
}

/** A number in at most four digits, as tables have it. */
function short(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  if (Number.isNaN(value)) return "NaN";
  const size = Math.abs(value);
  if (size === 0 || Number.isInteger(value) && size < 1e6) return String(value);
  if (size < 1e-4 || size >= 1e6) return value.toExponential(2);
  return value.toFixed(Math.max(0, Math.min(6, 3 - Math.floor(Math.log10(size)))));
}

const weight = (value) => value === 0 ? "0" : value < 5e-4 ? value.toExponential(1) : value.toFixed(4);

// -- colour -----------------------------------------------------------------------------------

const NOT_A_NUMBER = [214, 51, 132];
let theme = null;

const dark = () => theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const hiddenColor = () => dark() ? [49, 47, 44] : [226, 221, 213];

/** The colour of a share from 0 to 1, as in the terminal and on paper: more is lighter. */
function color(share) {
  const shades = data.shades, place = Math.min(Math.max(share, 0), 1) * (shades.length - 1);
  const low = Math.min(Math.floor(place), shades.length - 2), rest = place - low;
  return shades[low].map((from, n) => Math.round(from + (shades[low + 1][n] - from) * rest));
}

const css = (rgb) => `rgb(${rgb.join(" ")})`;
const onIt = (rgb) => 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140 ? "#15181d" : "#ffffff";

/** Around 0: as `color` above it, orange below. */
function around(share) {
  const from = color(0), to = [255, 170, 90];
  return share >= 0 ? color(share) : from.map((one, n) => Math.round(one + (to[n] - one) * -share));
}

const STEPS = 24; // of a ramp

/** A scale: its colours from low to high, with what stands at places between, if anything does. */
function ramp(low, high, shade = color, between = []) {
  const box = make("span", null, "ramp"), whole = make("span", null, "scale");
  for (let n = 0; n < STEPS; n++) {
    const piece = make("i");
    piece.style.background = css(shade(n / (STEPS - 1)));
    box.append(piece);
  }
  box.append(...between.map(([share, text]) => {
    const mark = make("small", text);
    mark.style.left = `${100 * share}%`;
    return mark;
  }));
  whole.append(make("span", low), box, make("span", high));
  return whole;
}

function swatch(rgb, text) {
  const whole = make("span"), piece = make("i");
  piece.style.background = css(rgb);
  whole.append(piece, text);
  return whole;
}

// -- maps -------------------------------------------------------------------------------------

async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const start = (axis, n) => axis.edges ? axis.edges[n] : n * axis.size;
const stop = (axis, n) => axis.edges ? axis.edges[n + 1] : Math.min((n + 1) * axis.size, axis.stop);
const place = (axis, n) => axis.places ? axis.places[n] : (axis.at || 0) + n;

/** A map, or a closer part of one: its cells and what its rows and columns are called. */
class View {
  constructor(map, part) {
    this.map = map;
    this.part = part;
    this.rows = data.axes[part.rows];
    this.columns = data.axes[part.columns];
    this.height = this.rows.count;
    this.width = this.columns.count;
  }

  async load() {
    if (this.values || !this.height || !this.width) return this;
    const raw = await inflated(this.part.data);
    if (this.part.code === "f32") {
      this.values = new Float32Array(raw);
    } else {
      const known = Float32Array.from({ length: 256 }, (_, n) => this.part.top * ((n - 1) / 253) ** 2);
      known[0] = HIDDEN;
      known[255] = NaN;
      this.values = Float32Array.from(new Uint8Array(raw), (code) => known[code]);
    }
    if (this.map.kind === "mask") this.values = this.values.map((kept) => kept === 0 ? HIDDEN : kept);
    return this;
  }

  value(row, column) { return this.values[row * this.width + column]; }

  get pooled() { return this.rows.stop > this.height || this.columns.stop > this.width; }

  top(row) {
    let largest = 0;
    const from = row === undefined ? 0 : row * this.width;
    const to = row === undefined ? this.values.length : from + this.width;
    for (let n = from; n < to; n++) if (this.values[n] > largest) largest = this.values[n];
    return largest;
  }

  /** What a single row or column is called; parts take the names of the whole map. */
  name(which, n) {
    const axis = this[which], whole = data.axes[this.map[which]];
    if (axis.names === undefined) return String(place(axis, n));
    return data.names[axis.names][axis.places ? n : (axis.at || 0) + n - (whole.at || 0)];
  }

  /** What a block is called: a name, or the range of places it stands for. */
  block(which, n) {
    const axis = this[which], first = start(axis, n), last = stop(axis, n) - 1;
    return first === last ? this.name(which, first) : `${place(axis, first)}–${place(axis, last)}`;
  }

  /** The same for the readout, with its place: 3 ‘cat’. */
  called(which, n) {
    const axis = this[which], first = start(axis, n), last = stop(axis, n) - 1;
    const where = String(place(axis, first)), name = this.name(which, first);
    if (first !== last) return `${where}–${place(axis, last)}`;
    return name === where ? where : `${where} ‘${name}’`;
  }
}
