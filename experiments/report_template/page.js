"use strict";
(() => {
  const root = document.documentElement;
  const tip = document.getElementById("tip");

  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Tables: a click on a heading sorts, another one turns the order round. What has no value stays last.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const text = head.classList.contains("t");
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (text) return sign * x.localeCompare(y);
        if (x === "" || y === "") return (x === "") - (y === "");
        const [p, q] = [Number(x), Number(y)];
        return p === q ? 0 : sign * (p < q ? -1 : 1);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    }));
  }

  const show = (content, x, y) => {
    tip.replaceChildren(...content);
    tip.hidden = false;
    const left = Math.min(Math.max(8, x + 14), root.clientWidth - tip.offsetWidth - 8);
    const above = y - tip.offsetHeight - 12;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above < 4 ? y + 18 : above) + scrollY}px`;
  };
  const hide = () => { tip.hidden = true; };

  for (const span of document.querySelectorAll(".span")) {
    const open = (x, y) => show([document.createTextNode(span.dataset.tip)], x, y);
    span.addEventListener("pointermove", (event) => open(event.clientX, event.clientY));
    span.addEventListener("pointerleave", hide);
    span.addEventListener("focus", () => {
      const box = span.querySelector("circle").getBoundingClientRect();
      open(box.left, box.top);
    });
    span.addEventListener("blur", hide);
  }

  // Lines: a cross-hair with the values of all lines there; arrow keys move it.
  const short = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size < 1e-3 || size >= 1e5 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };
  const share = ([low, high, log], value) => log
    ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  const make = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };

  for (const figure of document.querySelectorAll("figure")) {
    const source = figure.querySelector("script");
    if (!source) continue;
    const svg = figure.querySelector("svg");
    const data = JSON.parse(source.textContent);
    const [left, top, width, height] = data.f;
    const layer = make("g", {});
    svg.append(layer);
    svg.tabIndex = 0;
    const stops = [...new Set(data.s.flatMap((line) => line.x))].sort((a, b) => a - b);
    let current = Math.floor(stops.length / 2);

    const draw = (at, clientX, clientY) => {
      const x = left + width * share(data.x, at);
      const parts = [make("path", { class: "cross", d: `M${x} ${top}v${height}` })];
      const head = document.createElement("div");
      head.textContent = `${data.l.replace(/ \(.*/, "")}: ${short(at)}`;
      const rows = [head];
      for (const line of data.s) {
        let best = 0;
        line.x.forEach((value, i) => { if (Math.abs(value - at) < Math.abs(line.x[best] - at)) best = i; });
        const value = line.y[best];
        const row = document.createElement("div");
        const name = document.createElement("span");
        const mark = document.createElement("i");
        mark.className = `r-${line.r}`;
        name.append(mark, line.n);
        const number = document.createElement("span");
        number.textContent = value === null ? "diverged" : short(value);
        row.append(name, number);
        rows.push(row);
        const y = value === null ? NaN : share(data.y, value);
        if (y >= 0 && y <= 1) {
          const cx = left + width * share(data.x, line.x[best]);
          parts.push(make("circle", { class: `dot r-${line.r}`, cx, cy: top + height * (1 - y), r: 4 }));
        }
      }
      layer.replaceChildren(...parts);
      show(rows, clientX, clientY);
    };
    const leave = () => { layer.replaceChildren(); hide(); };
    const nearest = (clientX) => {
      const box = svg.getBoundingClientRect();
      const x = (clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      const off = (stop) => Math.abs(left + width * share(data.x, stop) - x);
      return stops.reduce((best, stop, i) => (off(stop) < off(stops[best]) ? i : best), 0);
    };
    svg.addEventListener("pointermove", (event) => {
      current = nearest(event.clientX);
      draw(stops[current], event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      current = Math.min(Math.max(current + move, 0), stops.length - 1);
      const box = svg.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width;
      draw(stops[current], box.left + scale * (left + width * share(data.x, stops[current])), box.top + scale * top);
    });
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
})();
