// The pages of a report. All data are in window.REPORT; names only ever become text, never HTML.
"use strict";

(() => {
  const report = window.REPORT;
  const find = (id) => document.getElementById(id);
  const CELL = 188, HIGH = 262, GAP = 14;

  // -- data ---------------------------------------------------------------------------------------

  const fold = (text) => text.toLocaleLowerCase();
  const rows = report.records.map((record, order) => {
    const input = report.inputs[record.input];
    const label = input.name;
    return {
      ...record,
      order,
      label,
      picture: input.picture,
      id: input.id,
      searched: fold([label, input.path || "", record.name || "", record.target].join("\n")),
    };
  });
  const ofInput = new Map();
  rows.forEach((row) => {
    if (!ofInput.has(row.id)) ofInput.set(row.id, []);
    ofInput.get(row.id).push(row);
  });
  const highest = rows.reduce((top, row) => Math.max(top, row.peak || 0), 0);
  const namesLayer = new Set(rows.map((row) => row.setup)).size > 1;

  const number = (value, digits = 3) =>
    value === null || value === undefined ? "–" : Number(value.toPrecision(digits)).toLocaleString("en");
  const whole = (value) => (value === null ? "–" : Math.round(value).toLocaleString("en"));
  const percent = (value, digits = 0) =>
    value === null
      ? "–"
      : `${(100 * value).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })} %`;

  function make(tag, options = {}, ...children) {
    const { data, ...rest } = options;
    const node = Object.assign(document.createElement(tag), rest);
    for (const [name, value] of Object.entries(data || {})) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  // -- how maps are drawn -------------------------------------------------------------------------

  const drawing = { strength: 50, grey: true, shared: false, peak: highest };

  const topOf = (row) => (drawing.shared && drawing.peak > 0 ? drawing.peak : row.peak);

  function colour(map, row) {
    const gain = row.peak && topOf(row) > 0 ? row.peak / topOf(row) : 0;
    map.style.filter = `brightness(${gain}) url(#heat)`;
    map.style.opacity = Math.min(1, drawing.strength / 50);
  }

  function stage(row, alt, fills) {
    const box = make("div", { className: `stage${fills ? " fills" : ""}` });
    if (row.picture) {
      box.append(make("img", { className: "photo", src: row.picture, alt, decoding: "async" }));
    }
    if (row.map) {
      const own = row.picture ? "" : alt;
      const map = make("img", { className: "map", src: row.map, alt: own, decoding: "async" });
      if (row.size && row.size[1] === 1) map.style.objectFit = "fill";
      colour(map, row);
      map.row = row;
      box.append(map);
    }
    if (row.error || (!row.picture && !row.map)) {
      box.append(make("div", { className: "message", textContent: row.error || "no picture" }));
    }
    return box;
  }

  function redraw() {
    const root = document.documentElement.style;
    root.setProperty("--photo", Math.min(1, 2 - drawing.strength / 50));
    root.setProperty("--grey", drawing.grey && drawing.strength > 0 ? "grayscale(1)" : "none");
    document.querySelectorAll(".map").forEach((map) => colour(map, map.row));
    document.querySelectorAll(".scale").forEach((scale) => {
      scale.lastChild.textContent = `${number(topOf(scale.row))} bits per pixel`;
    });
    const says = drawing.strength === 0 ? "picture alone" : drawing.strength === 100 ? "map alone" : "";
    find("strength-says").textContent = says || `${drawing.strength} %`;
    find("peak-label").hidden = !drawing.shared;
    find("legend-top").textContent = drawing.shared ? number(drawing.peak) : "each map's maximum";
  }

  // -- filters ------------------------------------------------------------------------------------

  const FILTERS = ["class", "target", "setup", "state"];
  const RANGES = ["bits-least", "bits-most", "survival-least", "survival-most"];
  let descending = false;
  let shown = rows;

  function options(id, values, all) {
    const select = find(id);
    select.append(make("option", { value: "", textContent: all }));
    values.forEach(([value, text]) => select.append(make("option", { value, textContent: text })));
    const parent = select.closest(".when-several");
    if (parent) parent.hidden = values.length < 2;
  }

  function counted(name) {
    const counts = new Map();
    rows.forEach((row) => {
      if (row[name] !== null) counts.set(row[name], (counts.get(row[name]) || 0) + 1);
    });
    return [...counts].sort((a, b) => a[0].localeCompare(b[0])).map(([value, n]) => [value, `${value} (${n})`]);
  }

  function limit(id, factor) {
    const text = find(id).value;
    return text === "" ? null : Number(text) * factor;
  }

  const within = (value, least, most) =>
    (least === null && most === null) ||
    (value !== null && (least === null || value >= least) && (most === null || value <= most));

  const STATES = {
    all: () => true,
    explained: (row) => row.error === null,
    failed: (row) => row.error !== null,
    warned: (row) => row.warnings.length > 0,
    lost: (row) => row.survival !== null && row.survival < 0.5,
  };

  function apply() {
    const words = fold(find("search").value).split(/\s+/).filter(Boolean);
    const [name, target, setup, state] = FILTERS.map((id) => find(id).value);
    const [bitsLeast, bitsMost] = [limit("bits-least", 1), limit("bits-most", 1)];
    const [least, most] = [limit("survival-least", 0.01), limit("survival-most", 0.01)];
    const key = find("sort").value;
    shown = rows.filter(
      (row) =>
        STATES[state](row) &&
        (!name || row.name === name) &&
        (!target || row.target === target) &&
        (!setup || row.setup === setup) &&
        within(row.bits, bitsLeast, bitsMost) &&
        within(row.survival, least, most) &&
        words.every((word) => row.searched.includes(word)),
    );
    const sign = descending ? -1 : 1;
    const collator = new Intl.Collator("en", { numeric: true });
    shown.sort((a, b) => {
      const [x, y] = [a[key], b[key]];
      // What is not known comes last in either direction.
      if (x === null || y === null || x === undefined) return (x === null) - (y === null) || a.order - b.order;
      const found = typeof x === "string" ? collator.compare(x, y) : x - y;
      return sign * found || sign * (a.order - b.order);
    });
    focused = 0;
    report_status();
    fill(true);
  }

  function median(values) {
    const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
    if (!sorted.length) return null;
    const middle = sorted.length >> 1;
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

  function report_status() {
    const parts = [
      shown.length === rows.length ? `${whole(rows.length)} results` : `${whole(shown.length)} of ${whole(rows.length)} results`,
    ];
    const bits = median(shown.map((row) => row.bits));
    const survival = median(shown.map((row) => row.survival));
    if (bits !== null) parts.push(`median ${whole(bits)} bits`);
    if (survival !== null) parts.push(`median survival ${percent(survival)}`);
    find("status").textContent = parts.join(" · ");
  }

  // -- the grid: only rows near the window exist ---------------------------------------------------

  const grid = find("results");
  const there = new Map();
  let columns = 1;
  let focused = 0;

  const altOf = (row) => {
    const what = row.name === null ? row.target : row.name;
    return row.error ? `${row.label}: failed` : `${row.label}: where the network sees ${what}, ${whole(row.bits)} bits`;
  };

  function cell(place) {
    const row = shown[place];
    const says = make("span", { className: "says" });
    says.append(make("strong", { textContent: row.name === null ? (row.error ? "failed" : row.target) : row.name }));
    if (row.error) says.append(make("span", { className: "numbers fails", textContent: `target: ${row.target}` }));
    else {
      const low = row.survival !== null && row.survival < 0.5;
      says.append(
        make("span", { className: "numbers" }, make("span", { textContent: `${whole(row.bits)} bits` }),
          namesLayer ? make("span", { className: "layer", textContent: report.setups[row.setup] || row.layer }) : null),
        make("span", { className: "numbers" }, make("span", { className: low ? "low" : "", textContent: `${percent(row.survival)} survives` }),
          row.warnings.length ? make("span", { className: "warns", textContent: "⚠", title: row.warnings.join("\n") }) : null),
      );
    }
    says.append(make("span", { className: "file", textContent: row.label }));
    const card = make("a", { className: "card", href: `#/${row.id}`, title: row.label }, stage(row, "", true), says);
    card.setAttribute("aria-label", `${altOf(row)}${row.survival === null ? "" : `, ${percent(row.survival)} survives`}${row.warnings.length ? ", with a warning" : ""}`);
    card.tabIndex = place === focused ? 0 : -1;
    card.addEventListener("focus", () => roam(place, false));
    const item = make("li", { className: "cell" }, card);
    item.setAttribute("aria-posinset", place + 1);
    item.setAttribute("aria-setsize", shown.length);
    return item;
  }

  function fill(anew) {
    if (find("overview").hidden) return;
    const width = grid.clientWidth;
    columns = Math.max(width < 380 ? 2 : 1, Math.floor((width + GAP) / (CELL + GAP)));
    const wide = (width - GAP * (columns - 1)) / columns;
    if (anew) {
      grid.replaceChildren();
      there.clear();
    }
    const lines = Math.ceil(shown.length / columns);
    grid.style.height = `${Math.max(0, lines * (HIGH + GAP) - GAP)}px`;
    const above = window.scrollY - (grid.getBoundingClientRect().top + window.scrollY);
    const first = Math.max(0, Math.floor((above - window.innerHeight) / (HIGH + GAP))) * columns;
    const last = Math.min(shown.length, Math.ceil((above + 2 * window.innerHeight) / (HIGH + GAP)) * columns);
    for (const [place, item] of there) {
      // What has the focus stays, or the keyboard would lose its place.
      if ((place < first || place >= last) && !item.contains(document.activeElement)) {
        item.remove();
        there.delete(place);
      }
    }
    for (let place = first; place < last; place += 1) {
      if (there.has(place)) continue;
      const item = cell(place);
      Object.assign(item.style, {
        left: `${(place % columns) * (wide + GAP)}px`,
        top: `${Math.floor(place / columns) * (HIGH + GAP)}px`,
        width: `${wide}px`,
        height: `${HIGH}px`,
      });
      there.set(place, item);
      // In order, so that the order of reading is that of the eye.
      let after = place + 1;
      while (after < last && !there.has(after)) after += 1;
      grid.insertBefore(item, there.get(after) || null);
    }
    if (!shown.length) grid.replaceChildren(make("li", { className: "nothing", textContent: "No result fits these filters." }));
  }

  function roam(place, move) {
    const old = there.get(focused);
    if (old) old.firstChild.tabIndex = -1;
    focused = Math.max(0, Math.min(shown.length - 1, place));
    if (move) {
      const top = grid.getBoundingClientRect().top + window.scrollY + Math.floor(focused / columns) * (HIGH + GAP);
      const bottom = top + HIGH + find("tools").offsetHeight + 8;
      if (top < window.scrollY) window.scrollTo(0, top - 8);
      else if (bottom > window.scrollY + window.innerHeight) window.scrollTo(0, bottom - window.innerHeight);
      fill(false);
    }
    const item = there.get(focused);
    if (!item) return;
    item.firstChild.tabIndex = 0;
    if (move) item.firstChild.focus({ preventScroll: true });
  }

  // -- an input -----------------------------------------------------------------------------------

  let current = null;
  let scrolled = 0;

  const inputs = () => [...new Set(shown.map((row) => row.id))];

  function facts(pairs) {
    const list = make("dl", { className: "facts" });
    pairs.forEach(([name, value]) => list.append(make("dt", { textContent: name }), make("dd", { textContent: value })));
    return list;
  }

  function remark(text, of_error) {
    return make("p", { className: `remark${of_error ? " of-error" : ""}`, textContent: text });
  }

  function panel(row) {
    const title = row.name === null ? row.target : row.name;
    const caption = make("figcaption", {}, make("h3", { textContent: row.error ? `${title}: failed` : title }));
    const asked = row.target === "predicted" ? "the predicted class" : `asked for: ${row.target}`;
    caption.append(make("p", { className: "kind", textContent: `${asked} · layer ${report.setups[row.setup] || row.layer}` }));
    const figure = make("figure", { className: "panel" }, stage(row, altOf(row), false));
    if (row.size && row.size[1] > 1) figure.style.setProperty("--ratio", row.size[0] / row.size[1]);
    if (row.error) return make("figure", { className: "panel" }, figure.firstChild, caption, make("div", { className: "body" }, remark(row.error, true)));
    const scale = make("div", { className: "scale" }, make("span", { textContent: "0" }), make("span", { className: "bar" }), make("span"));
    scale.row = row;
    const low = row.survival !== null && row.survival < 0.5 ? " (below 50 %: the map does not explain its target)" : "";
    const body = make("div", { className: "body" }, facts([
      ["Bits", whole(row.bits)],
      ["Bits per pixel", `${number(row.bits_per_pixel)} on average`],
      ["Survives", `${percent(row.survival)}${low}`],
      ["Probability", percent(row.probability, 1)],
      ["Seconds", number(row.seconds)],
    ]));
    if (row.top.length) {
      const list = make("ol", { className: "classes", data: { "aria-label": "Most probable classes" } });
      row.top.forEach(([index, name, share]) => {
        const bar = make("span");
        bar.style.width = `${100 * Math.min(1, share)}%`;
        list.append(make("li", { className: index === row.index ? "chosen" : "" },
          make("span", { textContent: name }), make("span", { className: "figure", textContent: percent(share, 1) }),
          make("span", { className: "share", data: { "aria-hidden": "true" } }, bar)));
      });
      body.append(list);
    }
    row.warnings.forEach((text) => body.append(remark(text, false)));
    figure.append(scale, caption, body);
    return figure;
  }

  function open(id) {
    const found = ofInput.get(id);
    if (!found) return show_all();
    if (current === null) scrolled = window.scrollY;
    current = id;
    const input = report.inputs[found[0].input];
    find("overview").hidden = true;
    find("input").hidden = false;
    find("input-name").textContent = input.name;
    find("input-path").textContent = input.path || "";
    const panels = find("panels");
    panels.replaceChildren();
    if (input.picture) {
      const plain = { picture: input.picture, error: null };
      const figure = make("figure", { className: "panel plain" }, stage(plain, `${input.name}: the part that the network sees`, false),
        make("figcaption", {}, make("h3", { textContent: "Picture" }), make("p", { className: "kind", textContent: "the part that the network sees" })));
      const sized = found.find((row) => row.size && row.size[1] > 1);
      if (sized) figure.style.setProperty("--ratio", sized.size[0] / sized.size[1]);
      panels.append(figure);
    }
    found.forEach((row) => panels.append(panel(row)));
    const order = inputs();
    const place = order.indexOf(id);
    find("place").textContent = place < 0 ? "" : `${whole(place + 1)} of ${whole(order.length)}`;
    find("previous").disabled = place <= 0;
    find("next").disabled = place < 0 || place === order.length - 1;
    document.title = `${input.name} – ${report.title}`;
    window.scrollTo(0, 0);
    redraw();
    find("input-name").focus({ preventScroll: true });
  }

  function step(by) {
    const order = inputs();
    const place = order.indexOf(current) + by;
    if (current !== null && order.includes(current) && place >= 0 && place < order.length) window.location.replace(`#/${order[place]}`);
  }

  function show_all() {
    const last = current;
    current = null;
    find("input").hidden = true;
    find("overview").hidden = false;
    document.title = report.title;
    fill(false);
    window.scrollTo(0, scrolled);
    const place = shown.findIndex((row) => row.id === last);
    if (last !== null && place >= 0) roam(place, true);
  }

  function route() {
    const id = window.location.hash.replace(/^#\/?/, "");
    if (id && id !== "results") open(id);
    else if (current !== null || find("overview").hidden) show_all();
  }

  // -- what the user does --------------------------------------------------------------------------

  function soon(action) {
    let waiting = 0;
    return () => {
      window.cancelAnimationFrame(waiting);
      waiting = window.requestAnimationFrame(action);
    };
  }

  function set_drawing(values) {
    Object.assign(drawing, values);
    find("strength").value = drawing.strength;
    find("grey").checked = drawing.grey;
    find("scale").value = drawing.shared ? "shared" : "own";
    redraw();
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const typing = event.target.closest("input:not([type=checkbox]), select, textarea");
    if (event.key === "Escape") {
      if (current !== null) window.location.hash = "";
      else if (typing) event.target.blur();
      return;
    }
    if (typing) return;
    const among = event.target.closest(".card") !== null || event.target === document.body || event.target === grid;
    const grids = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const deeds = {
      "/": () => current === null && find("search").focus(),
      "?": () => find("keys").showModal(),
      g: () => set_drawing({ grey: !drawing.grey }),
      s: () => set_drawing({ shared: !drawing.shared }),
      "[": () => set_drawing({ strength: Math.max(0, drawing.strength - 10) }),
      "]": () => set_drawing({ strength: Math.min(100, drawing.strength + 10) }),
    };
    if (current !== null) {
      deeds.ArrowLeft = () => step(-1);
      deeds.ArrowRight = () => step(1);
    } else if (among && shown.length) {
      const starts = event.target.closest(".card") === null;
      for (const [key, by] of Object.entries(grids)) {
        deeds[key] = () => {
          const place = starts ? focused : focused + by;
          if (place >= 0 && place < shown.length) roam(place, true);
        };
      }
      deeds.Home = () => roam(0, true);
      deeds.End = () => roam(shown.length - 1, true);
    }
    if (!deeds[event.key]) return;
    event.preventDefault();
    deeds[event.key]();
  }

  options("class", counted("name"), "all");
  options("target", counted("target"), "all");
  options("setup", Object.entries(report.setups).filter(([id]) => rows.some((row) => row.setup === id)), "all");
  find("peak").value = Number(highest.toPrecision(3));

  find("filters").addEventListener("input", soon(apply));
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  find("filters").addEventListener("reset", () => window.setTimeout(apply));
  find("more").addEventListener("click", () => {
    const opened = find("filters").classList.toggle("open");
    find("more").setAttribute("aria-expanded", opened);
    fill(true);
  });
  find("direction").addEventListener("click", () => {
    descending = !descending;
    find("direction").setAttribute("aria-pressed", descending);
    apply();
  });
  find("strength").addEventListener("input", (event) => set_drawing({ strength: Number(event.target.value) }));
  find("grey").addEventListener("change", (event) => set_drawing({ grey: event.target.checked }));
  find("scale").addEventListener("change", (event) => set_drawing({ shared: event.target.value === "shared" }));
  find("peak").addEventListener("input", (event) => {
    if (Number(event.target.value) > 0) set_drawing({ peak: Number(event.target.value) });
  });
  find("back").addEventListener("click", () => { window.location.hash = ""; });
  find("previous").addEventListener("click", () => step(-1));
  find("next").addEventListener("click", () => step(1));
  find("show-settings").addEventListener("click", () => find("settings").showModal());
  find("show-keys").addEventListener("click", () => find("keys").showModal());
  window.addEventListener("scroll", soon(() => fill(false)), { passive: true });
  window.addEventListener("resize", soon(() => fill(true)));
  window.addEventListener("hashchange", route);
  document.addEventListener("keydown", keys);

  redraw();
  apply();
  route();
})();
