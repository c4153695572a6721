const heads = data.heads;
const LISTED = 200; // rows of the list until all are asked for
const FIRST = ["change", "entropy_median", "max_weight_median", "saturated_share", "logit_max", "largest_logit", "qk_rank", "ov_norm"];
const order = { column: -1, down: false };
let chosenHead = null, shownStatistic = 0, allListed = false;

const known = (values) => values.filter((value) => typeof value === "number");
const called = (one) => one.heading + (one.quantile ? `, ${one.quantile}` : "");
const inPercent = (one) => one.kind === "percent";
const asText = (one, value) => inPercent(one) && typeof value === "number" ? percent(value) : short(value);
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

function statisticOptions() {
  const select = at("statistic");
  heads.statistics.forEach((one, n) => {
    const option = make("option", called(one) + (one.unit && !inPercent(one) ? ` (${one.unit})` : ""));
    option.value = n;
    select.append(option);
  });
  const first = FIRST.map((name) => heads.statistics.findIndex((one) => one.name === name)).find((n) => n >= 0);
  select.value = shownStatistic = heads.shown ?? first ?? 0;
  select.addEventListener("change", () => {
    shownStatistic = Number(select.value);
    drawGrid();
    drawList();
  });
}

/** A number with room for three digits. */
function brief(one, value) {
  if (typeof value !== "number") return value ?? "–";
  if (inPercent(one)) return `${Math.round(100 * value)} %`;
  const size = Math.abs(value);
  if (size === 0) return "0";
  return size >= 1e4 || size < 0.005 ? value.toExponential(0) : size >= 100 ? value.toFixed(0) : size < 1 ? value.toFixed(3) : value.toPrecision(3);
}

function drawGrid() {
  const one = heads.statistics[shownStatistic], values = one ? heads.values[shownStatistic] : [];
  const low = Math.min(...known(values)), high = Math.max(...known(values));
  const across = Math.max(...heads.at.map(([, head]) => head)) + 1;
  const focus = at("grid").contains(document.activeElement) ? document.activeElement.dataset.head : null;
  const rows = heads.rows.map(() => Array(across).fill(null));
  heads.at.forEach(([row, head], n) => { rows[row][head] = n; });
  const top = make("tr");
  top.append(make("td"), ...Array.from({ length: across }, (_, n) => {
    const cell = make("th", across <= 32 || n % 4 === 0 ? n : "");
    cell.scope = "col";
    return cell;
  }));
  const body = rows.map((line, r) => {
    const row = make("tr"), label = make("th", heads.rows[r]);
    label.scope = "row";
    row.append(label, ...line.map((n) => gridCell(n, one, values, low, high)));
    return row;
  });
  const table = put(at("grid"), put(make("thead"), top), put(make("tbody"), ...body));
  table.classList.toggle("dense", across > 20);
  table.setAttribute("aria-label", one ? `Heads, shaded by ${called(one)}` : "Heads");
  const enter = table.querySelector(`[data-head="${focus ?? chosenHead ?? 0}"]`) || table.querySelector("button");
  if (enter) enter.tabIndex = 0;
  if (focus !== null && enter) enter.focus();
  at("about").textContent = one ? one.about : "";
  const ends = one && Number.isFinite(low) ? [ramp(asText(one, low), asText(one, high))] : [make("span", "not known of these heads")];
  const marks = ["watch", "critical"].filter((level) => heads.verdicts.includes(level));
  put(at("grid-legend"), ...ends, ...marks.map((level) => make("span", `outlined: ${level}`, level)));
}

function gridCell(n, one, values, low, high) {
  const cell = make("td");
  if (n === null) return cell;
  const value = values[n], button = make("button", brief(one || {}, value));
  const share = typeof value === "number" ? (high > low ? (value - low) / (high - low) : 0.5) : 0;
  const back = typeof value === "number" ? color(0.04 + 0.86 * share) : hiddenColor();
  button.type = "button";
  button.tabIndex = -1;
  button.dataset.head = n;
  button.style.background = css(back);
  button.style.color = onIt(back);
  button.setAttribute("aria-pressed", String(n === chosenHead));
  const verdict = heads.verdicts[n];
  if (verdict) button.classList.add(verdict);
  const what = [heads.names[n], one ? `${called(one)} ${asText(one, value)}` : "", verdict || ""];
  button.setAttribute("aria-label", what.filter(Boolean).join(", "));
  button.title = what.filter(Boolean).join("\n");
  return put(cell, button);
}

function listenToGrid() {
  const grid = at("grid");
  grid.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) openHead(Number(button.dataset.head));
  });
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  grid.addEventListener("keydown", (event) => {
    const step = steps[event.key], button = event.target.closest("button");
    if (!step || !button) return;
    event.preventDefault();
    const [row, head] = heads.at[Number(button.dataset.head)];
    const next = heads.at.findIndex(([r, h]) => r === row + step[0] && h === head + step[1]);
    const to = grid.querySelector(`[data-head="${next}"]`);
    if (!to) return;
    button.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  });
}

// -- the list ---------------------------------------------------------------------------------

/** Columns of the list: what is said in words, the telling statistics, and the chosen one. */
function listColumns() {
  const words = [["head", "text", heads.names.map((_, n) => n), (n) => heads.names[n]]];
  const levels = ["critical", "watch", "ok"];
  if (heads.verdicts.some(Boolean)) words.push(["verdict", "text", heads.verdicts.map((v) => levels.indexOf(v)), (n) => heads.verdicts[n] || ""]);
  const some = FIRST.map((name) => heads.statistics.findIndex((one) => one.name === name)).filter((n) => n >= 0);
  const numbers = [...new Set([...some, shownStatistic])].filter((n) => heads.statistics[n]).map((n) => {
    const one = heads.statistics[n];
    return [one.heading, one.quantile || one.unit, heads.values[n], (h) => asText(one, heads.values[n][h])];
  });
  if (heads.looks.some(Boolean)) numbers.push(["looks at", "text", heads.looks, (n) => heads.looks[n]]);
  return [...words, ...numbers];
}

/** Whether a head has all that stands between &; entropy<1 compares a statistic. */
function passes(n, pieces) {
  const text = [heads.names[n], heads.verdicts[n], heads.looks[n], heads.reasons[n], heads.rows[heads.at[n][0]]].join(" ").toLowerCase();
  return pieces.every((piece) => {
    const found = /^([a-z_0-9]+) *(<=|>=|<|>|==?) *(-?[\d.]+(?:e-?\d+)?)$/.exec(piece);
    const column = found ? statisticCalled(found[1]) : -1;
    if (column < 0) return text.includes(piece);
    const value = heads.values[column][n], limit = Number(found[3]);
    if (typeof value !== "number") return false;
    return { "<": value < limit, ">": value > limit, "<=": value <= limit, ">=": value >= limit, "=": value === limit, "==": value === limit }[found[2]];
  });
}

const statisticCalled = (name) => {
  const exact = heads.statistics.findIndex((one) => one.name === name);
  return exact >= 0 ? exact : heads.statistics.findIndex((one) => one.name === `${name}_median`);
};

function drawList() {
  const columns = listColumns(), pieces = at("filter").value.toLowerCase().split("&").map((piece) => piece.trim()).filter(Boolean);
  const some = heads.names.map((_, n) => n).filter((n) => passes(n, pieces));
  if (order.column >= 0 && columns[order.column]) {
    const keys = columns[order.column][2], unknown = (value) => value === null || value === "";
    const compare = (a, b) => typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b)) : a - b;
    some.sort((a, b) => unknown(keys[a]) - unknown(keys[b]) || (order.down ? -1 : 1) * compare(keys[a], keys[b]) || a - b);
  }
  const top = make("tr");
  top.append(...columns.map(([title, sub], n) => listHeading(title, sub, n)));
  const shown = allListed ? some : some.slice(0, LISTED);
  put(at("list"), put(make("thead"), top), put(make("tbody"), ...shown.map((n) => listRow(n, columns))));
  at("count").textContent = some.length === heads.names.length ? `${some.length} head${some.length === 1 ? "" : "s"}` : `${some.length} of ${heads.names.length} heads`;
  at("more").hidden = shown.length === some.length;
  at("more").textContent = `Show all ${some.length} heads`;
}

function listHeading(title, sub, n) {
  const cell = make("th", null, sub === "text" ? "text" : ""), button = make("button", title);
  cell.scope = "col";
  button.type = "button";
  button.addEventListener("click", () => {
    const again = order.column === n;
    order.down = again ? !order.down : sub !== "text";
    order.column = n;
    drawList();
    at("list").querySelectorAll("thead button")[n].focus();
  });
  cell.append(button);
  if (sub && sub !== "text") cell.append(make("span", sub, "sub"));
  if (order.column === n) cell.setAttribute("aria-sort", order.down ? "descending" : "ascending");
  return cell;
}

function listRow(n, columns) {
  const row = make("tr", null, n === chosenHead ? "chosen" : "");
  row.append(...columns.map(([title, sub, , text], c) => {
    const cell = make(c ? "td" : "th", null, sub === "text" ? "text" : "");
    if (c) {
      put(cell, make("bdi", text(n), title === "verdict" ? heads.verdicts[n] : ""));
    } else {
      const button = make("button", text(n));
      button.type = "button";
      button.addEventListener("click", () => openHead(n));
      cell.scope = "row";
      cell.append(button);
    }
    return cell;
  }));
  return row;
}

function showHeads() {
  if (!heads.names.length) return;
  at("heads").hidden = false;
  statisticOptions();
  listenToGrid();
  drawGrid();
  drawList();
  at("filter").addEventListener("input", drawList);
  at("more").addEventListener("click", () => { allListed = true; drawList(); });
}

/** Show a head: what is known of it, and its map if there is one. */
function openHead(n) {
  chosenHead = n;
  at("grid").querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", String(Number(one.dataset.head) === n)));
  drawList();
  const map = data.maps.findIndex((one) => one.head === n);
  showCard(n);
  if (map >= 0) return openMap(map);
  turn++;
  at("map-title").textContent = heads.names[n];
  at("drawn").hidden = true;
  at("map-bar").hidden = true;
}

function showCard(n) {
  at("map").hidden = false;
  document.querySelector(".sides").classList.toggle("both", heads.names.length > 0);
  const there = n !== null && n !== undefined, line = at("verdict");
  at("numbers-box").hidden = !there;
  put(line);
  if (!there) return;
  if (heads.verdicts[n]) line.append(make("b", heads.verdicts[n], heads.verdicts[n]), " ");
  const words = [heads.looks[n] && `looks at ${heads.looks[n]}`, heads.reasons[n]].filter(Boolean).join(" · ");
  line.append(make("bdi", words));
  put(at("numbers"), ...heads.statistics.map((one, c) => {
    const pair = make("div");
    pair.append(make("dt", called(one)), make("dd", asText(one, heads.values[c][n])));
    pair.title = one.about;
    return pair;
  }));
}
