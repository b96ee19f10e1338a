const FILTERED = 15;

function value(row, column) {
  const cell = row.cells[column];
  const number = parseFloat(cell.dataset.v);
  return Number.isNaN(number) ? cell.textContent : number;
}

function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
  return typeof a === "number" ? -1 : 1;
}

function sort(table, head) {
  const keyed = [...table.tBodies[0].rows].map((row) => [value(row, head.cellIndex), row]);
  const directions = ["ascending", "descending"];
  if (keyed.some(([key]) => typeof key === "number")) directions.reverse();  // the greatest numbers first
  const direction = directions[head.ariaSort === directions[0] ? 1 : 0];
  const sign = direction === "ascending" ? 1 : -1;
  keyed.sort((one, other) => sign * compare(one[0], other[0]));
  for (const each of head.parentNode.cells) each.removeAttribute("aria-sort");
  head.ariaSort = direction;
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

function addFilter(table) {
  const box = document.createElement("input");
  box.type = "search";
  box.placeholder = `filter ${table.tBodies[0].rows.length} ${table.dataset.rows}`;
  box.ariaLabel = box.placeholder;
  box.addEventListener("input", () => {
    const wanted = box.value.toLowerCase();
    for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
  table.parentNode.prepend(box);
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  }
  if (table.tBodies[0].rows.length > FILTERED) addFilter(table);
}

for (const command of document.querySelectorAll(".commands code")) {
  const button = document.createElement("button");
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "copied";
    } catch {  // no permission: mark it, so that the keyboard copies it
      getSelection().selectAllChildren(command);
      button.textContent = "marked";
    }
  });
  command.after(button);
}

const theme = document.querySelector("button.theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("onnxq-theme", root.dataset.theme);
  } catch { /* it holds until the page is closed */ }
  document.dispatchEvent(new Event("themechange"));
});
