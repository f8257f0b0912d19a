// The class table of a detector's verification.
(() => {
  "use strict";
  const { result, view, fixed, whole, difference, column, classColumns, classTable } = report;
  const precision = (value) => fixed(value, 1);
  const hasFix = result.classes.some((c) => c.unfixed !== null && c.unfixed !== c.reference);
  const rows = result.classes
    .map((c) => ({
      ...c, change: difference(c.candidate, c.reference), gain: difference(c.candidate, c.unfixed),
      change50: difference(c.candidate_ap50, c.reference_ap50), alone: c.lost + c.new,
    }))
    // What deserves the eye comes first: the largest drops, then the rarest.
    .sort((a, b) => (a.change ?? Infinity) - (b.change ?? Infinity) || a.train_count - b.train_count);

  const columns = [
    // LVIS's "common" is wider than the groups of classifiers.
    ...classColumns().map((one) => (one.field === "group" ? { ...one, minWidth: 106 } : one)),
    column.number("objects", "Objects", whole, { minWidth: 80 }),
    ...(hasFix ? [column.number("unfixed", view.names.unfixed, precision, { minWidth: 70 })] : []),
    column.number("reference", view.names.reference, precision, { minWidth: 98 }),
    column.number("candidate", view.names.candidate, precision, { minWidth: 98 }),
    ...(hasFix ? [column.change("gain", "Gain")] : []),
    column.change("change", "Δ", { headerSortStartingDir: "asc" }),
    column.change("change50", "Δ AP50", { minWidth: 68, headerSortStartingDir: "asc" }),
    column.number("alone", "Lost or new", whole, { minWidth: 76 }),
  ];
  const grid = classTable(rows, columns);
  grid.on("tableBuilt", () => {
    document.getElementById("class-table").setAttribute("aria-label", "Average precision of every class");
  });
  document.getElementById("only-worse").addEventListener("click", () => grid.setHeaderFilterValue("change", "<0"));
})();
