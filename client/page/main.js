// Asks the gateway for its state every two seconds and shows it.

import { charts } from "./charts.js";
import { call, keyForm } from "./gateway.js";
import { promptBox } from "./prompt.js";

const EVERY = 2000;
const $ = (id) => document.getElementById(id);
const box = promptBox();
const drawCharts = charts($("charts"));

async function refresh() {
  const [status, history, models] = await Promise.all(
    ["status", "status/history", "v1/models"].map((path) => call(path).then((response) => response.json())),
  );
  showSummary(status);
  showServers(status.replicas);
  showAccounts(status.openai_jumpers);
  drawCharts(history);
  box.offer(models.data.map((model) => model.id), status.replicas);
}

function showSummary(status) {
  const { received, in_flight, waiting } = status.requests;
  const parts = [
    status.state,
    `up ${duration(status.uptime_seconds)}`,
    `${received.toLocaleString()} requests`,
    `${in_flight} in flight`,
  ];
  if (waiting) parts.push(`${waiting} waiting for a server`);
  $("summary").textContent = parts.join(" · ");
  alertOf(status.config.error && `The configuration on disk is not in use: ${status.config.error}`);
}

function showServers(replicas) {
  const rows = replicas.map((replica) => {
    const load = replica.load ?? {};
    const kind = replica.kind === "continuous_batching" ? "continuous batching" : "static batching";
    const waiting = load.waiting === undefined ? "–" : load.waiting + (load.swapped ?? 0);
    const breaker = replica.breaker === "closed" ? "" : `, breaker ${replica.breaker.replace("_", " ")}`;
    const reason = replica.reason.startsWith("reports") ? "" : replica.reason; // it says what the state says
    return row([
      ["Server", cell(replica.url.replace(/^https?:\/\//, ""), kind)],
      ["Model", cell(replica.model_id ?? "not known yet")],
      ["State", state(replica.state, `for ${duration(replica.seconds_in_state)}${breaker}`, reason)],
      ["Running", cell(load.running ?? "–"), true],
      ["Waiting", cell(waiting), true],
      ["Cache in use", load.kv_cache_usage === undefined ? cell("–") : meter(load.kv_cache_usage)],
      ["Tokens/s", cell(load.tokens_per_second === undefined ? "–" : Math.round(load.tokens_per_second)), true],
      ["Work ahead", cell(`${Math.round(replica.expected_tokens).toLocaleString()} tokens`), true],
    ]);
  });
  fill($("servers"), rows, "No servers: add their URLs to client_config.json.");
}

function showAccounts(accounts) {
  $("accounts").hidden = !accounts.length;
  const rows = accounts.map((account) =>
    row([
      ["Account", cell(account.name)],
      ["Models", cell(account.models?.join(", ") ?? "any, on /chat_completion/v1")],
      ["State", account.available ? state("ready", "") : state("down", `rests ${duration(account.resting_seconds)}`, account.last_error)],
      ["Requests", cell(account.requests_in_flight), true],
      ["Tokens used", cell(account.tokens_used.toLocaleString()), true],
    ]),
  );
  fill($("accounts"), rows, "");
}

// building the tables; text only ever goes in as text

function fill(table, rows, otherwise) {
  if (!rows.length) {
    const empty = element("td", otherwise);
    empty.className = "empty";
    empty.colSpan = 99;
    rows = [element("tr")];
    rows[0].append(empty);
  }
  table.tBodies[0].replaceChildren(...rows);
}

function row(cells) {
  const tr = element("tr");
  for (const [label, content, number] of cells) {
    const td = element("td");
    td.dataset.label = label;
    td.classList.toggle("number", Boolean(number));
    td.append(content);
    tr.append(td);
  }
  return tr;
}

function element(name, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function cell(text, small) {
  const div = element("div", text);
  if (small) div.append(element("small", small));
  return div;
}

function state(name, ...notes) {
  const div = element("div");
  const label = element("span", name);
  label.className = `state ${name}`;
  div.append(label, ...notes.filter(Boolean).map((note) => element("small", note)));
  return div;
}

function meter(share) {
  const div = element("div");
  const bar = element("meter");
  bar.value = share;
  bar.high = 0.9;
  bar.setAttribute("aria-label", "cache in use");
  div.append(bar, ` ${Math.round(100 * share)} %`);
  return div;
}

function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

function alertOf(text) {
  $("alert").hidden = !text;
  if (text) $("alert").textContent = text;
}

async function keepRefreshing() {
  for (;;) {
    if (!document.hidden) {
      try {
        await refresh();
      } catch (error) {
        alertOf(error.message);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY));
  }
}

keyForm(refresh);
keepRefreshing();
