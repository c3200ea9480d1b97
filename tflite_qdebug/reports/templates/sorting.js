"use strict";
// Lets a table be sorted by the column whose name is pressed; what has no value stands last in both directions.
// `rows` are objects with the table's rows as `row`, and are brought into the new order too; `textOf(entry, column)` is what a
// column without numbers is sorted by; `done(words)` is told.
const sortable = (table, rows, textOf, done) => {
  const heads = [...table.tHead.rows[0].cells];
  const firstOf = (head) => head.dataset.first === "asc" ? "ascending" : "descending";
  const order = new Intl.Collator(undefined, { numeric: true }).compare;
  const nothing = (value) => value === null || value === "";
  const valueOf = (entry, column) => {
    const text = entry.row.cells[column].dataset.v;
    if (text === undefined) return textOf(entry, column);
    return text === "" ? null : text === "inf" ? Infinity : text === "-inf" ? -Infinity : Number(text);
  };
  const sortBy = (column, direction) => {
    const sign = direction === "ascending" ? 1 : -1;
    const keyed = rows.map((entry) => [valueOf(entry, column), entry]);
    keyed.sort(([a], [b]) => {
      if (nothing(a) || nothing(b)) return nothing(a) - nothing(b);
      return sign * (typeof a === "string" ? order(a, b) : a < b ? -1 : a > b ? 1 : 0);
    });
    rows.splice(0, rows.length, ...keyed.map(([, entry]) => entry));
    table.tBodies[0].append(...rows.map((entry) => entry.row));
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", direction);
  };
  heads.forEach((head, column) => {
    if (head.dataset.key && head.dataset.key === table.dataset.sortedBy) head.setAttribute("aria-sort", firstOf(head));
    const button = head.querySelector("button");
    button.addEventListener("click", () => {
      const first = firstOf(head);
      const other = first === "ascending" ? "descending" : "ascending";
      const direction = head.getAttribute("aria-sort") === first ? other : first;
      sortBy(column, direction);
      done("Sorted by " + button.firstChild.textContent + ", " + direction);
    });
  });
};
