// What the gateway knows of its servers and accounts, as tables. Text only ever goes in as text.

const $ = (id) => document.getElementById(id);

export function showServers(replicas) {
  const rows = replicas.map((replica) => {
    const load = replica.load ?? {};
    const kind = replica.engine ? `${replica.engine} ${replica.version ?? ""}`.trim() : replica.kind.replace("_", " ");
    const usage = replica.kind === "static_batching" ? null : load.kv_cache_usage;
    const waiting = load.waiting === undefined ? "–" : load.waiting + (load.swapped ?? 0);
    const breaker = replica.breaker === "closed" ? "" : `, breaker ${replica.breaker.replace("_", " ")}`;
    const weights = replica.other_weights && `other weights than another server of this model: ${replica.fingerprint.slice(0, 8)}`;
    const reason = replica.reason.startsWith("reports") ? "" : replica.reason; // it says what the state says
    return row([
      ["Server", cell(replica.url.replace(/^https?:\/\//, ""), kind)],
      ["Model", cell(replica.model_id ?? "not known yet", weights)],
      ["State", state(replica.state, `for ${duration(replica.seconds_in_state)}${breaker}`, reason)],
      ["Running", cell(load.running ?? "–"), true],
      ["Waiting", cell(waiting), true],
      ["Cache in use", usage == null ? cell("–") : meter(usage)],
      ["Tokens/s", cell(load.tokens_per_second === undefined ? "–" : Math.round(load.tokens_per_second).toLocaleString()), true],
      ["Work ahead", cell(`${Math.round(replica.expected_tokens).toLocaleString()} tokens`), true],
    ]);
  });
  fill($("servers"), rows, "No servers: add their URLs to client_config.json.");
}

export function showAccounts(accounts) {
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

export function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}
