"use strict";
{
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const field = (name) => document.getElementById(name);

  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.classList.contains("figure") ? null : cell.textContent;
  };

  // What has no figure stays last, whichever way the others are sorted.
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
  };

  const sort = (column) => {
    const head = heads[column];
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const sign = descending ? -1 : 1;
    rows.sort((a, b) => compare(value(a, column), value(b, column), sign));
    body.append(...rows);
  };

  heads.forEach((head, column) => {
    if (!head.dataset.key) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(column));
    head.replaceChildren(button);
  });

  const column = (key) => heads.findIndex((head) => head.dataset.key === key);
  const limits = [...document.querySelectorAll("#filters [data-figure]")];

  const within = (row, input) => {
    if (!input.value) return true;
    const figure = value(row, column(input.dataset.figure));
    if (figure === null) return false;
    return input.dataset.bound === "least" ? figure >= Number(input.value) : figure <= Number(input.value);
  };

  const keeps = (row) => {
    const words = [...row.cells].filter((cell) => !cell.classList.contains("figure"));
    const named = words.map((cell) => cell.textContent).join(" ").toLowerCase();
    if (!named.includes(field("name").value.trim().toLowerCase())) return false;
    if (value(row, column("verdict")) > field("verdict").selectedIndex) return false;
    return limits.every((input) => within(row, input));
  };

  const filter = () => {
    let shown = 0;
    for (const row of rows) {
      const kept = keeps(row);
      shown += kept;
      for (const part of document.querySelectorAll(`[data-row="${row.dataset.row}"]`)) {
        part.toggleAttribute("hidden", !kept);
      }
    }
    field("shown").textContent = `${shown} of ${rows.length} shown`;
  };

  const filters = field("filters");
  filters.hidden = false;
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("input", filter);
  filter();
}
