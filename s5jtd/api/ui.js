// The status page: asks /status and /logs, and shows the answers.  It keeps the token in one variable, writes
// what it is told as text and never as markup, and changes nothing anywhere.
"use strict";

const STATUS_MS = 2000;
const REPORTS_MS = 30000;
const ANSWER_MS = 20000;
const HISTORY_MS = 5 * 60 * 1000;

let token = null;
let timer = null;
let reportsDue = 0;
let history = []; // {at, pull, push}: rates of all jobs together, null where unknown

const $ = (id) => document.getElementById(id);

// ---- asking

class Trouble extends Error {
  constructor(status, message, hint) {
    super(message);
    this.status = status;
    this.hint = hint;
  }
}

async function ask(path) {
  let response;
  try {
    response = await fetch(path, {
      headers: { authorization: `Bearer ${token}` },
      cache: "no-store", credentials: "omit", redirect: "error",
      signal: AbortSignal.timeout(ANSWER_MS),
    });
  } catch {
    throw new Trouble(0, "The log API does not answer", "is the network up?  systemctl status s5jtd-api");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = answer.error ?? {};
    throw new Trouble(response.status, error.message ?? `The log API answered ${response.status}`, error.hint ?? "");
  }
  // The appliance's clock, because ages are counted from its times and the reader's may be another.
  return { answer, now: Date.parse(response.headers.get("date")) || Date.now() };
}

async function turn() {
  const mine = token;
  try {
    const { answer, now } = await ask("/status");
    if (mine !== token) return;
    showStatus(answer, now);
    if (performance.now() >= reportsDue) {
      reportsDue = performance.now() + REPORTS_MS;
      await turnReports(now);
    }
    if (mine !== token) return;
    $("trouble").hidden = true;
    $("board").classList.remove("stale");
    $("fresh").textContent = `as of ${clock(now)}`;
  } catch (error) {
    if (mine !== token) return;
    if (!(error instanceof Trouble)) throw error;
    if (error.status === 401) return leave("This token is not the right one.");
    if (error.status === 429 && $("board").hidden) return leave(`${error.message}: ${error.hint}.`);
    $("trouble").hidden = false;
    $("trouble").textContent = error.hint ? `${error.message}.  ${error.hint}` : error.message;
    $("board").classList.add("stale");
    remember(null, null);
  } finally {
    clearTimeout(timer); // of another turn, where the page was shown again in the middle of this one
    if (mine === token && token !== null) timer = setTimeout(turn, document.hidden ? 5 * STATUS_MS : STATUS_MS);
  }
}

async function turnReports(now) {
  try {
    showReports((await ask("/logs?limit=10")).answer.reports, now);
  } catch (error) {
    if (!(error instanceof Trouble) || error.status === 401) throw error;
    table($("reports"), [], [], error.message);
  }
}

function enter(event) {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  $("denied").textContent = "";
  $("enter").hidden = true;
  $("leave").hidden = false;
  reportsDue = 0;
  turn();
}

function leave(why) {
  token = null;
  clearTimeout(timer);
  history = [];
  for (const id of ["board", "trouble", "leave"]) $(id).hidden = true;
  for (const id of ["daemon", "fresh"]) $(id).textContent = "";
  $("denied").textContent = why;
  $("enter").hidden = false;
  $("token").focus();
}

// ---- showing

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const LEVELS = {
  running: "good", online: "good", up: "good", success: "good",
  paused: "warn", draining: "warn", full: "warn", degraded: "warn", partial: "warn", interrupted: "warn",
  idle: "rest",
  blocked: "bad", failed: "bad", missing: "bad", foreign: "bad", readonly: "bad", down: "bad",
};
// What needs a person comes first; a state that is not known here comes before all that is well.
const urgent = (things) => [...things].sort((a, b) => rank(a.state) - rank(b.state));
const rank = (state) => ["bad", "warn", undefined, "good", "rest"].indexOf(LEVELS[state]);
const pill = (state) => make("span", `state ${LEVELS[state] ?? ""}`, state);

function bar(share, level, label) {
  const inside = make("i");
  inside.style.width = `${share * 100}%`;
  const outside = make("div", `bar ${level}`, inside);
  outside.setAttribute("role", "img");
  outside.setAttribute("aria-label", label);
  return outside;
}

// Rows are lists of cells: [class, content...].
function table(element, headings, rows, nothing) {
  element.replaceChildren();
  if (!rows.length) {
    element.append(make("tbody", "", make("tr", "", make("td", "nothing", nothing))));
    return;
  }
  const classOf = (heading) => (heading.startsWith(">") ? "figure" : "");
  const names = headings.map((heading) => heading.replace(">", ""));
  element.append(make("thead", "", make("tr", "", ...headings.map((one, at) => make("th", classOf(one), names[at])))));
  element.append(make("tbody", "", ...rows.map((row) => make("tr", "", ...row.map(([className, ...content], at) => {
    const cell = make("td", `${classOf(headings[at])} ${className}`, make("div", "", ...content));
    cell.dataset.name = names[at];
    return cell;
  })))));
}

function showStatus(status, now) {
  const { daemon } = status;
  $("board").hidden = false;
  $("daemon").textContent = `${daemon.version}, ${daemon.state} for ${span(daemon.uptime_seconds)} on ${location.hostname}`;
  document.title = status.problems.length ? `(${status.problems.length}) s5jtd` : "s5jtd";
  $("problems").replaceChildren(...status.problems.map((problem) => make("div", "problem",
    make("strong", "", problem.message || problem.code),
    problem.hint ? make("div", "", problem.hint) : null,
    problem.since ? make("small", "", `since ${stamp(problem.since)}, ${ago(problem.since, now)}`) : null)));
  $("jobs").replaceChildren(...urgent(status.jobs).map((job) => showJob(job, now)));
  showVolumes(status.volumes);
  showEndpoints(status.endpoints);
  const rate = (half) => total(status.jobs.map((job) => job.rates[`${half}_bytes_per_second`]));
  remember(rate("pull"), rate("push"));
}

const TO_GO = ["seen", "pulling", "staged", "pushing"];
const DUE = [...TO_GO, "parked", "delivered"];
const sum = (numbers, states) => states.reduce((whole, state) => whole + numbers[state], 0);

function showJob(job, now) {
  const left = sum(job.objects, TO_GO);
  // Bytes say more, but a job of empty objects has none; rounded down, so that 100 % means all of it.
  const counted = sum(job.bytes, DUE) ? job.bytes : job.objects;
  const whole = sum(counted, DUE);
  const done = left || job.objects.parked ? 0.99 : 1;
  const share = whole ? Math.min(done, counted.delivered / whole) : 0;
  const percent = whole ? `${Math.floor(share * 100)} %` : "–";
  const facts = [
    ["Delivered", `${count(job.objects.delivered)} objects`, amount(job.bytes.delivered)],
    ["To go", `${count(left)} objects`, amount(sum(job.bytes, TO_GO))],
    ["On volumes", `${count(job.objects.staged + job.objects.pushing)} objects`, amount(job.bytes.staged + job.bytes.pushing)],
    ["Parked", `${count(job.objects.parked)} objects`, job.objects.parked ? `s5jtctl objects ${job.name} --state parked` : ""],
    ["Pull", speed(job.rates.pull_bytes_per_second), ""],
    ["Push", speed(job.rates.push_bytes_per_second), job.last_delivery_at ? `last delivery ${ago(job.last_delivery_at, now)}` : ""],
    ["Time left", span(job.eta_seconds), ""],
    ["Source scanned", ...scanned(job.last_scan, now)],
  ];
  return make("article", "card job",
    make("div", "head", make("h3", "", job.name), pill(job.state), make("span", "soft", `${percent} delivered`)),
    job.reason ? make("p", "", job.reason) : null,
    job.paused_until ? make("p", "soft", `until ${stamp(job.paused_until)}`) : null,
    bar(share, "", `${percent} delivered`),
    make("dl", "", ...facts.map(([name, value, more]) => make("div", "",
      make("dt", "", name), make("dd", name === "Parked" && job.objects.parked ? "bad" : "", value, more ? make("small", "", more) : null)))));
}

function scanned(scan, now) {
  if (!scan) return ["not yet", ""];
  if (!scan.finished_at) return ["being scanned", `${count(scan.objects)} objects so far`];
  return [ago(scan.finished_at, now), scan.complete ? `${count(scan.objects)} objects` : "it broke off"];
}

function showVolumes(volumes) {
  table($("volumes"), ["Volume", "State", "Used", ">Staged", ">Free"], urgent(volumes).map((volume) => {
    const known = volume.staged_bytes !== null && volume.free_bytes !== null;
    // A reserve and the files of others are not ours to count.
    const usable = known ? volume.staged_bytes + volume.free_bytes : 0;
    const share = !known ? 0 : usable ? volume.staged_bytes / usable : 1;
    const words = `${Math.floor(share * 100)} %`;
    return [["", volume.name, make("small", "", volume.path)], ["", pill(volume.state)],
      known ? ["fill", bar(share, share > 0.9 ? "warn" : "good", `${words} used`), make("span", "", words)] : ["", "–"],
      ["", amount(volume.staged_bytes)], ["", amount(volume.free_bytes)]];
  }), "There is no volume.");
}

function showEndpoints(endpoints) {
  table($("endpoints"), ["Endpoint", "State", "Side", "Job", ">Latency"], urgent(endpoints).map((each) => [
    ["", each.url, each.last_error && each.state !== "up" ? make("small", "bad", each.last_error) : null],
    ["", pill(each.state)], ["", each.side], ["", each.job],
    ["", each.latency_ms === null ? "–" : `${Math.round(each.latency_ms)} ms`],
  ]), "There is no endpoint.");
}

function showReports(reports, now) {
  table($("reports"), ["Report", "Status", "Job", ">Objects", ">Bytes", ">Took", ">Failed, parked"], reports.map((one) => [
    ["", stamp(one.timestamp), make("small", "", ago(one.timestamp, now))],
    ["", pill(one.status)], ["", one.job, make("small", "", `pass ${one.pass}`)],
    ["", count(one.files_synced)], ["", amount(one.bytes_transferred)], ["", span(one.duration_seconds)],
    ["", make("span", one.failed || one.parked ? "bad" : "", `${count(one.failed)}, ${count(one.parked)}`)],
  ]), "There is no report yet.");
}

// ---- the chart

function remember(pull, push) {
  const at = performance.now();
  history = history.filter((one) => at - one.at < HISTORY_MS);
  history.push({ at, pull, push });
  for (const [half, rate] of [["pull", pull], ["push", push]]) {
    $(`${half}-rate`).textContent = `${half} ${speed(rate)}`;
    draw(half, at);
  }
}

function drawn(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function draw(half, now) {
  const { clientWidth: width, clientHeight: height } = $(half);
  const head = 8, foot = 16, margin = 72; // for words
  const most = Math.max(1024, ...history.map((one) => one[half] ?? 0));
  const top = ceiling(most);
  const x = (at) => (width - ((now - at) / HISTORY_MS) * (width - margin)).toFixed(1);
  const y = (rate) => (height - foot - (rate / top) * (height - foot - head)).toFixed(1);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${half} in the last five minutes: at most ${speed(most)}` });
  for (const rate of [0, top / 2, top]) {
    svg.append(drawn("line", { x1: margin, x2: width, y1: y(rate), y2: y(rate) }));
    svg.append(drawn("text", { x: margin - 8, y: Number(y(rate)) + 4, "text-anchor": "end" }, speed(rate)));
  }
  svg.append(drawn("text", { x: margin, y: height - 2 }, "5 min ago"));
  svg.append(drawn("text", { x: width, y: height - 2, "text-anchor": "end" }, "now"));
  for (const run of runs(half)) {
    const line = "M" + run.map((one) => `${x(one.at)} ${y(one[half])}`).join("L");
    svg.append(drawn("path", { class: "under", d: `${line}L${x(run.at(-1).at)} ${y(0)}L${x(run[0].at)} ${y(0)}Z` }));
    svg.append(drawn("path", { d: line }));
  }
  $(half).replaceChildren(svg);
}

// What is known without a gap; between two of these the line is broken.
function runs(half) {
  const found = [[]];
  for (const one of history) {
    if (one[half] !== null) found.at(-1).push(one);
    else if (found.at(-1).length) found.push([]);
  }
  return found.filter((run) => run.length);
}

// The next round number of a binary unit, so that the scale does not dance.
function ceiling(rate) {
  const unit = 1024 ** Math.floor(Math.log(rate) / Math.log(1024));
  const steps = [1, 2, 3, 4, 6, 8, 10, 20, 30, 40, 60, 80, 100, 200, 300, 400, 600, 800, 1024];
  return unit * steps.find((step) => step * unit >= rate);
}

// ---- quantities, as s5jtctl writes them

const total = (rates) => (rates.every((rate) => rate === null) ? null : rates.reduce((whole, rate) => whole + (rate ?? 0), 0));
const count = (number) => (number === null ? "–" : number.toLocaleString("en-US"));
const speed = (rate) => (rate === null ? "–" : `${amount(rate)}/s`);

function amount(bytes) {
  if (bytes === null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (at < units.length - 1 && bytes >= (at ? 999.5 : 1024)) { bytes /= 1024; at += 1; }
  return `${at === 0 || bytes >= 99.95 ? Math.round(bytes) : bytes.toFixed(bytes < 9.995 ? 2 : 1)} ${units[at]}`;
}

function span(seconds) {
  if (seconds === null) return "–";
  const parts = [];
  let left = Math.max(0, Math.floor(seconds));
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]]) {
    if (left >= size || parts.length || unit === "s") parts.push([Math.floor(left / size), unit]);
    left %= size;
  }
  return parts.slice(0, 2).filter(([number], at) => number || (at === 0)).map((part) => part.join("")).join(" ");
}

function ago(time, now) {
  const seconds = (now - Date.parse(time)) / 1000;
  return seconds >= -1 ? `${span(seconds)} ago` : stamp(time); // a clock that was set back makes the past the future
}

const two = (number) => String(number).padStart(2, "0");
const clock = (at) => { const d = new Date(at); return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`; };

function stamp(time) {
  const d = new Date(time);
  return Number.isNaN(d.getTime()) ? String(time) : `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${clock(d)}`;
}

// ----

$("enter").addEventListener("submit", enter);
$("leave").addEventListener("click", () => leave(""));
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && token !== null) { clearTimeout(timer); turn(); }
});
new ResizeObserver(() => {
  if (!$("board").hidden) for (const half of ["pull", "push"]) draw(half, performance.now());
}).observe($("charts"));
leave("");
