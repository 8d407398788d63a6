// The browser of questions and answers.
"use strict";
(() => {
  const ROW = 56; // px, as in the style sheet
  const EXTRA = 6; // rows drawn above and below what is visible
  const [RESPONSE, PREDICTED, FOUND_BY, RIGHT, FINISHED, TOKENS] = [0, 1, 2, 3, 4, 5];
  const ENDED = { eos: "by itself", stop: "at a stop string", length: "cut off" };

  const { sections, forms } = JSON.parse($("answers").textContent);
  const state = { section: 0, view: 0, sample: 0, filter: "all", sort: "number", text: "", question: 0, marks: true };
  let shown = []; // the questions that pass the filter, in their order
  let drawn = new Map(); // place in the list → its element
  let searchable = null; // lower-case texts of the current view

  // ---- what is looked at ----
  const section = () => sections[state.section];
  const view = () => section().views[state.view];
  const run = (side) => section().runs[view()[side]];
  const isPair = () => view().length === 2;
  const questions = () => section().sets[run(0).set];
  const answer = (one, question) => {
    const samples = one.answers[question];
    return samples[Math.min(state.sample, samples.length - 1)];
  };
  const sides = (question) => view().map((place) => answer(section().runs[place], question));
  const samples = () => Math.max(...view().map((place) => section().runs[place].answers[0].length));

  // Over all pairs: how many B won and A won.
  const record = (question) => {
    let [a, b] = [0, 0];
    for (const [left, right] of section().views) {
      const [x, y] = [left, right].map((place) => answer(section().runs[place], question)[RIGHT]);
      if (x && !y) a++;
      if (y && !x) b++;
    }
    return { a, b, net: b - a };
  };
  const severalPairs = () => section().paired && section().views.length > 1;

  const filters = () => {
    const any = (test) => (answers) => answers.some(test);
    const common = [
      ["fallback", "fall-back", any((x) => x[FOUND_BY] === "last_number")],
      ["cut", "cut off", any((x) => x[FINISHED] === "length")],
      ["none", "no answer", any((x) => x[FOUND_BY] === "none")],
    ];
    if (!isPair()) {
      return [["all", "all", () => true], ["right", "right", ([x]) => x[RIGHT]], ["wrong", "wrong", ([x]) => !x[RIGHT]], ...common];
    }
    return [
      ["all", "all", () => true],
      ["only_a", `only ${run(0).tag} right`, ([x, y]) => x[RIGHT] && !y[RIGHT]],
      ["only_b", `only ${run(1).tag} right`, ([x, y]) => y[RIGHT] && !x[RIGHT]],
      ["both_right", "both right", ([x, y]) => x[RIGHT] && y[RIGHT]],
      ["both_wrong", "both wrong", ([x, y]) => !x[RIGHT] && !y[RIGHT]],
      ...common,
    ];
  };
  const tokens = (question) => sides(question).map((x) => x[TOKENS]);
  const sorts = () => {
    const found = [["number", "number", (q) => q], ["longest", "longest answer first", (q) => -Math.max(...tokens(q))]];
    if (isPair()) found.push(["lengths", "largest difference in length first", (q) => -Math.abs(tokens(q)[0] - tokens(q)[1])]);
    if (severalPairs()) {
      found.push(["b_won", "B won most pairs first", (q) => -record(q).net], ["a_won", "A won most pairs first", (q) => record(q).net]);
    }
    return found;
  };

  // ---- the list ----
  const matching = () => {
    const text = state.text.trim().toLowerCase();
    if (!text) return () => true;
    const number = /^#(\d+)$/.exec(text);
    if (number) return (question) => question + 1 === Number(number[1]);
    searchable ??= questions().map(([asked, gold], question) =>
      [asked, gold, ...sides(question).flatMap((x) => [x[RESPONSE], x[PREDICTED] ?? ""])].join("\n").toLowerCase());
    return (question) => searchable[question].includes(text);
  };

  const refilter = () => {
    const all = filters();
    const chosen = all.find(([name]) => name === state.filter) ?? all[0];
    state.filter = chosen[0];
    const order = sorts().find(([name]) => name === state.sort) ?? sorts()[0];
    state.sort = order[0];
    const passes = matching();
    const found = questions().map((_, question) => question).filter(passes);
    shown = found.filter((question) => chosen[2](sides(question)));
    const keys = new Map(shown.map((question) => [question, order[2](question)]));
    shown.sort((p, q) => keys.get(p) - keys.get(q) || p - q);
    $("filters").replaceChildren(...all.map(([name, title, test]) => {
      const button = make("button", name === state.filter ? "chosen" : "", `${title} `);
      button.type = "button";
      button.dataset.filter = name;
      button.setAttribute("aria-pressed", String(name === state.filter));
      button.append(make("span", "count", found.filter((question) => test(sides(question))).length.toLocaleString("en")));
      button.addEventListener("click", () => change({ filter: name }));
      return button;
    }));
    $("spacer").style.height = `${shown.length * ROW}px`;
    $("empty").hidden = shown.length > 0;
    $("found").textContent = `${shown.length.toLocaleString("en")} of ${questions().length.toLocaleString("en")} questions`;
    drawn.forEach((element) => element.remove());
    drawn.clear();
  };

  const mark = (right) => make("span", right ? "right" : "wrong", right ? "✓" : "✗");
  const chip = (one, right) => {
    const found = make("span", `chip ${one.colour}`, `${one.tag} `);
    found.append(mark(right));
    found.title = `${one.tag} is ${right ? "right" : "wrong"}`;
    return found;
  };

  const row = (place) => {
    const question = shown[place];
    const element = make("div", "row");
    element.id = `row-${question}`;
    element.setAttribute("role", "option");
    element.setAttribute("aria-setsize", String(shown.length));
    element.setAttribute("aria-posinset", String(place + 1));
    element.setAttribute("aria-selected", String(question === state.question));
    element.style.top = `${place * ROW}px`;
    const head = make("div", "row-head");
    head.append(make("span", "number", String(question + 1)));
    const answers = sides(question);
    answers.forEach((x, side) => head.append(chip(run(side), x[RIGHT])));
    if (severalPairs()) {
      const { a, b, net } = record(question);
      if (a || b) head.append(make("span", `net ${net > 0 ? run(1).colour : net < 0 ? run(0).colour : ""}`, `${section().sides[1]} won ${b}, ${section().sides[0]} ${a}`));
    }
    if (answers.some((x) => x[FINISHED] === "length")) head.append(make("span", "flag", "cut off"));
    if (answers.some((x) => x[FOUND_BY] === "last_number")) head.append(make("span", "flag", "fall-back"));
    element.append(head, make("div", "row-text", questions()[question][0].slice(0, 200)));
    element.addEventListener("click", () => { change({ question }); reveal(); });
    return element;
  };

  const redraw = () => {
    const list = $("list");
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - EXTRA);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + EXTRA);
    drawn.forEach((element, place) => {
      if (place < first || place >= last) { element.remove(); drawn.delete(place); }
    });
    for (let place = first; place < last; place++) {
      if (!drawn.has(place)) {
        drawn.set(place, row(place));
        $("spacer").append(drawn.get(place));
      }
      drawn.get(place).setAttribute("aria-selected", String(shown[place] === state.question));
    }
    if (shown.includes(state.question)) list.setAttribute("aria-activedescendant", `row-${state.question}`);
    else list.removeAttribute("aria-activedescendant");
  };

  const scrollToSelected = () => {
    const place = shown.indexOf(state.question);
    if (place < 0) return;
    const list = $("list");
    if (place * ROW < list.scrollTop) list.scrollTop = place * ROW;
    else if ((place + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (place + 1) * ROW - list.clientHeight;
  };

  // ---- one question ----
  const fact = (list, name, value, className) => {
    const group = make("div");
    group.append(make("dt", "", name), make("dd", className, value));
    list.append(group);
  };

  const card = (side, x, fill) => {
    const one = run(side);
    const article = make("article", `answer ${one.colour}`);
    const title = make("h4");
    title.append(make("span", "tag", one.tag), make("span", "name", ` ${one.name} `), make("span", x[RIGHT] ? "right" : "wrong", x[RIGHT] ? "✓ right" : "✗ wrong"));
    const facts = make("dl", "facts");
    fact(facts, "answer", x[PREDICTED] ?? "none", "value");
    fact(facts, "found by", forms[x[FOUND_BY]] ?? x[FOUND_BY], x[FOUND_BY] === "last_number" || x[FOUND_BY] === "none" ? "warn" : "");
    fact(facts, "ended", ENDED[x[FINISHED]] ?? x[FINISHED], x[FINISHED] === "length" ? "warn" : "");
    fact(facts, "tokens", x[TOKENS].toLocaleString("en"));
    const text = make("div", "text");
    fill(text);
    if (!x[RESPONSE]) text.append(make("em", "", "(empty)"));
    article.append(title, facts, text);
    return article;
  };

  const seeds = (question) => {
    const { a, b } = record(question);
    const total = section().views.length;
    const table = make("table", "seeds");
    table.append(make("caption", "", `${section().sides[1]} won ${b}, ${section().sides[0]} won ${a}, even in ${total - a - b} of ${total} pairs`));
    const head = table.createTHead().insertRow();
    head.append(make("th", "", "pair"));
    section().views.forEach((_, place) => {
      const cell = make("th");
      cell.scope = "col";
      const button = make("button", place === state.view ? "chosen" : "", String(place + 1));
      button.type = "button";
      button.setAttribute("aria-pressed", String(place === state.view));
      button.addEventListener("click", () => change({ view: place }));
      cell.append(button);
      head.append(cell);
    });
    const body = table.createTBody();
    section().sides.forEach((arm, side) => {
      const line = body.insertRow();
      const name = make("th", run(side).colour, arm);
      name.scope = "row";
      line.append(name);
      section().views.forEach((pair) => {
        const x = answer(section().runs[pair[side]], question);
        const cell = line.insertCell();
        cell.append(mark(x[RIGHT]), ` ${x[PREDICTED] ?? "none"}`);
      });
    });
    return table;
  };

  const showQuestion = () => {
    const detail = $("detail");
    const question = state.question;
    const [asked, gold] = questions()[question];
    const place = shown.indexOf(question);
    $("position").textContent = place < 0 ? "not in this list" : `${(place + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`;
    const heading = make("h3", "", `Question ${question + 1}`);
    const textOf = (title, text) => {
      const block = make("section", "block");
      block.append(make("h4", "", title));
      const inside = make("div", "text");
      // The calculator's notes in GSM8K's solutions, <<2+3=5>>, stand back.
      text.split(/(<<[^<>]*>>)/).forEach((part, k) => inside.append(k % 2 ? make("span", "aside", part) : part));
      block.append(inside);
      return block;
    };
    const answers = sides(question);
    const cards = make("div", "answers");
    if (isPair()) {
      const parts = answers.map((x) => words(x[RESPONSE]));
      const same = answers[0][RESPONSE] === answers[1][RESPONSE];
      const marked = state.marks && !same ? differing(...parts) : parts.map((part) => part.map(() => false));
      answers.forEach((x, side) => cards.append(card(side, x, (text) => withMarks(text, parts[side], marked[side]))));
      if (same) cards.append(make("p", "same", "Both answers are the same, word for word."));
    } else {
      cards.append(card(0, answers[0], (text) => text.append(answers[0][RESPONSE])));
    }
    const texts = make("div", "texts");
    texts.append(textOf("Question", asked), textOf("Reference answer", gold));
    detail.replaceChildren(heading, texts);
    if (severalPairs()) {
      const box = make("div", "scroll");
      box.append(seeds(question));
      detail.append(box);
    }
    detail.append(cards);
  };

  // ---- changes ----
  const fillControls = () => {
    const choose = (id, options, chosen) => {
      $(id).replaceChildren(...options.map(([value, text]) => {
        const option = make("option", "", text);
        option.value = value;
        option.selected = String(value) === String(chosen);
        return option;
      }));
      $(id).closest("label").hidden = options.length < 2;
    };
    choose("task", sections.map((one, k) => [k, one.title]), state.section);
    const name = (place) => `${section().runs[place].tag} ${section().runs[place].name}`;
    choose("view", section().views.map((pair, k) => [k, pair.map(name).join("  |  ")]), state.view);
    choose("sample", Array.from({ length: samples() }, (_, k) => [k, String(k + 1)]), state.sample);
    choose("sort", sorts().map(([value, text]) => [value, text]), state.sort);
    $("marks").checked = state.marks;
    $("marks").closest("label").hidden = $("pair-keys").hidden = !isPair();
    if ($("search").value !== state.text) $("search").value = state.text;
  };

  const clamp = () => {
    const within = (number, length) => Math.min(Math.max(0, Number.isInteger(number) ? number : 0), length - 1);
    state.section = within(state.section, sections.length);
    state.view = within(state.view, section().views.length);
    state.sample = within(state.sample, samples());
    state.question = within(state.question, questions().length);
  };

  const render = () => {
    clamp();
    searchable = null;
    refilter();
    fillControls();
    if (!shown.includes(state.question) && shown.length) state.question = shown[0];
    scrollToSelected();
    redraw();
    showQuestion();
  };

  const writeHash = () => {
    const parts = new URLSearchParams({ q: state.question + 1 });
    if (state.section) parts.set("task", section().task);
    if (state.view) parts.set("pair", state.view + 1);
    if (state.sample) parts.set("sample", state.sample + 1);
    if (state.filter !== "all") parts.set("filter", state.filter);
    if (state.sort !== "number") parts.set("sort", state.sort);
    if (state.text) parts.set("search", state.text);
    history.replaceState(null, "", `#${parts}`);
  };

  const change = (changes) => {
    Object.assign(state, changes);
    if (Object.keys(changes).join() === "question") {
      scrollToSelected();
      redraw();
      showQuestion();
    } else render();
    writeHash();
  };

  const readHash = () => {
    const parts = new URLSearchParams(location.hash.slice(1));
    if (!parts.has("q")) return false;
    const number = (name) => Number(parts.get(name) ?? 1) - 1;
    Object.assign(state, {
      section: Math.max(0, sections.findIndex((one) => one.task === parts.get("task"))),
      view: number("pair"), sample: number("sample"), question: number("q"),
      filter: parts.get("filter") ?? "all", sort: parts.get("sort") ?? "number", text: parts.get("search") ?? "",
    });
    return true;
  };

  const step = (by) => {
    if (!shown.length) return;
    const place = shown.indexOf(state.question);
    change({ question: shown[Math.min(Math.max(0, place + by), shown.length - 1)] });
  };

  // On a narrow screen the answers are below the list, out of sight.
  const reveal = () => {
    if (matchMedia("(max-width: 800px)").matches) $("reading").scrollIntoView({ block: "start" });
  };

  // ---- the keyboard, the mouse, the address ----
  const typing = (target) => target.closest?.("input, select, textarea, [contenteditable]");
  const keys = {
    j: () => step(1),
    k: () => step(-1),
    p: () => change({ view: (state.view + 1) % section().views.length }),
    d: () => change({ marks: !state.marks }),
    "/": () => $("search").focus(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    const action = keys[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  $("list").addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor($("list").clientHeight / ROW) - 1);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -shown.length, End: shown.length }[event.key];
    if (event.key === "Enter") reveal();
    else if (by) step(by);
    else return;
    event.preventDefault();
  });
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.text) change({ text: "" });
    else if (["Escape", "Enter", "ArrowDown"].includes(event.key)) $("list").focus();
    else return;
    event.preventDefault();
  });
  let waiting = 0;
  $("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => change({ text: $("search").value }), 100);
  });
  let pending = false;
  const soon = () => {
    if (!pending) requestAnimationFrame(() => { pending = false; redraw(); });
    pending = true;
  };
  $("list").addEventListener("scroll", soon, { passive: true });
  addEventListener("resize", soon);
  $("task").addEventListener("change", (event) => change({ section: Number(event.target.value), view: 0, sample: 0, question: 0 }));
  $("view").addEventListener("change", (event) => change({ view: Number(event.target.value) }));
  $("sample").addEventListener("change", (event) => change({ sample: Number(event.target.value) }));
  $("sort").addEventListener("change", (event) => change({ sort: event.target.value }));
  $("marks").addEventListener("change", (event) => change({ marks: event.target.checked }));
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  addEventListener("hashchange", () => { if (readHash()) render(); });

  $("browser").hidden = false; // before anything is measured
  const asksForQuestion = readHash();
  render();
  if (asksForQuestion) $("questions").scrollIntoView();
  $("browser").dataset.ready = "true";
})();
