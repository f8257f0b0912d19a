// What every report shares: its data, theme, number formats, downloads, class table and printing.
// eslint-disable-next-line no-unused-vars
const report = (() => {
  "use strict";
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const result = read("result-data");
  const view = read("view-data");
  const imageKind = view.images ?? "test";
  const root = document.documentElement;

  const color = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const isNumber = (value) => typeof value === "number";
  const fixed = (value, digits) => {
    if (!isNumber(value)) return "–";
    const text = value.toFixed(digits);
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
  };
  const signed = (value, digits) => {
    const text = fixed(value, digits);
    return value > 0 && Number(text) !== 0 ? `+${text}` : text;
  };
  const whole = (value) => (isNumber(value) ? value.toLocaleString("en") : "–");
  const probability = (value) => {
    if (!isNumber(value)) return "–";
    return value < 0.001 && value > 0 ? value.toExponential(0).replace("-", "−") : value.toFixed(3);
  };

  const element = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };

  // Downloads are made when asked for, from what the page holds: no second copy lies in the file.
  const csv = (rows) => {
    const keys = [...new Set(rows.flatMap(Object.keys))];
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [keys, ...rows.map((row) => keys.map((key) => row[key]))]
      .map((cells) => cells.map(cell).join(","))
      .join("\r\n");
  };
  const offered = {
    result: () => JSON.stringify(result, null, 1),
    classes: () => csv(result.classes),
  };
  const offer = (makers) => Object.assign(offered, makers);
  for (const link of document.querySelectorAll("a[data-download]")) {
    link.addEventListener("click", () => {
      const type = link.download.endsWith(".csv") ? "text/csv" : "application/json";
      const blob = new Blob([offered[link.dataset.download]()], { type: `${type};charset=utf-8` });
      const address = URL.createObjectURL(blob);
      link.href = address;
      setTimeout(() => URL.revokeObjectURL(address), 60000);
    });
  }

  // "<20", ">= 50", "10-30", "10..30", "= 5" or "5"; anything else matches nothing, not everything.
  const numberFilter = (text, value) => {
    const wanted = text.trim().replaceAll("−", "-");
    if (!wanted) return true;
    if (!isNumber(value)) return false;
    const figure = "(-?\\d*\\.?\\d+(?:e-?\\d+)?)";
    const range = wanted.match(new RegExp(`^${figure}\\s*(?:\\.\\.|–|-|to)\\s*${figure}$`, "i"));
    if (range) return value >= Number(range[1]) && value <= Number(range[2]);
    const bound = wanted.match(new RegExp(`^(<=|>=|<|>|=|≤|≥)?\\s*${figure}$`, "i"));
    if (!bound) return false;
    const limit = Number(bound[2]);
    switch (bound[1]) {
      case "<": return value < limit;
      case ">": return value > limit;
      case "<=": case "≤": return value <= limit;
      case ">=": case "≥": return value >= limit;
      default: return value === limit;
    }
  };

  // Tabulator's own filter fields listen for keys alone and miss what is pasted, dictated or dropped.
  const filterField = (title, placeholder, hint = "") => ({
    headerFilterLiveFilter: false,
    headerFilterPlaceholder: placeholder,
    headerFilter: (cell, _onRendered, success) => {
      const input = element("input", { type: "search", "aria-label": `Filter by ${title}${hint}` });
      input.value = cell.getValue();
      let timer;
      input.addEventListener("input", () => {
        clearTimeout(timer);
        timer = setTimeout(() => success(input.value), 120);
      });
      return input;
    },
  });

  const change = (value) => signed(value, 1);
  const difference = (a, b) => (isNumber(a) && isNumber(b) ? a - b : null);
  const collator = new Intl.Collator("en", { numeric: true });
  const column = {
    text: (field, title, options) => ({
      field, title,
      ...filterField(title, "search"),
      headerFilterFunc: (wanted, value) => value.toLowerCase().includes(wanted.toLowerCase()),
      sorter: (a, b) => collator.compare(a, b),
      // The title shows what a narrow column cuts off.
      formatter: (cell) => element("span", { title: cell.getValue() }, cell.getValue()),
      ...options,
    }),
    number: (field, title, format, options) => ({
      field, title, hozAlign: "right", headerHozAlign: "right",
      // Nulls stay at the bottom in both directions: no figure is neither the best nor the worst.
      sorter: (a, b, _rowA, _rowB, _column, direction) => {
        if (isNumber(a) && isNumber(b)) return a - b;
        if (isNumber(a) === isNumber(b)) return 0;
        return isNumber(a) === (direction === "asc") ? -1 : 1;
      },
      headerSortStartingDir: "desc",
      ...filterField(title, "<  >", ", for example <20, >=50 or 10-30"),
      headerFilterFunc: numberFilter,
      formatter: (cell) => format(cell.getValue()),
      print: format,
      ...options,
    }),
    // Points won or lost, with their sign, in the colour of good or bad.
    change: (field, title, options) => column.number(field, title, change, {
      formatter: (cell) => {
        const value = cell.getValue();
        const tone = !isNumber(value) || Math.abs(value) < 0.05 ? "flat" : value < 0 ? "down" : "up";
        return element("span", { class: tone }, change(value));
      },
      ...options,
    }),
    choice: (field, title, choices, options) => ({
      field, title,
      headerFilter: (cell, _onRendered, success) => {
        const select = element("select", { "aria-label": `Filter by ${title}` }, new Option("all", ""),
          ...choices.map(([value, text]) => new Option(text, value)));
        select.value = cell.getValue();
        select.addEventListener("change", () => success(select.value));
        return select;
      },
      headerFilterFunc: (wanted, value) => String(value) === wanted,
      headerFilterLiveFilter: false,
      ...options,
    }),
  };

  const PRINTED_ROWS = 200;
  const table = (selector, rows, columns, { label, counter }) => {
    const holder = document.querySelector(selector);
    // Tabulator reads titles as HTML, and names come from the user's data.
    const escape = (text) => element("span", {}, text).innerHTML;
    const definitions = columns.map(({ print, ...definition }) => ({ ...definition, title: escape(definition.title) }));
    const grid = new Tabulator(holder, {
      data: rows, columns: definitions, layout: "fitColumns", rowHeight: 34, index: "label",
      height: rows.length > 14 ? 600 : undefined, placeholder: "No class matches these filters.",
      columnDefaults: { minWidth: 62, resizable: false, headerWordWrap: true },
    });
    const count = (shown) => {
      counter.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} classes shown`;
    };
    grid.on("dataFiltered", (_filters, found) => count(found.length));
    grid.on("tableBuilt", () => {
      count(rows.length);
      holder.setAttribute("aria-label", label);
      // A grid may own rows and row groups alone, and the box that scrolls stands between.
      holder.removeAttribute("aria-owns");
      holder.querySelector(".tabulator-tableholder").setAttribute("role", "rowgroup");
      holder.querySelector(".tabulator-table").setAttribute("role", "presentation");
      // Tabulator sorts on click alone; people without a mouse need focus and Enter.
      for (const head of holder.querySelectorAll(".tabulator-col.tabulator-sortable")) {
        head.tabIndex = 0;
        head.addEventListener("keydown", (event) => {
          if (event.target !== head || (event.key !== "Enter" && event.key !== " ")) return;
          event.preventDefault();
          head.click();
        });
      }
    });
    // The table on screen holds only the rows in sight, so paper gets a plain one.
    const paper = element("div", { class: "print-table" });
    holder.after(paper);
    window.addEventListener("beforeprint", () => {
      const active = grid.getData("active");
      const head = element("tr", {}, ...columns.map((c) => element("th", { scope: "col" }, c.title)));
      const body = active.slice(0, PRINTED_ROWS).map((row) => element("tr", {},
        ...columns.map((c) => element("td", {}, (c.print ?? String)(row[c.field] ?? null)))));
      const note = active.length > PRINTED_ROWS
        ? `The first ${PRINTED_ROWS} of ${active.length} rows, as sorted and filtered on screen.` : "";
      paper.replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)), note);
    });
    return grid;
  };

  // What the class tables of all reports begin with.
  const classColumns = () => [
    column.text("name", "Class", { frozen: true, minWidth: matchMedia("(max-width: 720px)").matches ? 130 : 160, widthGrow: 1.6 }),
    column.choice("group", "Group", view.groups.map((group) => [group, group]), {
      minWidth: 96,
      sorter: (a, b) => view.groups.indexOf(a) - view.groups.indexOf(b),
      formatter: (cell) => element("span", {},
        element("span", { class: `swatch tint-${Math.max(0, view.groups.indexOf(cell.getValue())) % 3}` }), String(cell.getValue())),
    }),
    column.number("train_count", "Training images", whole, { minWidth: 84 }),
    column.number("images", `${imageKind[0].toUpperCase()}${imageKind.slice(1)} images`, whole, { minWidth: imageKind.length > 6 ? 98 : 78 }),
  ];
  const classTable = (rows, columns) => {
    const grid = table("#class-table", rows, columns, {
      label: "Accuracy of every class", counter: document.getElementById("class-count"),
    });
    document.getElementById("clear-filters").addEventListener("click", () => grid.clearHeaderFilter());
    document.getElementById("only-rare").addEventListener("click", () => grid.setHeaderFilterValue("group", view.groups.at(-1)));
    return grid;
  };

  // Plain tables sort by the figures in data-value; without JavaScript they stay as they are.
  for (const plain of document.querySelectorAll("table.sortable")) {
    const body = plain.tBodies[0];
    const heads = [...plain.querySelectorAll("th[data-sort]")];
    const valueOf = (row, place, numeric) => {
      const text = row.cells[place].dataset.value ?? row.cells[place].textContent;
      return numeric ? (text === "" ? null : Number(text)) : text;
    };
    for (const head of heads) {
      const button = element("button", { type: "button" }, ...head.childNodes);
      const numeric = head.dataset.sort !== "text";
      const by = numeric ? column.number("", "", String).sorter : collator.compare;
      head.append(button);
      button.addEventListener("click", () => {
        // The first click shows the best first, and "best" is the lowest for an error.
        const [first, second] = head.dataset.sort === "high" ? ["descending", "ascending"] : ["ascending", "descending"];
        const order = head.getAttribute("aria-sort") === first ? second : first;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const place = [...head.parentElement.children].indexOf(head);
        const rows = [...body.rows].map((row) => [valueOf(row, place, numeric), row]);
        rows.sort(([a], [b]) => sign * by(a, b, null, null, null, order === "ascending" ? "asc" : "desc"));
        body.append(...rows.map(([, row]) => row));
      });
    }
  }

  // What is cut off at the right is told in words too: many phones show no scroll bar.
  for (const frame of document.querySelectorAll(".scroll")) {
    const hint = element("p", { class: "scroll-hint", "aria-hidden": "true" }, "more columns: scroll sideways →");
    frame.before(hint);
    const watch = new ResizeObserver(() => { hint.hidden = frame.scrollWidth <= frame.clientWidth; });
    for (const node of [frame, ...frame.children]) watch.observe(node);
  }

  // Charts take their colours from the style sheet, so they are drawn anew when the theme changes.
  const onTheme = (draw) => {
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    window.addEventListener("beforeprint", () => { root.classList.add("printing"); draw(); });
    window.addEventListener("afterprint", () => { root.classList.remove("printing"); draw(); });
  };

  return {
    result, view, imageKind, color, isNumber, fixed, signed, whole, probability, difference, element,
    csv, offer, column, classColumns, classTable, onTheme,
  };
})();
