// The charts that several reports draw: accuracy over training count, and reliability.
// eslint-disable-next-line no-unused-vars
const charts = (() => {
  "use strict";
  const { view, imageKind, color, isNumber, fixed, whole } = report;
  const SHAPES = ["circle", "triangle", "rect"];
  const tint = (group) => Math.max(0, view.groups.indexOf(group)) % 3;
  const groupColor = (group) => color(`group-${view.groups.includes(group) ? tint(group) : 3}`);
  const faint = (hex) => `${hex}80`;
  const drawn = new Map();

  const draw = (canvas, config) => {
    drawn.get(canvas)?.destroy();
    config.options = { responsive: true, maintainAspectRatio: false, animation: false, ...config.options };
    const chart = new Chart(canvas, config);
    drawn.set(canvas, chart);
    return chart;
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
    const wanted = points.filter((c) => isNumber(c[key]));
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
  const marks = (classes, after) => {
    const points = classes.map((c) => ({ x: at(c), y: c[after], of: [c] }));
    if (!view.crowded) return points;
    const cells = new Map();
    for (const point of points) {
      const key = `${Math.round(16 * Math.log2(point.x) / 3)}|${Math.round(point.y / 2)}`;
      const cell = cells.get(key);
      if (cell) cell.of.push(...point.of);
      else cells.set(key, point);
    }
    return [...cells.values()];
  };
  const markLabel = (before, after) => ({ raw: { of } }) => {
    const counts = of.map((c) => c.train_count);
    const low = Math.min(...counts), high = Math.max(...counts);
    const training = `${low === high ? whole(low) : `${whole(low)}–${whole(high)}`} training images`;
    const [c] = of;
    if (of.length > 1) return [`${whole(of.length)} classes, ${c.group}`, training, `about ${fixed(c[after], 0)} % right`];
    return [c.name, `${c.group} · ${training}, ${whole(c.images)} ${imageKind} images`,
      `${view.names[before]}: ${fixed(c[before], 1)} %`, `${view.names[after]}: ${fixed(c[after], 1)} %`];
  };

  const groupBorders = (measured) => {
    const borders = view.groups.slice(1).flatMap((group, i) => {
      const counts = (name) => measured.filter((c) => c.group === name).map(at);
      const above = counts(view.groups[i]), below = counts(group);
      if (!above.length || !below.length) return [];
      const low = below.reduce((a, b) => Math.max(a, b)), high = above.reduce((a, b) => Math.min(a, b));
      return low < high ? [Math.sqrt(low * high)] : [];
    });
    return {
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
  };
  const stems = (measured, before, after) => ({
    id: "stems",
    beforeDatasetsDraw({ ctx, scales }) {
      if (view.crowded) return;
      ctx.save();
      ctx.lineWidth = 1.5;
      for (const c of measured) {
        if (!isNumber(c[before])) continue;
        const x = scales.x.getPixelForValue(at(c));
        ctx.strokeStyle = faint(groupColor(c.group));
        ctx.beginPath(); ctx.moveTo(x, scales.y.getPixelForValue(c[before]));
        ctx.lineTo(x, scales.y.getPixelForValue(c[after])); ctx.stroke();
      }
      ctx.restore();
    },
  });

  // Draw each class before and after; `before` and `after` are keys of its figures and of view.names.
  const scatter = (canvas, classes, before, after) => {
    const measured = classes.filter((c) => isNumber(c[after]));
    const grouped = view.groups.map((group) => [group, marks(measured.filter((c) => c.group === group), after)]);
    const most = grouped.flatMap(([, data]) => data).reduce((a, mark) => Math.max(a, mark.of.length), 1);
    const { crowded } = view;
    const now = grouped.map(([group, data]) => {
      const size = data.map((mark) => (crowded ? 1.5 + 11 * Math.sqrt(mark.of.length / most) : 4.5));
      const paint = groupColor(group);
      return {
        label: group, order: 2, clip: false, data, pointStyle: SHAPES[tint(group)], pointRadius: size, pointHoverRadius: size,
        backgroundColor: crowded ? faint(paint) : paint, borderWidth: 0,
      };
    });
    const then = {
      label: view.names[before], order: 3, clip: false, pointStyle: "circle", pointRadius: crowded ? 0 : 3, pointHitRadius: 0,
      pointHoverRadius: 3, backgroundColor: color("paper"), borderColor: color("before"), borderWidth: 1.25,
      data: measured.filter((c) => isNumber(c[before])).map((c) => ({ x: at(c), y: c[before] })),
    };
    const line = (label, data, style) => ({
      label, data, type: "line", order: 1, pointRadius: 0, pointHitRadius: 0, ...style,
    });
    draw(canvas, {
      type: "scatter",
      plugins: [groupBorders(measured), stems(measured, before, after)],
      data: { datasets: [
        line("average after", averages(measured, after), { borderColor: color("ink"), borderWidth: 2.5 }),
        line("average before", averages(measured, before), { borderColor: color("before"), borderWidth: 2, borderDash: [6, 4] }),
        ...now, then,
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
        plugins: { legend: { display: false }, tooltip: tooltip(markLabel(before, after)) },
      },
    });
  };

  // --- reliability -----------------------------------------------------------------------------
  const strokes = (group) => ({
    bold: { borderColor: groupColor(group), backgroundColor: groupColor(group), borderWidth: 2.5, order: 1 },
    thin: { borderColor: color("soft"), backgroundColor: color("paper"), borderWidth: 1.25, order: 2 },
    dashed: { borderColor: color("before"), backgroundColor: color("before"), borderWidth: 1.75, borderDash: [5, 4], order: 3 },
  });
  // Fill every panel: `curves(group)` gives [{ model, stroke, bins }], shares of 1 in the bins.
  const reliability = (curves) => {
    for (const canvas of document.querySelectorAll("canvas[data-reliability]")) {
      const group = canvas.dataset.reliability;
      const datasets = curves(group).map(({ model, stroke, bins }) => {
        const used = bins.filter((bin) => bin.count > 0);
        const most = used.reduce((a, bin) => Math.max(a, bin.count), 1);
        const size = used.map((bin) => 1 + 3 * Math.sqrt(bin.count / most) + (stroke === "thin" ? 2 : 0));
        return {
          label: view.names[model], showLine: true, pointRadius: size, pointHoverRadius: size, ...strokes(group)[stroke],
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
              `${dataset.label}: ${fixed(raw.x, 0)} % sure, ${fixed(raw.y, 0)} % right (${whole(raw.n)} images)`),
          },
        },
      });
    }
  };

  return { SHAPES, tint, groupColor, draw, axis, tooltip, scatter, reliability };
})();
