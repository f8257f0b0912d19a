// The charts and the class table of a verification or a comparison.
(() => {
  "use strict";
  const { result, view, fixed, probability, element, difference, offer, column, classColumns, classTable, onTheme } = report;
  const STROKES = { unfixed: "dashed", reference: "thin", candidate: "bold" };

  const drawScatter = () => {
    const key = document.querySelector("input[name=before]:checked")?.value ?? "reference";
    charts.scatter(document.getElementById("scatter"), result.classes, key, "candidate");
  };
  const drawReliability = () => charts.reliability((group) =>
    Object.entries(view.reliability[group]).map(([model, { bins }]) => ({ model, stroke: STROKES[model], bins })));
  offer({ reliability: () => JSON.stringify(view.reliability, null, 1) });

  // --- the class table ---------------------------------------------------------------------------
  const accuracy = (value) => fixed(value, 1);
  const hasUnfixed = result.classes.some((c) => typeof c.unfixed === "number");
  const rows = result.classes
    .map((c) => ({ ...c, change: difference(c.candidate, c.reference), gain: difference(c.candidate, c.unfixed) }))
    // What deserves the eye comes first: proven losses, then the largest drops, then the rarest.
    .sort((a, b) => Number(b.regressed ?? false) - Number(a.regressed ?? false)
      || (a.change ?? Infinity) - (b.change ?? Infinity) || a.train_count - b.train_count);

  const columns = [
    ...classColumns(),
    ...(hasUnfixed ? [column.number("unfixed", view.names.unfixed, accuracy, { minWidth: 88 })] : []),
    column.number("reference", view.names.reference, accuracy, { minWidth: 98 }),
    column.number("candidate", view.names.candidate, accuracy, { minWidth: 98 }),
    ...(hasUnfixed ? [column.change("gain", "Gain")] : []),
    column.change("change", "Δ", { headerSortStartingDir: "asc" }),
    column.number("p_value", "p", probability, { headerSortStartingDir: "asc" }),
    column.number("q_value", "q", probability, { headerSortStartingDir: "asc" }),
    column.choice("regressed", "Worse", [["true", "worse"], ["false", "not"]], {
      minWidth: 80, headerSortStartingDir: "desc",
      sorter: (a, b) => Number(a ?? false) - Number(b ?? false),
      print: (value) => (value ? "worse" : ""),
      formatter: (cell) => (cell.getValue() ? element("span", { class: "worse" }, "worse") : ""),
    }),
  ];

  onTheme(() => { drawScatter(); drawReliability(); });
  for (const input of document.querySelectorAll("input[name=before]")) input.addEventListener("change", drawScatter);
  const grid = classTable(rows, columns);
  document.getElementById("only-worse").addEventListener("click", () => grid.setHeaderFilterValue("regressed", "true"));
})();
