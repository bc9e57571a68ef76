(() => {
  "use strict";

  const keyOf = (cell) => (cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value));

  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));

  function sortTable(table, header, direction) {
    const sign = direction === "descending" ? -1 : 1;
    const rows = [...table.tBodies[0].rows];
    const keys = new Map(rows.map((row) => [row, keyOf(row.cells[header.cellIndex])]));
    rows.sort((a, b) => sign * compare(keys.get(a), keys.get(b)));
    table.tBodies[0].append(...rows);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
  }

  // Headers become real buttons, so that Tab, Enter and Space work; without scripts they stay plain text.
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const [, wanted] = location.hash.match(/^#sort=(-?\w+)$/) || [];
    for (const header of table.tHead.rows[0].querySelectorAll("th[data-key]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const again = header.getAttribute("aria-sort") === "ascending";
        sortTable(table, header, again ? "descending" : "ascending");
      });
      if (wanted && wanted.replace("-", "") === header.dataset.key) {
        sortTable(table, header, wanted.startsWith("-") ? "descending" : "ascending");
      }
    }
  }

  const matrix = document.querySelector("svg.matrix");
  const readout = document.querySelector(".readout");
  if (matrix && readout) {
    const hint = readout.textContent;
    const show = (event) => {
      const title = event.target.querySelector("title");
      readout.textContent = title && event.target.classList.contains("cell") ? title.textContent : hint;
    };
    matrix.addEventListener("pointerover", show);
    matrix.addEventListener("pointerleave", () => (readout.textContent = hint));
  }
})();
