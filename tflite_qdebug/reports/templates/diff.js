(() => {
  const rows = [...document.getElementById("layers").tBodies[0].rows].map((row) => ({ row }));
  const count = document.getElementById("count");
  sortable(document.getElementById("layers"), rows, (entry, column) => entry.row.cells[column].textContent, () => {});
  document.getElementById("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    let shown = 0;
    for (const { row } of rows) {
      const texts = [row.cells[0], row.cells[1], row.cells[row.cells.length - 1]].map((cell) => cell.textContent.toLowerCase());
      row.hidden = !texts.some((text) => text.includes(wanted));
      shown += !row.hidden;
    }
    count.textContent = shown + " of " + rows.length + " layers";
  });
})();
