"use strict";
// Sorts and filters the tables of the page, and shows a gene in all labels. Names from the data become text only.

/** Return a new element with text and attributes. */
function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// -- tables ---------------------------------------------------------------------------------------

/** Return what a cell is sorted by: a number, a text, or null where it is empty. */
function valueOf(cell) {
  if (cell.dataset.value === undefined) return cell.textContent.trim() || null;
  const value = parseFloat(cell.dataset.value);
  return Number.isNaN(value) ? null : value;
}

/** Compare two values of a column; empty ones are last in either direction. */
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

/** Let a click on a header sort the table; numbers begin with the largest. */
function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = make("button", head.textContent, { type: "button" });
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const isNumber = head.classList.contains("number"), before = head.getAttribute("aria-sort");
      const first = isNumber ? "descending" : "ascending", second = isNumber ? "ascending" : "descending";
      const order = before === first ? second : first;
      heads.forEach(other => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map(row => [valueOf(row.cells[column]), row]);
      rows.sort((one, other) => compare(one[0], other[0], sign));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

/** Put a field above a table that hides rows without its words. */
function makeFilterable(table) {
  const field = make("input", "", { type: "search", "aria-label": table.dataset.filter, placeholder: "words to look for" });
  const count = make("span", "", { class: "small", "aria-live": "polite" });
  const label = make("label", table.dataset.filter + " "), tools = make("div", "", { class: "tools" });
  label.append(field);
  tools.append(label, count);
  table.parentElement.before(tools);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean), rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
    count.textContent = words.length ? `${rows.filter(row => !row.hidden).length} of ${rows.length} rows` : "";
  });
}

// -- genes ----------------------------------------------------------------------------------------

const SVG = document.querySelector("#gene-plot svg").namespaceURI;

/** Return the text of a compressed file in base64. */
async function unpack(data) {
  const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

/** Return the rows of a CSV file as lists of texts; fields in quotes may hold commas, quotes and line ends. */
function parseCsv(text) {
  const rows = [], field = /("(?:[^"]|"")*"|[^,\n]*)(,|\n|$)/y;
  let row = [];
  while (field.lastIndex < text.length) {
    const [, raw, end] = field.exec(text);
    row.push(raw.startsWith('"') ? raw.slice(1, -1).replaceAll('""', '"') : raw);
    if (end !== ",") { rows.push(row); row = []; }
  }
  return rows;
}

/** Return a number as it is shown; empty if it is missing. */
function shown(value) {
  return Number.isNaN(value) ? "" : value.toFixed(2).replace(/^-(0\.00)$/, "$1");
}

/** Return about as many round numbers between two ends. */
function ticks(low, high, number) {
  const rough = (high - low) / number, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough), found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step / 1e6; i++) found.push(Number((i * step).toFixed(10)));
  return found;
}

/** Add an element to a drawing. */
function draw(parent, tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  parent.append(element);
  return element;
}

/** Return the width of a text of a drawing, in pixels. */
function widthOf(text) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  return context.measureText(text).width;
}

/** Draw a gene: a line for each label, with predicted change, interval and real change. */
function plot(box, rows, gene) {
  const width = Math.max(280, box.clientWidth), lineHeight = 24, top = 6;
  const letters = Math.floor(0.38 * width / 7);
  const names = rows.map(r => r.name.length > letters ? r.name.slice(0, letters - 1) + "\u2026" : r.name);
  const left = 14 + Math.max(...names.map(widthOf)), bottom = top + lineHeight * rows.length;
  const values = rows.flatMap(r => [r.change, r.lower, r.upper, r.real]).filter(v => !Number.isNaN(v));
  let low = Math.min(0, ...values), high = Math.max(0, ...values);
  const room = 0.05 * (high - low) || 1;
  low -= room; high += room;
  const x = value => (left + (value - low) / (high - low) * (width - left - 12)).toFixed(1);
  const svg = draw(document.createDocumentFragment(), "svg", {
    width, height: bottom + 38, viewBox: `0 0 ${width} ${bottom + 38}`, role: "img", "aria-label": `Change of ${gene} in each label`,
  });
  for (const tick of ticks(low, high, (width - left) / 80)) {
    draw(svg, "line", { class: "axis", x1: x(tick), x2: x(tick), y1: top, y2: bottom, "stroke-width": tick ? 1 : 2 });
    draw(svg, "text", { class: "soft", x: x(tick), y: bottom + 15, "text-anchor": "middle" }, String(tick));
  }
  draw(svg, "text", { class: "soft", x: (left + width) / 2, y: bottom + 33, "text-anchor": "middle" }, `change of ${gene}`);
  rows.forEach((r, i) => {
    const y = top + lineHeight * (i + 0.5);
    draw(draw(svg, "text", { x: left - 8, y: y + 4, "text-anchor": "end" }, names[i]), "title", {}, r.name);
    if (!Number.isNaN(r.lower)) draw(svg, "line", { class: "interval", x1: x(r.lower), x2: x(r.upper), y1: y, y2: y });
    draw(svg, "circle", { class: "predicted", cx: x(r.change), cy: y, r: 4.5 });
    if (!Number.isNaN(r.real)) draw(svg, "path", { class: "real", d: `M${x(r.real)} ${y - 6}l5 6l-5 6l-5 -6z` });
  });
  box.replaceChildren(svg);
}

/** Return a table of a gene, one row a label. */
function geneTable(rows) {
  const table = make("table", "", { id: "gene-table", class: "sortable" }), head = table.createTHead().insertRow();
  for (const [name, kind] of [["prediction", ""], ["predicted", "number"], ["90 % interval", "number"], ["real change", "number"]])
    head.append(make("th", name, { class: kind }));
  const body = table.createTBody();
  for (const r of rows) {
    const row = body.insertRow(), first = make("td", r.label);
    first.append(make("br"), make("small", `${r.source} \u2192 ${r.target}${r.origin ? `, ${r.origin}` : ""}`));
    const interval = Number.isNaN(r.lower) ? "" : `${shown(r.lower)} to ${shown(r.upper)}`;
    row.append(first, make("td", shown(r.change), { class: "number", "data-value": r.change }),
      make("td", interval, { class: "number", "data-value": r.upper - r.lower }),
      make("td", shown(r.real) || "not compared", { class: "number", "data-value": r.real }));
  }
  makeSortable(table);
  return table;
}

/** Let the field look a gene up, among rows by gene. */
function makeSearch(genes) {
  const at = id => document.getElementById(`gene-${id}`), field = at("field"), near = at("near");
  const names = [...genes.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const known = new Map(names.map(name => [name.toLowerCase(), name]));
  let current = null;
  const show = () => {
    const word = field.value.trim().toLowerCase();
    current = known.get(word) ?? null;
    near.replaceChildren();
    const rows = current === null ? [] : genes.get(current);
    at("legend").hidden = !rows.length;
    at("rows").replaceChildren(...(rows.length ? [geneTable(rows)] : []));
    at("plot").replaceChildren();
    if (rows.length) { plot(at("plot"), rows, current); return; }
    if (!word) return;
    const like = names.filter(name => name.toLowerCase().includes(word)).slice(0, 12);
    near.append(like.length ? "Genes with these letters: " : "No gene has these letters.");
    for (const name of like) {
      const button = make("button", name, { type: "button" });
      button.addEventListener("click", () => { field.value = name; show(); });
      near.append(button);
    }
  };
  at("names").append(...names.map(name => make("option", "", { value: name })));
  field.addEventListener("input", show);
  addEventListener("resize", () => { if (current !== null) plot(at("plot"), genes.get(current), current); });
  document.querySelector("#gene-search .tools").hidden = false;
  at("static").hidden = true;
  field.value = genes.keys().next().value ?? "";
  show();
}

/** Read the genes from the file in the page, and offer it as plain CSV. */
async function readGenes() {
  const link = document.getElementById("genes-csv");
  if (typeof DecompressionStream === "undefined") return;
  const text = await unpack(link.getAttribute("href").split(",")[1]);
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "genes.csv";
  const genes = new Map(), [, ...rows] = parseCsv(text);
  for (const [label, source, target, gene, change, lower, upper, real, origin] of rows) {
    if (!genes.has(gene)) genes.set(gene, []);
    genes.get(gene).push({
      label, source, target, origin, name: label, change: parseFloat(change), lower: parseFloat(lower),
      upper: parseFloat(upper), real: parseFloat(real),
    });
  }
  const [fromSeveral, toSeveral] = [1, 2].map(column => new Set(rows.map(row => row[column])).size > 1);
  for (const r of [...genes.values()].flat()) {
    if (fromSeveral || toSeveral) r.name += ` \u2192 ${r.target}`;
    if (fromSeveral) r.name += ` from ${r.source}`;
    if (r.origin) r.name += `, ${r.origin}`;
  }
  makeSearch(genes);
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("table[data-filter]").forEach(makeFilterable);
readGenes();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
