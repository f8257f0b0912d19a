// The charts and the class table of a verification or a comparison.
(() => {
  "use strict";
  const { result, view, color, fixed, signed, probability, element, column, table, onTheme } = report;
  const SHAPES = ["circle", "triangle", "rect"];
  const tint = (group) => Math.max(0, view.groups.indexOf(group)) % 3;
  const faint = (hex) => `${hex}80`;
  const charts = new Map();

  const draw = (canvas, config) => {
    charts.get(canvas)?.destroy();
    config.options = { responsive: true, maintainAspectRatio: false, animation: false, ...config.options };
    charts.set(canvas, new Chart(canvas, config));
  };
  const axis = (title, options) => ({
    title: { display: true, text: title, color: color("soft"), font: { size: 12 } },
    grid: { color: color("line"), drawTicks: false }, border: { display: false },
    ...options,
    ticks: { color: color("soft"), padding: 6, font: { size: 12 }, ...options?.ticks },
  });
  const tooltip = (label) => ({
    displayColors: false, backgroundColor: color("ink"), bodyColor: color("paper"), titleColor: color("paper"),
    padding: 9, cornerRadius: 3, callbacks: { title: () => "", label },
  });

  // --- accuracy over training count ------------------------------------------------------------
  const measured = result.classes.filter((c) => typeof c.candidate === "number");
  const { crowded } = view;
  // A count of zero has no logarithm; it stands left of one and the tooltip tells the truth.
  const at = (c) => Math.max(c.train_count, 0.5);

  // Too few classes for bins of similar size: the groups are the bins.
  const groupAverages = (points, key) => view.groups.flatMap((group) => {
    const own = points.filter((c) => c.group === group);
    if (!own.length) return [];
    const mean = (value) => own.reduce((sum, c) => sum + value(c), 0) / own.length;
    return [{ x: Math.exp(mean((c) => Math.log(at(c)))), y: mean((c) => c[key]) }];
  });
  const averages = (points, key) => {
    const wanted = points.filter((c) => typeof c[key] === "number");
    const bins = Math.min(12, Math.floor(wanted.length / 12));
    if (bins < 3) return groupAverages(wanted, key);
    const logs = wanted.map((c) => Math.log(at(c)));
    const low = logs.reduce((a, b) => Math.min(a, b));
    const width = (logs.reduce((a, b) => Math.max(a, b)) - low) / bins || 1;
    const sums = Array.from({ length: bins }, () => ({ n: 0, x: 0, y: 0 }));
    wanted.forEach((c, i) => {
      const bin = sums[Math.min(bins - 1, Math.floor((logs[i] - low) / width))];
      bin.n += 1; bin.x += logs[i]; bin.y += c[key];
    });
    return sums.filter((b) => b.n > 2).map((b) => ({ x: Math.exp(b.x / b.n), y: b.y / b.n }));
  };

  // Classes of about the same count and accuracy share a mark whose area is their number.
  const marks = (classes) => {
    const points = classes.map((c) => ({ x: at(c), y: c.candidate, of: [c] }));
    if (!crowded) return points;
    const cells = new Map();
    for (const point of points) {
      const key = `${Math.round(16 * Math.log2(point.x) / 3)}|${Math.round(point.y / 2)}`;
      const cell = cells.get(key);
      if (cell) cell.of.push(...point.of);
      else cells.set(key, point);
    }
    return [...cells.values()];
  };
  const markLabel = (key) => ({ raw: { of } }) => {
    const counts = of.map((c) => c.train_count);
    const low = Math.min(...counts), high = Math.max(...counts);
    const training = `${low === high ? low.toLocaleString("en") : `${low.toLocaleString("en")}–${high.toLocaleString("en")}`} training images`;
    const [c] = of;
    if (of.length > 1) return [`${of.length.toLocaleString("en")} classes, ${c.group}`, training, `about ${fixed(c.candidate, 0)} % right`];
    return [c.name, `${c.group} · ${training}, ${c.images.toLocaleString("en")} test images`,
      `${view.names[key]}: ${fixed(c[key], 1)} %`, `${view.names.candidate}: ${fixed(c.candidate, 1)} %`];
  };

  const borders = view.groups.slice(1).flatMap((group, i) => {
    const counts = (name) => measured.filter((c) => c.group === name).map(at);
    const above = counts(view.groups[i]), below = counts(group);
    if (!above.length || !below.length) return [];
    const low = below.reduce((a, b) => Math.max(a, b)), high = above.reduce((a, b) => Math.min(a, b));
    return low < high ? [Math.sqrt(low * high)] : [];
  });
  const groupBorders = {
    id: "groupBorders",
    beforeDatasetsDraw({ ctx, chartArea, scales }) {
      ctx.save();
      ctx.strokeStyle = color("soft"); ctx.globalAlpha = 0.6; ctx.setLineDash([2, 4]);
      for (const value of borders) {
        const x = scales.x.getPixelForValue(value);
        ctx.beginPath(); ctx.moveTo(x, chartArea.top); ctx.lineTo(x, chartArea.bottom); ctx.stroke();
      }
      ctx.restore();
    },
  };
  const stems = (key) => ({
    id: "stems",
    beforeDatasetsDraw({ ctx, scales }) {
      if (crowded) return;
      ctx.save();
      ctx.lineWidth = 1.5;
      for (const c of measured) {
        if (typeof c[key] !== "number") continue;
        const x = scales.x.getPixelForValue(at(c));
        ctx.strokeStyle = faint(color(`group-${tint(c.group)}`));
        ctx.beginPath(); ctx.moveTo(x, scales.y.getPixelForValue(c[key]));
        ctx.lineTo(x, scales.y.getPixelForValue(c.candidate)); ctx.stroke();
      }
      ctx.restore();
    },
  });

  const drawScatter = () => {
    const canvas = document.getElementById("scatter");
    if (!canvas) return;
    const key = document.querySelector("input[name=before]:checked")?.value ?? "reference";
    const grouped = view.groups.map((group) => [group, marks(measured.filter((c) => c.group === group))]);
    const most = grouped.flatMap(([, data]) => data).reduce((a, mark) => Math.max(a, mark.of.length), 1);
    const after = grouped.map(([group, data]) => {
      const size = data.map((mark) => (crowded ? 1.5 + 11 * Math.sqrt(mark.of.length / most) : 4.5));
      const paint = color(`group-${tint(group)}`);
      return {
        label: group, order: 2, clip: false, data, pointStyle: SHAPES[tint(group)], pointRadius: size, pointHoverRadius: size,
        backgroundColor: crowded ? faint(paint) : paint, borderWidth: 0,
      };
    });
    const before = {
      label: view.names[key], order: 3, clip: false, pointStyle: "circle", pointRadius: crowded ? 0 : 3, pointHitRadius: 0,
      pointHoverRadius: 3, backgroundColor: color("paper"), borderColor: color("before"), borderWidth: 1.25,
      data: measured.filter((c) => typeof c[key] === "number").map((c) => ({ x: at(c), y: c[key] })),
    };
    const line = (label, data, style) => ({
      label, data, type: "line", order: 1, pointRadius: 0, pointHitRadius: 0, ...style,
    });
    draw(canvas, {
      type: "scatter",
      plugins: [groupBorders, stems(key)],
      data: { datasets: [
        line("average after", averages(measured, "candidate"), { borderColor: color("ink"), borderWidth: 2.5 }),
        line("average before", averages(measured, key), { borderColor: color("before"), borderWidth: 2, borderDash: [6, 4] }),
        ...after, before,
      ] },
      options: {
        interaction: { mode: "nearest", intersect: true },
        layout: { padding: { right: 10, top: 6 } },
        scales: {
          x: axis("training images of the class (logarithmic)", {
            type: "logarithmic",
            ticks: { autoSkip: false, maxRotation: 0, callback: (value) => {
              if (value === 0.5) return "0";
              return /^[125]0*$/.test(String(value)) ? value.toLocaleString("en") : null;
            } },
          }),
          y: axis("accuracy of the class, %", { min: 0, max: 100, ticks: { stepSize: 20 } }),
        },
        plugins: {
          legend: { display: false },
          tooltip: tooltip(markLabel(key)),
        },
      },
    });
  };

  // --- reliability -----------------------------------------------------------------------------
  const drawReliability = () => {
    for (const canvas of document.querySelectorAll("canvas[data-reliability]")) {
      const group = canvas.dataset.reliability;
      const main = color(`group-${group === "overall" ? 3 : tint(group)}`);
      const style = {
        candidate: { borderColor: main, backgroundColor: main, borderWidth: 2.5, order: 1 },
        reference: { borderColor: color("soft"), backgroundColor: color("paper"), borderWidth: 1.25, order: 2 },
        unfixed: { borderColor: color("before"), backgroundColor: color("before"), borderWidth: 1.75, borderDash: [5, 4], order: 3 },
      };
      const datasets = Object.entries(view.reliability[group]).map(([model, { bins }]) => {
        const used = bins.filter((bin) => bin.count > 0);
        const most = used.reduce((a, bin) => Math.max(a, bin.count), 1);
        const size = used.map((bin) => 1 + 3 * Math.sqrt(bin.count / most) + (model === "reference" ? 2 : 0));
        return {
          label: view.names[model], showLine: true, pointRadius: size, pointHoverRadius: size, ...style[model],
          data: used.map((bin) => ({ x: 100 * bin.confidence, y: 100 * bin.accuracy, n: bin.count })),
        };
      });
      const diagonal = {
        label: "ideal", showLine: true, pointRadius: 0, pointHitRadius: 0, order: 4, borderColor: color("soft"),
        borderWidth: 1, borderDash: [1, 3], data: [{ x: 0, y: 0 }, { x: 100, y: 100 }],
      };
      draw(canvas, {
        type: "scatter",
        data: { datasets: [...datasets, diagonal] },
        options: {
          scales: {
            x: axis("confidence, %", { min: 0, max: 100, ticks: { stepSize: 25 } }),
            y: axis("accuracy, %", { min: 0, max: 100, ticks: { stepSize: 25 } }),
          },
          plugins: {
            legend: { display: false },
            tooltip: tooltip(({ dataset, raw }) =>
              `${dataset.label}: ${fixed(raw.x, 0)} % sure, ${fixed(raw.y, 0)} % right (${raw.n.toLocaleString("en")} images)`),
          },
        },
      });
    }
  };

  // --- the class table ---------------------------------------------------------------------------
  const percent = (value) => fixed(value, 1);
  const whole = (value) => (typeof value === "number" ? value.toLocaleString("en") : "–");
  const change = (value) => signed(value, 1);
  const changeCell = (cell) => {
    const value = cell.getValue();
    const tone = typeof value !== "number" || Math.abs(value) < 0.05 ? "flat" : value < 0 ? "down" : "up";
    return element("span", { class: tone }, change(value));
  };
  const difference = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : null);
  const hasUnfixed = result.classes.some((c) => typeof c.unfixed === "number");
  const rows = result.classes
    .map((c) => ({ ...c, change: difference(c.candidate, c.reference), gain: difference(c.candidate, c.unfixed) }))
    // What deserves the eye comes first: proven losses, then the largest drops, then the rarest.
    .sort((a, b) => Number(b.regressed ?? false) - Number(a.regressed ?? false)
      || (a.change ?? Infinity) - (b.change ?? Infinity) || a.train_count - b.train_count);

  const columns = [
    column.text("name", "Class", { frozen: true, minWidth: matchMedia("(max-width: 720px)").matches ? 130 : 160, widthGrow: 1.6 }),
    column.choice("group", "Group", view.groups.map((group) => [group, group]), {
      minWidth: 96,
      sorter: (a, b) => view.groups.indexOf(a) - view.groups.indexOf(b),
      formatter: (cell) => element("span", {},
        element("span", { class: `swatch tint-${tint(cell.getValue())}` }), String(cell.getValue())),
    }),
    column.number("train_count", "Training images", whole, { minWidth: 84 }),
    column.number("images", "Test images", whole, { minWidth: 78 }),
    ...(hasUnfixed ? [column.number("unfixed", view.names.unfixed, percent, { minWidth: 88 })] : []),
    column.number("reference", view.names.reference, percent, { minWidth: 98 }),
    column.number("candidate", view.names.candidate, percent, { minWidth: 98 }),
    ...(hasUnfixed ? [column.number("gain", "Gain", change, { formatter: changeCell })] : []),
    column.number("change", "Δ", change, { formatter: changeCell, headerSortStartingDir: "asc" }),
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
  const grid = table("#class-table", rows, columns, {
    label: "Accuracy of every class", counter: document.getElementById("class-count"),
  });
  document.getElementById("clear-filters").addEventListener("click", () => grid.clearHeaderFilter());
  document.getElementById("only-worse").addEventListener("click", () => grid.setHeaderFilterValue("regressed", "true"));
  document.getElementById("only-rare").addEventListener("click", () => grid.setHeaderFilterValue("group", view.groups.at(-1)));
})();
