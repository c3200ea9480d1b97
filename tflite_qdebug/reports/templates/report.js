(() => {
  const config = JSON.parse(document.getElementById("config").textContent);
  const said = document.getElementById("said");
  const say = (text) => { said.textContent = ""; setTimeout(() => { said.textContent = text; }, 50); };

  // Charts are drawn when they come near the window, so that a report of a thousand layers opens at once.
  const wrapped = (text, length) => {
    const lines = [""];
    for (const word of text.split(" ")) {
      const last = lines[lines.length - 1];
      if (last && last.length + word.length + 1 > length) lines.push(word); else lines[lines.length - 1] = last ? last + " " + word : word;
    }
    return lines;
  };
  const fitted = (text, width) => {
    const specification = JSON.parse(text, (key, value) => key === "labelLimit" ? Math.min(value, Math.round(0.42 * width)) : value);
    const title = specification.title;
    title.text = wrapped(title.text, width / 7.6);
    if (title.subtitle) title.subtitle = [].concat(title.subtitle).flatMap((line) => wrapped(line, width / 6));
    // A number and not "container": on paper the drawing is scaled, and not made again for another width.
    return { ...specification, width };
  };
  const draw = (figure) => {
    if (figure.dataset.drawn) return;
    const plot = figure.querySelector(".plot");
    if (!plot.clientWidth) return;
    figure.dataset.drawn = "yes";
    const width = Math.max(plot.clientWidth, 440);
    figure.dataset.width = plot.clientWidth;
    const specification = fitted(figure.querySelector("script").textContent, width);
    window.vegaEmbed(plot, specification, { config, renderer: "svg", actions: false, tooltip: { theme: "light" } })
      .then(() => { plot.style.minHeight = "0"; figure.dataset.done = "yes"; })
      .catch((problem) => { plot.textContent = "This chart cannot be drawn: " + problem; console.error(problem); });
  };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "400px" });
  const watch = (root) => root.querySelectorAll(".chart").forEach((figure) => near.observe(figure));
  let waiting = 0;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (matchMedia("print").matches) return;
      for (const figure of document.querySelectorAll(".chart[data-drawn]")) {
        const width = figure.querySelector(".plot").clientWidth;
        if (width && Math.abs(width - figure.dataset.width) > 8) { delete figure.dataset.drawn; near.observe(figure); }
      }
    }, 250);
  });
  // Those of the report itself are drawn in idle moments too: paper has no window to come near to.
  const idle = window.requestIdleCallback || ((work) => setTimeout(work, 200));
  const drawSoon = (figures) => {
    const figure = figures.shift();
    if (figure) idle(() => { if (!main.hidden) draw(figure); drawSoon(figures); });
  };

  // The table of layers.
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({
    row,
    text: row.textContent.toLowerCase() + " " + row.querySelector(".node").title.toLowerCase(),
    name: row.querySelector(".node").title,
    hash: (row.querySelector("a") || { hash: "" }).hash,
    op: row.dataset.op,
  }));
  sortable(table, rows, (entry, column) => column === 2 ? entry.name : entry.row.cells[column].textContent, say);
  const filter = document.getElementById("filter");
  const operator = document.getElementById("operator");
  const suspects = document.getElementById("suspects");
  const count = document.getElementById("count");
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of rows) {
      const fits = words.every((word) => entry.text.includes(word)) && (!operator.value || entry.op === operator.value)
        && (!suspects.checked || entry.row.classList.contains("suspect"));
      entry.row.hidden = !fits;
      shown += fits;
    }
    count.textContent = shown + " of " + rows.length + " layers";
    document.getElementById("nothing").hidden = shown > 0;
    say(count.textContent);
  };
  // Some browsers tell of a choice in a list by one of the two events only.
  for (const control of [filter, operator, suspects]) for (const event of ["input", "change"]) control.addEventListener(event, apply);
  body.addEventListener("click", (event) => {
    const link = event.target.closest("tr").querySelector("a");
    if (link && !event.target.closest("a") && !String(getSelection())) location.hash = link.hash;
  });

  // Other tables that are sorted.
  for (const other of document.querySelectorAll("table.more")) {
    const entries = [...other.tBodies[0].rows].map((row) => ({ row }));
    sortable(other, entries, (entry, column) => entry.row.cells[column].textContent.trim(), say);
  }

  // Pages of layers.
  const main = document.getElementById("report");
  const pages = document.getElementById("pages");
  const contents = document.querySelector(".contents");
  const title = document.title;
  let current = null;
  let scrolled = 0;
  const pageOf = (hash) => {
    const found = /^#layer-(\d+)$/.exec(hash);
    if (!found) return null;
    const there = document.getElementById(hash.slice(1));
    if (there) return there;
    const template = document.querySelector('template[data-layer="' + found[1] + '"]');
    if (!template) return null;
    pages.append(template.content.cloneNode(true));
    const page = document.getElementById(hash.slice(1));
    for (const number of page.querySelectorAll("[data-term]")) {
      const [name, what] = document.getElementById("term-" + number.dataset.term).children;
      number.title = name.firstChild.textContent.trim() + ": " + number.textContent + " (" + name.querySelector("small").textContent + "). " + what.textContent;
    }
    return page;
  };
  const turn = (link, entry) => {
    if (!entry) { link.setAttribute("aria-disabled", "true"); link.removeAttribute("href"); return; }
    link.removeAttribute("aria-disabled");
    link.href = entry.hash;
    link.title = entry.name;
  };
  const open = (page) => {
    if (!current) scrolled = window.scrollY;
    else current.hidden = true;
    main.hidden = true;
    page.hidden = false;
    current = page;
    // In the order of the table as it stands, without what the filter hides.
    const visible = rows.filter((entry) => !entry.row.hidden);
    const place = visible.findIndex((entry) => entry.hash === "#" + page.id);
    turn(page.querySelector(".previous"), place > 0 ? visible[place - 1] : null);
    turn(page.querySelector(".next"), place >= 0 ? visible[place + 1] : null);
    const heading = page.querySelector("h2");
    document.title = heading.textContent.trim() + " – " + title;
    window.scrollTo(0, 0);
    heading.focus({ preventScroll: true });
    watch(page);
  };
  const close = (target) => {
    if (!current) return;
    const left = current.id;
    current.hidden = true;
    current = null;
    main.hidden = false;
    document.title = title;
    if (target === "layers") {
      window.scrollTo(0, scrolled);
      const entry = rows.find((row) => row.hash === "#" + left);
      if (entry) { entry.row.scrollIntoView({ block: "nearest" }); entry.row.querySelector("a").focus({ preventScroll: true }); }
    } else {
      const section = document.getElementById(target);
      if (section) section.scrollIntoView();
    }
  };
  const route = () => {
    const page = pageOf(location.hash);
    if (page) open(page); else close(location.hash.slice(1) || "overview");
    for (const link of contents.querySelectorAll("a")) {
      if (link.hash === (location.hash || "#overview")) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
  };
  window.addEventListener("hashchange", route);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && current) location.hash = "#layers"; });

  document.querySelector(".skip").addEventListener("click", (event) => {
    if (current) { event.preventDefault(); current.querySelector("h2").focus(); }
  });

  // Lines to copy. A file opened from disk may not have the clipboard's newer interface.
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".copy");
    if (!button) return;
    const code = button.previousElementSibling;
    const done = () => {
      say("Copied");
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    };
    const byHand = () => {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      if (document.execCommand("copy")) done(); else say("Selected; press Ctrl+C to copy");
    };
    if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, byHand); else byHand();
  });

  watch(main);
  route();
  drawSoon([...main.querySelectorAll(".chart")]);
})();
