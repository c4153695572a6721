function drawTable(table) {
  const whole = make("table"), top = make("tr"), [rowGap, columnGap] = table.gaps;
  if (table.title) whole.setAttribute("aria-label", table.title);
  const corner = make("th", table.title, "text");
  corner.scope = "col";
  top.append(corner);
  table.columns.forEach(([title, sub, kind], n) => {
    const cell = make("th", title, ["text", "verdict"].includes(kind) ? "text" : "");
    cell.scope = "col";
    if (sub) cell.append(make("span", sub, "sub"));
    top.append(cell);
    if (columnGap && n + 1 === columnGap[0]) top.append(make("th", "…"));
  });
  const body = make("tbody");
  table.rows.forEach((row, r) => {
    const line = make("tr"), label = make("th");
    label.scope = "row";
    line.append(put(label, make("bdi", table.labels[r] ?? "")));
    row.forEach((text, n) => {
      line.append(tableCell(text, table.columns[n][2], table.shades && table.shades[r][n]));
      if (columnGap && n + 1 === columnGap[0]) line.append(make("td", "…"));
    });
    body.append(line);
    if (rowGap && r + 1 === rowGap[0]) body.append(put(make("tr"), make("th", `… ${rowGap[1]} more`)));
  });
  const box = make("div");
  const notes = table.notes.map((note) => make("p", note, "hint"));
  if (columnGap) notes.push(make("p", `${columnGap[1]} ${table.things} are left out`, "hint"));
  box.append(put(make("div", null, "scroll"), put(whole, put(make("thead"), top), body)), ...notes);
  return box;
}

function tableCell(text, kind, share) {
  const cell = make("td", null, ["text", "verdict"].includes(kind) ? "text" : "");
  if (share) {
    const back = color(Math.sqrt(share) * 0.9);
    cell.style.background = css(back);
    cell.style.color = onIt(back);
  }
  return put(cell, make("bdi", text, kind === "verdict" ? text : ""));
}

function drawBlock(block) {
  const box = make("div");
  if (block.kind === "table") return drawTable(block);
  if (block.title) box.append(make("h3", block.title));
  if (block.kind === "step") {
    box.append(make("p", `${block.formula}  ${block.meaning}`, "sub"));
    if (block.table) box.append(drawTable(block.table));
  }
  box.append(...block.lines.map((line) => make("p", line, "text")));
  return box;
}

function showWords() {
  at("command").textContent = `attncli ${data.command}`;
  at("headline").textContent = data.headline[0] || "Nothing was computed";
  at("facts").textContent = [...data.headline.slice(1), ...data.notes].join(" · ");
  const first = data.blocks.findIndex((block) => block.kind !== "text");
  const summary = data.blocks.slice(0, first < 0 ? data.blocks.length : first);
  const lines = summary.flatMap((block) => block.lines.map((line) => make("p", line)));
  if (data.failed && lines.length) lines[0].className = "failed";
  put(at("said"), ...data.warnings.map((text) => make("p", `Warning: ${text}`, "warning")), ...lines);
}

/** What shades: drawn anew when the page turns dark. */
function drawShades() {
  const first = data.blocks.findIndex((block) => block.kind !== "text");
  put(at("blocks"), ...(first < 0 ? [] : data.blocks.slice(first)).map(drawBlock));
  if (heads.names.length) drawGrid();
  draw();
}

function paint(next) {
  theme = next;
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  at("theme").textContent = dark() ? "Light" : "Dark";
  at("theme").setAttribute("aria-pressed", String(dark()));
  at("theme").setAttribute("aria-label", `Turn the page ${dark() ? "light" : "dark"}`);
  drawShades();
}

showWords();
showHeads();
showMaps();
put(at("figures"), ...data.figures.map(drawFigure));
paint(null);
at("theme").addEventListener("click", () => paint(dark() ? "light" : "dark"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(theme));
let before = null; // printed on paper, which is light
addEventListener("beforeprint", () => { before = theme; paint("light"); });
addEventListener("afterprint", () => paint(before));
