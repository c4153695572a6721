const STRONGEST = 10, LINES = 40, TOKENS = 400;
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** The columns of a row with the largest weights, largest first. */
function strongest(row, most) {
  const found = [];
  for (let column = 0; column < view.width; column++) {
    const value = view.value(row, column);
    if (value > 0) found.push([column, value]);
  }
  return found.sort((a, b) => b[1] - a[1]).slice(0, most);
}

/** Show what a row looks at: bars, and lines where every token has a place. */
function look(row) {
  const other = !isWeights(), some = other ? [] : strongest(row, STRONGEST);
  at("row-title").textContent = other ? "" : `${view.called("rows", row)} looks at`;
  const most = some.length ? some[0][1] : 1;
  put(at("strongest"), ...some.map(([column, value]) => {
    const line = make("li"), bar = make("i");
    bar.style.width = `${100 * value / most}%`;
    bar.setAttribute("aria-hidden", "true");
    line.append(make("bdi", view.called("columns", column)), make("span", weight(value)), bar);
    return line;
  }));
  const room = !other && !view.pooled && view.height <= TOKENS && view.width <= TOKENS && view.width > 1;
  at("lines-box").hidden = !room;
  if (room) drawLines(row);
}

function drawLines(row) {
  const line = 15, wide = 460, inner = [150, 310], tall = Math.max(view.height, view.width) * line + 8;
  const picture = svg("svg", { viewBox: `0 0 ${wide} ${tall}`, width: wide, height: tall, role: "img" });
  const y = (n) => n * line + line / 2 + 4, links = strongest(row, LINES);
  const most = links.length ? links[0][1] : 1;
  picture.setAttribute("aria-label", `Lines from ${view.called("rows", row)} to the keys it looks at`);
  for (const [column, value] of links.reverse()) {
    const curve = `M${inner[0]} ${y(row)}C${inner[0] + 70} ${y(row)} ${inner[1] - 70} ${y(column)} ${inner[1]} ${y(column)}`;
    picture.append(svg("path", { d: curve, class: "link", "stroke-width": 0.5 + 4 * value / most, "stroke-opacity": 0.15 + 0.85 * value / most }));
  }
  const seen = new Set(links.map(([column]) => column));
  for (let n = 0; n < view.height; n++) {
    const text = svg("text", { x: inner[0] - 6, y: y(n), "text-anchor": "end", "dominant-baseline": "middle", class: `token${n === row ? " chosen" : ""}` }, cutName(view.block("rows", n)));
    text.addEventListener("click", () => move(n, cursor.column));
    picture.append(text);
  }
  for (let n = 0; n < view.width; n++) {
    picture.append(svg("text", { x: inner[1] + 6, y: y(n), "dominant-baseline": "middle", class: seen.has(n) ? "" : "soft" }, cutName(view.block("columns", n))));
  }
  const box = put(at("lines"), picture);
  const middle = y(row) - box.clientHeight / 2;
  if (tall > box.clientHeight) box.scrollTop = middle;
}
