// The script of the page. It reads the same routes as any client of the control interface, follows the stream of
// events, and writes every text from outside as text. Nothing here waits for a frame longer than it takes to draw the
// rows in sight: lists are shown in pages, and all changes since the last frame are drawn at once.

const GLYPHS = {
  pending: "·", running: "⠹", waiting: "⏸", succeeded: "✓", failed: "✗", canceled: "⊘", skipped: "↷",
  not_found: "?", unreachable: "?", timed_out: "⧖",
};
const COLORS = {
  pending: "dim", running: "run", waiting: "warn", succeeded: "good", failed: "bad", canceled: "warn", skipped: "dim",
  not_found: "bad", unreachable: "bad", timed_out: "bad", sending: "run", delivered: "good", dead: "bad",
};
const VERDICTS = {
  "run.succeeded": "succeeded", "run.failed": "failed", "run.canceled": "canceled", "run.skipped": "skipped",
  "watch.not_found": "not_found", "watch.unreachable": "unreachable", "watch.timed_out": "timed_out",
};
// Rows of a list in sight, watches that are read at the most, and ends and deliveries that are read.
const PAGE = 100, MOST = 5000, RECENT = 200;
// Milliseconds: between two looks at what is short; at the most between two looks at everything; after which a silent
// stream counts as lost (the server sends a sign of life every 15 s); and until the stream of a tab that is not in
// sight is closed, as a browser has few connections for one host.
const QUICK = 3000, SLOW = 30000, SILENCE = 45000, UNSEEN = 60000;
// Characters of one text, and of an output.
const CHARS = 2000, OUTPUT = 20000;

const root = new URL(".", import.meta.url);
const view = document.body.dataset.view;
const find = (selector, within = document) => within.querySelector(selector);

// Texts.

// As the daemon has it: control characters, and characters that change how their neighbors are shown.
const HIDDEN = /[\p{Cc}\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;
const clean = (text, most = CHARS) => {
  const shown = String(text ?? "").slice(0, most * 2).replace(/[\n\t]+/g, " ").replace(HIDDEN, "");
  return shown.length > most ? shown.slice(0, most).toWellFormed() + "…" : shown.toWellFormed();
};

const element = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const bdi = (text = "") => element("bdi", {}, clean(text));
const say = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};
const style = (node, name) => {
  if (node.className !== name) node.className = name;
};

const plural = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const two = (big, bigUnit, small, smallUnit) => `${big}${bigUnit}` + (small ? ` ${small}${smallUnit}` : "");
const humanize = (ms) => {
  const s = Math.floor(ms / 1000);
  if (s < 60) return s || ms < 1 ? `${s}s` : `${Math.floor(ms)}ms`;
  if (s < 3600) return two(Math.floor(s / 60), "m", s % 60, "s");
  if (s < 86400) return two(Math.floor(s / 3600), "h", Math.floor((s % 3600) / 60), "m");
  return two(Math.floor(s / 86400), "d", Math.floor((s % 86400) / 3600), "h");
};
const elapsed = (ms) => {
  const s = Math.max(0, Math.floor(ms / 1000));
  return s < 3600 ? `${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")}` : humanize(s * 1000);
};
const rough = (ms) => {
  const s = Math.floor(ms / 1000);
  return s >= 60 && s < 3600 ? `${Math.floor(s / 60)} min` : humanize(s * 1000);
};
const ago = (at) => (now() - Date.parse(at) < 2000 ? "just now" : `${rough(now() - Date.parse(at))} ago`);
const ahead = (at) => {
  const wait = Date.parse(at) - now();
  return wait > 0 ? `in ${rough(Math.ceil(wait / 1000) * 1000)}` : "now";
};
// What is usual, and how much longer a run takes, as the command line has it.
const usually = ({ usual_ms: median, usual_p10_ms: least, usual_p90_ms: most }) =>
  most > 3 * Math.max(least, 1000) ? `${elapsed(least)} to ${elapsed(most)}` : elapsed(median);
const left = ({ started_at: started, run_state: state, usual_ms: median, usual_p90_ms: most }) => {
  if (most == null || !started || state !== "running") return "";
  const rest = most - Math.max(0, now() - Date.parse(started));
  if (rest <= 0) return "longer than usual";
  return `${2 * most > 3 * median ? "up to " : ""}${elapsed(Math.ceil(rest / 1000) * 1000)} left`;
};
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "medium" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const time = (at) => element("time", { dateTime: at }, moment.format(Date.parse(at)));

// How far the clock of the daemon is ahead of this one, if that is more than its answers can show by chance.
let skew = 0;
const now = () => Date.now() + skew;

// Requests.

class Refusal extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}
// A session has ended: the server answers with the form in place of this view.
const logIn = () => location.replace(location.pathname);
const ask = async (method, path, body) => {
  const headers = { Accept: "application/json" };
  if (method === "POST") headers["Content-Type"] = "application/json";
  const answer = await fetch(new URL(path, root), { method, headers, body, cache: "no-store", redirect: "error" });
  if (answer.status === 401) logIn();
  const date = Date.parse(answer.headers.get("date"));
  if (date) skew = Math.abs(date - Date.now()) > 2000 ? date - Date.now() : 0;
  connection.seen = Date.now();
  const text = await answer.text();
  const json = text ? JSON.parse(text) : null;
  if (!answer.ok) throw new Refusal(answer.status, json?.detail ?? `status ${answer.status}`);
  return json;
};
const reference = (of) => encodeURIComponent(`${of.provider}:${of.run_id}`).replaceAll("%3A", ":");
const address = (of) => new URL(`runs/${reference(of)}`, root).href;
const named = (of) => clean(of.name) || shown(of);
const shown = (of) => clean(of.provider === "crewship" ? of.run_id : `${of.provider}:${of.run_id}`);

// Drawing: once per frame, whatever changed.

let draws = () => {};
let drawn = true;
const changed = () => {
  if (drawn) {
    drawn = false;
    requestAnimationFrame(() => {
      drawn = true;
      draws();
    });
  }
};

const SVG = "http://www.w3.org/2000/svg";
const svg = (tag, attributes, ...children) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
// A plot that is as wide as its place, in thousandths.
const plot = (label, ...children) =>
  svg("svg", { viewBox: "0 0 1000 16", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...children);
const line = (x, name, from = 2, to = 14) => svg("line", { x1: x, x2: x, y1: from, y2: to, class: name });

// Deliveries by state, as one bar with its legend.
const share = (place, counts) => {
  const all = counts.reduce((sum, [, count]) => sum + count, 0);
  const label = counts.map(([word, count]) => `${count} ${word}`).join(", ");
  if (place.dataset.label === label) return;
  place.dataset.label = label;
  place.replaceChildren();
  if (!all) return;
  let x = 0;
  const bars = counts.map(([, count, name]) => {
    const bar = svg("rect", { x, y: 3, width: (1000 * count) / all, height: 10, class: name });
    x += (1000 * count) / all;
    return bar;
  });
  const words = counts.filter(([, count]) => count).map(([word, count, name]) =>
    element("span", {}, element("span", { className: name, ariaHidden: "true" }, "■ "), `${count.toLocaleString("en")} ${word}`));
  place.append(plot(`Deliveries: ${label}`, ...bars), element("p", { className: "legend" }, ...words));
};

// Tables.

const mark = (td) => td.append(element("span", { className: "glyph", ariaHidden: "true" }), " ", bdi(), element("small"));
const setMark = (td, state, word, note = "") => {
  const [glyph, , text, small] = td.childNodes;
  say(glyph, GLYPHS[state] ?? "·");
  style(glyph, `glyph ${COLORS[state] ?? "odd"}`);
  say(text, clean(word));
  say(small, clean(note, 200));
  small.hidden = !note;
};
const runCell = {
  make: (td) => td.append(element("a", {}, bdi()), element("small", {}, bdi())),
  set: (td, of, note) => {
    const [a, small] = td.childNodes;
    const href = address(of);
    if (a.href !== href) a.href = href;
    say(a.firstChild, named(of));
    const below = note ?? (of.name ? shown(of) : "");
    say(small.firstChild, below);
    small.hidden = !below;
    td.title = shown(of);
  },
};
const text = (label, read, className = "") => ({
  label, className,
  make: (td) => td.append(bdi()),
  set: (td, item) => say(td.firstChild, clean(read(item))),
});
const button = (label, name, act, shows = () => true) => ({
  label: "Actions", className: "act", quiet: true,
  make: (td, row) => td.append(element("button", { type: "button", onclick: () => act(row.item) }, label)),
  set: (td, item) => {
    td.firstChild.ariaLabel = `${label}: ${name(item)}`;
    td.firstChild.hidden = !shows(item);
  },
});

// A list in pages. Rows are kept by key, so that what has the focus keeps it.
class List {
  constructor(id, none, key, columns) {
    Object.assign(this, { id, none, key, columns, page: 0, rows: new Map() });
    this.body = find(`#${id} tbody`);
    this.title = find(`#${id}-title`);
    this.pager = find(`[data-of=${id}]`);
  }

  // Takes the place of the rows that the server wrote.
  begin() {
    const { id, columns, none } = this;
    const head = columns.map((column) => {
      const label = column.quiet ? element("span", { className: "hidden" }, column.label) : column.label;
      return element("th", { scope: "col", className: column.className ?? "" }, label);
    });
    find(`#${id} thead tr`).replaceChildren(...head);
    this.body.replaceChildren();
    this.empty = element("tr", { className: "none" }, element("td", { colSpan: columns.length }, none));
    if (this.pager) {
      const turn = (by) => () => {
        if (this.page + by < 0 || (this.page + by) * PAGE >= this.length) return;
        this.page += by;
        changed();
      };
      this.newer = element("button", { type: "button", onclick: turn(-1) }, "Newer");
      this.older = element("button", { type: "button", onclick: turn(1) }, "Older");
      this.place = element("span");
      this.pager.append(this.newer, this.place, this.older);
    }
    find(`#${id}`).parentNode.querySelectorAll(".more").forEach((node) => node.remove());
  }

  draw(items, all = items.length, isPart = false) {
    if (!this.empty) this.begin();
    this.length = items.length;
    this.page = Math.max(0, Math.min(this.page, Math.ceil(items.length / PAGE) - 1));
    const from = this.page * PAGE;
    const seen = items.slice(from, from + PAGE);
    const keys = new Set(seen.map(this.key));
    const holds = this.body.contains(document.activeElement);
    for (const [key, row] of this.rows) {
      if (!keys.has(key)) {
        row.remove();
        this.rows.delete(key);
      }
    }
    // What had the focus is gone: the next place to be is the heading of the list.
    if (holds && !this.body.contains(document.activeElement)) this.title?.focus();
    this.columns.forEach((column, index) => {
      if (column.shows) {
        column.hidden = !items.some(column.shows);
        find(`#${this.id} thead tr`).cells[index].hidden = column.hidden;
      }
    });
    let after = null;
    for (const item of seen) {
      const key = this.key(item);
      let row = this.rows.get(key);
      if (!row) {
        row = element("tr");
        for (const column of this.columns) column.make(row.appendChild(element("td", { className: column.className ?? "" })), row);
        this.rows.set(key, row);
      }
      row.item = item;
      this.columns.forEach((column, index) => {
        row.cells[index].hidden = Boolean(column.hidden);
        column.set(row.cells[index], item);
      });
      const place = after ? after.nextSibling : this.body.firstChild;
      if (place !== row) this.body.insertBefore(row, place);
      after = row;
    }
    if (items.length) this.empty.remove();
    else this.body.append(this.empty);
    if (!this.pager) return;
    this.pager.hidden = items.length <= PAGE;
    this.newer.ariaDisabled = String(this.page === 0);
    this.older.ariaDisabled = String(from + PAGE >= items.length);
    say(this.place, `${(from + 1).toLocaleString("en")}–${(from + seen.length).toLocaleString("en")} of ${items.length.toLocaleString("en")}`);
    const count = (items.length === all ? "" : `${items.length.toLocaleString("en")} of `) + all.toLocaleString("en") + (isPart ? "+" : "");
    say(find(`#${this.id}-count`), `(${count})`);
  }
}

// Messages and questions.

const message = (text) => {
  const place = find("#message");
  place.textContent = clean(text);
  clearTimeout(message.timer);
  message.timer = setTimeout(() => say(place, ""), 15000);
};
const agree = (question, yes) => {
  const dialog = find("#confirm");
  find("#question").textContent = question;
  find("#yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  });
};
const tried = async (act) => {
  try {
    await act();
  } catch (error) {
    message(error instanceof Refusal ? error.message : "The daemon does not answer; nothing was changed.");
  }
};
const retry = (delivery) => tried(async () => {
  await ask("POST", `v1/deliveries/${encodeURIComponent(delivery.id)}/retry`);
  message(`The delivery to ${delivery.sink} is tried again now.`);
  look(true);
});
const retryAll = (sink) => tried(async () => {
  const { deliveries } = await ask("POST", `v1/deliveries/retry?sink=${encodeURIComponent(sink.name)}`);
  message(`${plural(deliveries, "delivery", "deliveries")} to ${sink.name}: tried again now.`);
  look(true);
});
// Removes a watch; of one whose deliveries are open only after a second question. Says whether it is gone.
const remove = async (watch) => {
  let gone = false;
  await tried(async () => {
    const path = `v1/watches/${reference(watch)}`;
    if (!(await agree(`Stop watching ${named(watch)}, and forget its history?\nThe run itself is not stopped.`, "Remove"))) return;
    try {
      await ask("DELETE", path);
    } catch (error) {
      if (error.status !== 409) throw error;
      if (!(await agree(`Deliveries about ${named(watch)} are still open. Give them up?`, "Give up and remove"))) return;
      await ask("DELETE", `${path}?force=true`);
    }
    gone = true;
    message(`${named(watch)} is no longer watched.`);
  });
  return gone;
};

// The stream of events.

let lastEvent = document.body.dataset.event;
const connection = (state) => {
  document.body.classList.toggle("lost", state === "lost");
  const words = { live: "live", lost: `Connection lost: this is the state of ${clock.format(connection.seen)}. Trying again.`, asleep: "paused" };
  if (connection.state !== state) say(find("#connection"), words[state]);
  connection.state = state;
};
connection.seen = Date.now();
const visible = () => new Promise((done) => {
  if (!document.hidden) return done();
  document.addEventListener("visibilitychange", done, { once: true });
});
const frames = function* (text) {
  for (const frame of text.split("\n\n")) {
    const fields = {};
    for (const row of frame.split("\n")) {
      const [, name, value] = row.match(/^(\w+): ?(.*)$/) ?? [];
      if (name) fields[name] = value;
    }
    if (fields.data) yield fields;
  }
};
const follow = async (apply) => {
  let stop = new AbortController(), pause = 1000, unseen;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(unseen);
    if (document.hidden) unseen = setTimeout(() => stop.abort("asleep"), UNSEEN);
  });
  for (;;) {
    await visible();
    stop = new AbortController();
    let silence;
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(() => stop.abort("silent"), SILENCE);
      connection.seen = Date.now();
    };
    try {
      alive();
      const headers = { Accept: "text/event-stream", "Last-Event-ID": lastEvent };
      const answer = await fetch(new URL("v1/events", root), { headers, signal: stop.signal, cache: "no-store" });
      if (answer.status === 401) return logIn();
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      connection("live");
      pause = 1000;
      look(true);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; ; ) {
        const { value, done } = await reader.read();
        if (done) break;
        alive();
        const text = rest + value;
        const end = text.lastIndexOf("\n\n") + 2;
        rest = end > 1 ? text.slice(end) : text;
        if (end < 2) continue;
        for (const { id, data } of frames(text.slice(0, end))) {
          lastEvent = id ?? lastEvent;
          apply(JSON.parse(data));
        }
        changed();
      }
    } catch {
      // Whatever it was, it is tried again.
    }
    clearTimeout(silence);
    connection(stop.signal.reason === "asleep" ? "asleep" : "lost");
    if (!document.hidden) await new Promise((done) => setTimeout(done, pause * (0.75 + Math.random() / 2)));
    pause = Math.min(pause * 2, 15000);
  }
};

// Looks at what the stream does not have, again and again while the page is in sight. `look()` looks soon, and
// `look(true)` at everything.
let look = () => {};
const keepLooking = (read, every) => {
  let timer, isReading = false, again = false, all = true;
  const turn = async () => {
    clearTimeout(timer);
    if (isReading) {
      again = true;
      return;
    }
    isReading = true;
    again = false;
    try {
      await visible();
      const everything = all;
      all = false;
      await read(everything);
      changed();
    } catch (error) {
      if (error instanceof Refusal) message(error.message);
    }
    isReading = false;
    clearTimeout(timer);
    timer = setTimeout(turn, again ? 300 : every());
  };
  look = (everything = false) => {
    all ||= everything;
    clearTimeout(timer);
    timer = setTimeout(turn, 300);
  };
  turn();
  setInterval(() => document.hidden || changed(), 1000);
};

// The view of everything.

const standing = (watch) =>
  watch.verdict ?? (watch.missing_since ? "not there yet" : watch.status ?? "not polled yet");

const overview = () => {
  let active = new Map(), ended = new Map(), deliveries = [], providers = [], sinks = [], notices = [];
  let wanted = "", isPart = false, moreEnded = false, moreDeliveries = false, fullAt = 0;
  // Both lists in their order, until one of them changes.
  let sorted = null, names = new Map();
  // Runs that ended while a list was read that may still show them.
  const over = new Set();
  const key = (of) => `${of.provider}:${of.run_id}`;
  const endKey = (of) => `${key(of)} ${of.added_at}`;
  const provider = (name) => providers.find((known) => known.provider === name);

  const nextPoll = (watch) => {
    const { outage, next_request_at: allowed } = provider(watch.provider) ?? {};
    if (watch.polling) return "polling";
    if (!watch.next_poll_at) return "–";
    if (outage && Date.parse(allowed) > Date.parse(watch.next_poll_at)) return ahead(allowed);
    return now() - Date.parse(watch.next_poll_at) > 1000 ? "waiting for its turn" : ahead(watch.next_poll_at);
  };
  const gone = async (watch) => {
    if (!(await remove(watch))) return;
    active.delete(key(watch));
    ended.delete(endKey(watch));
    sorted = null;
    changed();
    look(true);
  };
  const lists = {
    active: new List("active", "No run is watched now.", key, [
      { label: "Run", ...runCell },
      {
        label: "State", make: mark,
        set: (td, watch) => setMark(td, watch.run_state ?? "pending", standing(watch), watch.last_error ? `${watch.last_error.message} (${ago(watch.last_error.at)})` : ""),
      },
      text("For", (watch) => elapsed(now() - Date.parse(watch.added_at)), "number"),
      { ...text("Left", left, "wide"), shows: left },
      text("Next poll", nextPoll, "wide"),
      button("Remove", named, gone),
    ]),
    ended: new List("ended", "No run has ended yet.", endKey, [
      { label: "Run", ...runCell },
      { label: "Verdict", make: mark, set: (td, watch) => setMark(td, watch.verdict, watch.verdict, watch.error_message) },
      { ...text("Ended", (watch) => ago(watch.finished_at)), set: (td, watch) => {
        say(td.firstChild, ago(watch.finished_at));
        td.title = moment.format(Date.parse(watch.finished_at));
      } },
      button("Remove", named, gone),
    ]),
    deliveries: new List("deliveries", "Nothing waits, and nothing was given up.", (delivery) => delivery.id, [
      {
        label: "Run", ...runCell,
        set: (td, delivery) => {
          if (delivery.run_id) runCell.set(td, { ...delivery, name: names.get(key(delivery)) }, delivery.event);
          else if (delivery.group) say(td, `group ${clean(delivery.group)}: ${delivery.event}`);
          else say(td, delivery.event);
        },
      },
      text("Sink", (delivery) => delivery.sink),
      text("State", deliveryState),
      text("Attempts", attempts, "number wide"),
      text("Last result", (delivery) => delivery.last_result ?? "–", "wide"),
      button("Retry", (delivery) => `${delivery.event} to ${delivery.sink}`, retry, (delivery) => delivery.state !== "sending"),
    ]),
    providers: new List("providers", "No provider is in use.", (of) => of.provider, [
      text("Provider", (of) => of.provider),
      text("Watches", (of) => of.watches.toLocaleString("en"), "number"),
      text("Requests/min", (of) => `${of.requests_last_minute} of ${of.requests_per_minute}`, "number"),
      { label: "Circuit breaker", make: mark, set: (td, of) => setMark(td, of.outage ? "failed" : of.reached ? "succeeded" : "pending", breaker(of), of.outage_message) },
    ]),
    sinks: new List("sinks", "No sink is configured.", (sink) => sink.name, [
      text("Sink", (sink) => sink.name),
      text("Type", (sink) => sink.type ?? "not configured"),
      text("Waiting", (sink) => sink.pending.toLocaleString("en"), "number"),
      text("Given up", (sink) => sink.dead.toLocaleString("en"), "number"),
      text("Events", (sink) => sink.events.join(", "), "wide"),
      button("Retry all", (sink) => sink.name, retryAll, (sink) => sink.pending + sink.dead > 0),
    ]),
  };
  const fits = (watch) => {
    const labels = Object.entries(watch.labels ?? {}).map(([name, value]) => `${name}=${value}`);
    return [watch.name, key(watch), standing(watch), ...labels].join("\n").toLowerCase().includes(wanted);
  };

  draws = () => {
    // What the server wrote stays until there is something newer.
    if (!fullAt) return;
    const newestFirst = (watches, field) => [...watches.values()].sort((a, b) => Date.parse(b[field]) - Date.parse(a[field]));
    if (!sorted) {
      sorted = [newestFirst(active, "added_at"), newestFirst(ended, "finished_at")];
      names = new Map(sorted.flat().reverse().map((watch) => [key(watch), watch.name]));
    }
    const [going, done] = sorted;
    lists.active.draw(wanted ? going.filter(fits) : going, going.length, isPart);
    lists.ended.draw(wanted ? done.filter(fits) : done, done.length, moreEnded);
    lists.deliveries.draw(deliveries, deliveries.length, moreDeliveries);
    lists.providers.draw(providers);
    lists.sinks.draw(sinks);
    const sum = (name) => sinks.reduce((total, sink) => total + sink[name], 0);
    share(find("#share"), [["waiting", sum("pending"), "warn"], ["given up", sum("dead"), "bad"]]);
    const place = find("#notices");
    if (place.dataset.text !== notices.join("\n")) {
      place.dataset.text = notices.join("\n");
      place.replaceChildren(...notices.map((notice) => element("li", {}, bdi(notice))));
    }
  };

  const readActive = async () => {
    const found = new Map();
    let cursor = "";
    do {
      const page = await ask("GET", `v1/watches?state=active&order=newest&limit=1000${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
      for (const watch of page.watches) found.set(key(watch), watch);
      ({ notices } = page);
      cursor = page.next_cursor ?? "";
    } while (cursor && found.size < MOST);
    isPart = Boolean(cursor);
    return found;
  };
  const readAll = async () => {
    over.clear();
    const found = await readActive();
    const ends = await ask("GET", `v1/watches?order=ended&limit=${RECENT}`);
    for (const name of over) found.delete(name);
    active = found;
    moreEnded = Boolean(ends.next_cursor);
    const texts = new Map([...ended].map(([name, watch]) => [name, watch.error_message]));
    const newest = ends.watches.map((watch) => [endKey(watch), { ...watch, error_message: texts.get(endKey(watch)) }]);
    // What ended while the list was read stays until the next look.
    const late = [...ended].filter(([, watch]) => over.has(key(watch)));
    ended = new Map([...newest, ...late]);
    sorted = null;
    fullAt = Date.now();
  };
  const readNewest = async () => {
    const page = await ask("GET", "v1/watches?state=active&order=newest&limit=20");
    ({ notices } = page);
    for (const watch of page.watches) if (!over.has(key(watch))) active.set(key(watch), watch);
    sorted = null;
  };
  const every = () => Math.min(SLOW, QUICK + active.size * 3);
  keepLooking(async (all) => {
    await (all || Date.now() - fullAt >= every() - 100 ? readAll() : readNewest());
    const [waiting, polling, list] = await Promise.all([
      ask("GET", `v1/deliveries?state=pending&state=sending&state=dead&order=newest&limit=${RECENT}`),
      ask("GET", "v1/polling"),
      ask("GET", "v1/sinks"),
    ]);
    deliveries = waiting.deliveries;
    moreDeliveries = Boolean(waiting.next_cursor);
    ({ providers } = polling);
    ({ sinks } = list);
  }, () => QUICK);
  follow(({ type, timestamp, data }) => {
    const { run, watch } = data;
    if (run && watch) {
      const of = { provider: run.provider ?? "crewship", run_id: run.id };
      const known = active.get(key(of));
      const merged = { ...known, ...of, name: watch.name, labels: watch.labels, added_at: watch.added_at ?? known?.added_at, status: run.status, run_state: run.state };
      if (VERDICTS[type]) {
        over.add(key(of));
        active.delete(key(of));
        const end = { ...merged, verdict: VERDICTS[type], finished_at: timestamp, error_message: run.error_message ?? data.reason };
        ended.set(endKey(end), end);
      } else if (known) {
        active.set(key(of), merged);
      }
      sorted = null;
    }
    look();
  });

  const form = find("#add");
  form.hidden = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const body = { run_id: form.elements.run.value.trim() };
    const name = form.elements.name.value.trim();
    if (name) body.name = name;
    tried(async () => {
      let watch = await ask("POST", "v1/watches", JSON.stringify(body));
      if (watch.verdict && (await agree(`${named(watch)} is watched already, and ${watch.verdict}. Watch it again?`, "Watch again"))) {
        watch = await ask("POST", "v1/watches", JSON.stringify({ ...body, again: true }));
      }
      const kept = watch.not_applied?.length ? `, with another ${watch.not_applied.join(", ")}` : "";
      message(watch.verdict ? `${named(watch)}: ${watch.verdict}.` : `${named(watch)} is watched${kept}.`);
      if (!watch.verdict) {
        over.delete(key(watch));
        active.set(key(watch), watch);
        sorted = null;
      }
      form.reset();
      form.elements.run.focus();
      changed();
      look(true);
    });
  });
  const filter = find("#filter");
  filter.hidden = false;
  find("input", filter).addEventListener("input", (event) => {
    wanted = event.target.value.trim().toLowerCase();
    lists.active.page = lists.ended.page = 0;
    changed();
  });
};

const deliveryState = (delivery) => {
  const rest = delivery.fallback_for ? ` (for ${delivery.fallback_for})` : "";
  if (delivery.held_until) return `held for quiet hours, sent ${ahead(delivery.held_until)}${rest}`;
  if (delivery.included_in) return `in the summary ${delivery.included_in}${rest}`;
  if (delivery.state === "pending" && !delivery.next_attempt_at) return `waits for the summary${rest}`;
  if (delivery.state === "pending") return `waits, retry ${ahead(delivery.next_attempt_at)}${rest}`;
  return (delivery.state === "dead" ? "given up" : delivery.state) + rest;
};
const attempts = ({ attempts: made, most_attempts: most }) => (most ? `${made} of ${most}` : String(made));
const breaker = (of) => {
  if (of.outage) return `open: ${of.outage.replaceAll("_", " ")}${of.next_request_at ? `, next request ${ahead(of.next_request_at)}` : ""}`;
  return of.reached ? "closed: requests flow" : "closed: nothing requested yet";
};

// The view of one run.

const oneRun = () => {
  const of = { provider: find("#provider").textContent, run_id: find("#run-id").textContent };
  const path = `v1/watches/${location.pathname.split("/").pop()}`;
  let watch, drawnText;
  const deliveries = new List("deliveries", "No sink was notified.", (delivery) => delivery.id, [
    { ...text("Sink", (delivery) => delivery.sink), make: (td) => td.append(bdi(), element("small")), set: (td, delivery) => {
      say(td.firstChild, clean(delivery.sink));
      say(td.lastChild, clean(delivery.event ?? ""));
    } },
    text("State", (delivery) => (delivery.state ? deliveryState(delivery) : "not notified")),
    text("Attempts", (delivery) => (delivery.state ? attempts(delivery) : ""), "number"),
    text("Last result", (delivery) => delivery.last_result ?? "–"),
    button("Retry", (delivery) => `${delivery.event} to ${delivery.sink}`, retry, (delivery) => delivery.state === "pending" || delivery.state === "dead"),
  ]);

  const facts = () => {
    const state = watch.verdict ?? watch.run_state ?? "pending";
    const cell = element("span");
    mark(cell);
    setMark(cell, state, standing(watch));
    const run = watch.data?.run ?? {};
    const ran = watch.data?.timing?.ran_ms;
    const labels = Object.entries(watch.labels).map(([name, value]) => `${name}=${value}`);
    const rows = [
      ["State", cell],
      ["Added", time(watch.added_at)],
      ["Started", watch.started_at && time(watch.started_at)],
      ["Ended", watch.finished_at && time(watch.finished_at)],
      ["Ran", ran && humanize(ran)],
      ["For", !watch.verdict && elapsed(now() - Date.parse(watch.added_at))],
      ["Left", !watch.verdict && left(watch)],
      ["Usually", watch.usual_ms != null && usually(watch)],
      ["Next poll", !watch.verdict && (watch.polling ? "now" : watch.next_poll_at && ahead(watch.next_poll_at))],
      ["Deadline", !watch.verdict && time(watch.deadline_at)],
      ["Polls", watch.polls.toLocaleString("en")],
      ["Seen by", watch.found_by],
      ["Group", watch.group],
      ["Labels", labels.length && labels.join(", ")],
      ["Last error", !watch.verdict && watch.last_error && `${watch.last_error.message} (${ago(watch.last_error.at)})`],
    ];
    return rows.filter(([, value]) => value).flatMap(([term, value]) =>
      [element("dt", {}, term), element("dd", {}, typeof value === "string" ? bdi(value) : value)]);
  };
  const tries = () => watch.deliveries.flatMap((delivery) => delivery.attempt_log.map((attempt) => ({ ...attempt, delivery })));
  const timeline = () => {
    const entries = [[watch.added_at, ["the watch was added"]]];
    for (const { at, status, run_state: state } of watch.history) {
      const cell = element("span");
      mark(cell);
      setMark(cell, state ?? "pending", status);
      entries.push([at, [cell]]);
    }
    if (watch.verdict) {
      const cell = element("span");
      mark(cell);
      setMark(cell, watch.verdict, watch.verdict);
      entries.push([watch.finished_at, ["verdict: ", cell]]);
    }
    for (const { at, took_ms: took, delivered, result, delivery } of tries()) {
      const words = `: ${delivery.event} was ${delivered ? "" : "not "}delivered in ${humanize(took)}: `;
      entries.push([at, [bdi(delivery.sink), words, bdi(result)]]);
    }
    entries.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    return entries.map(([at, parts]) => element("li", {}, time(at), ...parts.map((part) => (part.nodeName === "SPAN" ? element("span", {}, ...part.childNodes) : part))));
  };
  // The states as a bar, and for each sink its attempts, over the same span of time.
  const lanes = () => {
    const all = tries();
    const begin = Date.parse(watch.added_at);
    const ends = [watch.finished_at ? Date.parse(watch.finished_at) : now(), ...all.map((attempt) => Date.parse(attempt.at))];
    const end = Math.max(...ends, begin + 1);
    const x = (at) => Math.max(0, Math.min(1000, (1000 * ((typeof at === "string" ? Date.parse(at) : at) - begin)) / (end - begin)));
    const until = watch.finished_at ? Date.parse(watch.finished_at) : end;
    const bars = watch.history.map(({ at, run_state: state, status }, index) => {
      const stop = watch.history[index + 1]?.at ?? until;
      const bar = svg("rect", { x: x(at), y: 3, width: Math.max(2, x(stop) - x(at)), height: 10, class: COLORS[state] ?? "dim" });
      bar.append(svg("title", {}, clean(status)));
      return bar;
    });
    const states = watch.history.map(({ status }) => clean(status)).join(", then ");
    const rows = [["States", plot(`States: ${states || "none yet"}`, ...bars)]];
    for (const sink of new Set(all.map((attempt) => attempt.delivery.sink))) {
      const own = all.filter((attempt) => attempt.delivery.sink === sink);
      const good = own.filter((attempt) => attempt.delivered).length;
      const base = svg("line", { x1: 0, x2: 1000, y1: 8, y2: 8, class: "base" });
      rows.push([sink, plot(`Attempts to ${sink}: ${good} delivered, ${own.length - good} failed`, base,
        ...own.map((attempt) => line(x(attempt.at), attempt.delivered ? "good" : "bad")))]);
    }
    return rows.map(([name, picture]) => element("div", { className: "lane" }, bdi(name), picture));
  };
  // The durations of earlier runs of the group, as marks on a line, with this run among them.
  const usual = () => {
    const past = watch.past_durations_ms;
    const section = find("#usual");
    section.hidden = !past || watch.usual_ms == null;
    if (section.hidden) return;
    const begun = Date.parse(watch.started_at);
    const mine = watch.data ? watch.data.timing.ran_ms : begun ? Math.max(0, now() - begun) : null;
    const most = Math.max(...past, mine, 1);
    const x = (ms) => 10 + (980 * ms) / most;
    const label = `${past.length} runs, usually ${usually(watch)}` + (mine == null ? "" : `; this one ${elapsed(mine)}`);
    const marks = past.map((ms) => line(x(ms), "dim", 5, 11));
    const base = svg("line", { x1: 10, x2: 990, y1: 8, y2: 8, class: "base" });
    find("div", section).replaceChildren(plot(label, base, ...marks, ...(mine == null ? [] : [line(x(mine), "run", 0, 16)])), element("p", { className: "legend" }, label));
  };

  draws = () => {
    if (!watch) return;
    find("#facts").replaceChildren(...facts());
    usual();
    const sinks = watch.routing.filter((entry) => entry.why_not && !watch.deliveries.some((delivery) => delivery.sink === entry.sink));
    deliveries.draw([...watch.deliveries, ...sinks.map((entry) => ({ id: `not ${entry.sink}`, sink: entry.sink, last_result: entry.why_not }))]);
    const known = JSON.stringify([watch.history, watch.deliveries, watch.verdict, watch.data]);
    if (known !== drawnText || !watch.verdict) find("#plot").replaceChildren(...lanes());
    if (known === drawnText) return;
    drawnText = known;
    find("#timeline").replaceChildren(...timeline());
    const count = (state) => watch.deliveries.filter((delivery) => delivery.state === state).length;
    share(find("#share"), [["delivered", count("delivered"), "good"], ["waiting", count("pending"), "warn"], ["being sent", count("sending"), "run"], ["given up", count("dead"), "bad"]]);
    const run = watch.data?.run ?? {};
    const link = find("#run-url");
    if (/^https?:\/\//.test(run.url ?? "")) {
      link.href = run.url;
      link.hidden = false;
    }
    const output = run.output == null ? "" : JSON.stringify(run.output, null, 2);
    const words = [run.error_message, watch.data?.reason, output].filter(Boolean).join("\n\n");
    find("#output").hidden = !words;
    say(find("#output pre"), words.slice(0, OUTPUT).replace(/[^\n\P{Cc}]|[\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/gu, "").toWellFormed() + (words.length > OUTPUT ? "…" : ""));
  };
  const removal = find("#remove");
  removal.hidden = false;
  removal.addEventListener("click", async () => {
    if (await remove(watch ?? of)) location.assign(root);
  });
  keepLooking(async () => {
    try {
      watch = await ask("GET", path);
    } catch (error) {
      if (error.status === 404) message("It is no longer watched.");
      throw error;
    }
  }, () => (watch?.verdict && !watch.deliveries.some((delivery) => delivery.state !== "delivered") ? SLOW : QUICK));
  follow(({ data }) => {
    if (data.run?.id === of.run_id && (data.run.provider ?? "crewship") === of.provider) look();
  });
};

if (view === "overview") overview();
if (view === "run") oneRun();
// A link on another site leads here without the cookie of the session (SameSite): a request of the page itself has it,
// and so has the next attempt to open it. One in ten seconds, lest a browser that keeps the cookie back goes in circles.
if (view === "login" && !location.pathname.endsWith("/login")) {
  const answer = await fetch(new URL("v1/polling", root), { cache: "no-store" });
  if (answer.ok && Date.now() - sessionStorage.getItem("tried") > 10000) {
    sessionStorage.setItem("tried", Date.now());
    logIn();
  }
}
