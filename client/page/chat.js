// The conversation: several turns, streamed where the model's servers can stream.

import { call, keyed } from "./gateway.js";
import { markdown } from "./markdown.js";
import { curl, python } from "./snippets.js";
import { events } from "./stream.js";

const $ = (id) => document.getElementById(id);
const REDRAW = 60; // milliseconds between two drawings of an answer that grows

export function conversation() {
  let turns = []; // {role, content} as they are sent
  let running = null; // AbortController of the answer on its way
  let replicas = [];

  $("prompt-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running && $("prompt").value.trim() && $("model").value) ask($("prompt").value);
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("prompt-form").requestSubmit();
  });
  $("prompt").addEventListener("input", grow);
  $("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  $("new").addEventListener("click", () => {
    running?.abort();
    turns = [];
    $("turns").replaceChildren();
    $("as").hidden = true;
    $("prompt").focus();
  });
  for (const kind of ["curl", "python"]) $(`as-${kind}`).addEventListener("click", () => showSnippet(kind));

  async function ask(text) {
    const chat = $("mode").value === "chat";
    if (chat) turns.push({ role: "user", content: text });
    show("user").body.textContent = text;
    $("prompt").value = "";
    grow();
    const turn = show("assistant");
    const answer = { content: "", reasoning: "", calls: [], finish: null, usage: null, started: performance.now(), first: null };
    running = new AbortController();
    busy(turn, true);
    let drawn = 0;
    try {
      for await (const piece of pieces(request(chat, text), running.signal)) {
        take(answer, piece);
        if (performance.now() - drawn > REDRAW) {
          draw(turn, answer);
          drawn = performance.now();
        }
      }
      draw(turn, answer);
      turn.foot.textContent = figures(answer);
    } catch (error) {
      draw(turn, answer);
      if (error.name === "AbortError") turn.foot.textContent = "stopped";
      else fail(turn, error.message);
    } finally {
      if (chat && answer.content) turns.push({ role: "assistant", content: answer.content });
      else if (chat) turns.pop(); // a question without an answer is asked again
      running = null;
      busy(turn, false);
      $("as").hidden = false;
    }
  }

  function request(chat, text) {
    const model = $("model").value;
    const system = $("system").value.trim();
    const stream = streams(model);
    const messages = system ? [{ role: "system", content: system }, ...turns] : turns;
    return {
      route: chat ? "v1/chat/completions" : "v1/completions",
      body: {
        model,
        ...(chat ? { messages: [...messages] } : { prompt: text }),
        max_tokens: Number($("max-tokens").value),
        temperature: Number($("temperature").value),
        ...(stream ? { stream, stream_options: { include_usage: true } } : {}),
      },
    };
  }

  async function* pieces({ route, body }, signal) {
    last = { route, body };
    const response = await call(route, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    if (!body.stream) {
      yield await response.json();
      return;
    }
    for await (const data of events(response.body)) {
      if (data.error) throw new Error(data.error.message);
      yield data;
    }
  }

  function streams(model) {
    const servers = replicas.filter((replica) => replica.model_id === model);
    return !servers.length || servers.some((replica) => replica.kind !== "static_batching");
  }

  let last = null; // the request that was sent last

  function showSnippet(kind) {
    const text = (kind === "curl" ? curl : python)(last.route, last.body, keyed());
    $("snippet").hidden = false;
    $("snippet").textContent = text;
    copy(text, $(`as-${kind}`));
  }

  return {
    // the models to choose from, and the servers behind them
    offer(models, servers) {
      replicas = servers;
      const select = $("model");
      const known = [...select.options].map((option) => option.value);
      if (known.join("\n") === models.join("\n")) return;
      const chosen = select.value;
      select.replaceChildren(...models.map((model) => new Option(model, model)));
      if (models.includes(chosen)) select.value = chosen;
    },
  };
}

function take(answer, data) {
  const choice = data.choices?.[0];
  const part = choice?.delta ?? choice?.message ?? { content: choice?.text };
  if (part.content || part.reasoning_content || part.tool_calls) answer.first ??= performance.now();
  answer.content += part.content ?? "";
  answer.reasoning += part.reasoning_content ?? "";
  for (const [at, call] of (part.tool_calls ?? []).entries()) {
    const known = (answer.calls[call.index ?? at] ??= { name: "", arguments: "" });
    known.name += call.function?.name ?? "";
    known.arguments += call.function?.arguments ?? "";
  }
  answer.finish = choice?.finish_reason ?? answer.finish;
  answer.usage = data.usage ?? answer.usage;
}

function show(role) {
  const turn = document.createElement("li");
  turn.className = `turn ${role}`;
  const who = turn.appendChild(document.createElement("h3"));
  who.textContent = role === "user" ? "You" : $("model").value;
  const body = turn.appendChild(document.createElement("div"));
  body.className = "body";
  const foot = turn.appendChild(document.createElement("p"));
  foot.className = "foot";
  $("turns").append(turn);
  turn.scrollIntoView({ block: "nearest" });
  return { turn, body, foot };
}

function draw({ turn, body }, answer) {
  const atEnd = $("turns").scrollHeight - $("turns").scrollTop - $("turns").clientHeight < 60;
  const parts = [];
  if (answer.reasoning) {
    const details = document.createElement("details");
    details.open = body.querySelector("details.reasoning")?.open ?? !answer.content;
    details.className = "reasoning";
    details.append(labelled("summary", "Reasoning"), markdown(answer.reasoning));
    parts.push(details);
  }
  parts.push(markdown(answer.content));
  for (const call of answer.calls.filter(Boolean)) {
    const box = labelled("div", "", "call");
    box.append(labelled("b", `calls ${call.name}`), labelled("pre", call.arguments));
    parts.push(box);
  }
  body.replaceChildren(...parts);
  if (answer.content && !turn.querySelector(".copy")) {
    const button = labelled("button", "Copy", "copy");
    button.type = "button";
    button.addEventListener("click", () => copy(answer.content, button));
    turn.querySelector("h3").append(button);
  }
  if (atEnd) $("turns").scrollTop = $("turns").scrollHeight;
}

function fail({ turn, body }, message) {
  turn.classList.add("failed");
  body.append(labelled("p", message, "error"));
}

function labelled(name, text, kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

async function copy(text, button) {
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it and copy"; // the browser allows no access to the clipboard
  }
  setTimeout(() => (button.textContent = said), 1500);
}

function busy({ turn }, is) {
  $("send").disabled = is;
  $("stop").hidden = !is;
  turn.setAttribute("aria-busy", is);
}

function grow() {
  const field = $("prompt");
  field.rows = Math.min(8, Math.max(2, field.value.split("\n").length));
}

function figures(answer) {
  const end = performance.now();
  const parts = [];
  const tokens = answer.usage?.completion_tokens;
  if (answer.finish) parts.push({ stop: "complete", length: "cut at the token limit", tool_calls: "calls a tool" }[answer.finish] ?? answer.finish);
  if (tokens !== undefined) parts.push(`${tokens} tokens`);
  if (answer.first !== null && answer.first < end - 1) parts.push(`first after ${Math.round(answer.first - answer.started)} ms`);
  if (tokens > 1) parts.push(`${Math.round((1000 * tokens) / (end - answer.started)).toLocaleString()} tokens/s`);
  return parts.join(" · ");
}
