// The box to try a prompt: streams the answer where the model's servers can stream.

import { call } from "./gateway.js";

const $ = (id) => document.getElementById(id);

export function promptBox() {
  let running = null; // AbortController of the answer on its way
  let replicas = [];

  $("prompt-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) ask();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("prompt-form").requestSubmit();
  });
  $("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });

  async function ask() {
    const answer = $("answer");
    const started = performance.now();
    let first = null;
    let pieces = 0;
    running = new AbortController();
    busy(true);
    answer.textContent = "";
    answer.classList.remove("failed");
    $("timing").textContent = "";
    try {
      for await (const text of completion(running.signal)) {
        first ??= performance.now();
        pieces += 1;
        answer.append(text);
      }
      $("timing").textContent = timing(started, first, pieces);
    } catch (error) {
      const stopped = error.name === "AbortError";
      answer.classList.toggle("failed", !stopped);
      if (!stopped) answer.append((answer.textContent ? "\n" : "") + error.message);
      $("timing").textContent = stopped ? "stopped" : "";
    } finally {
      running = null;
      busy(false);
    }
  }

  async function* completion(signal) {
    const chat = $("mode").value === "chat";
    const model = $("model").value;
    const stream = streams(model);
    const body = {
      model,
      stream,
      max_tokens: Number($("max-tokens").value),
      temperature: Number($("temperature").value),
      ...(chat ? { messages: [{ role: "user", content: $("prompt").value }] } : { prompt: $("prompt").value }),
    };
    const response = await call(chat ? "v1/chat/completions" : "v1/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    if (!stream) {
      const [choice] = (await response.json()).choices;
      yield chat ? choice.message.content : choice.text;
      return;
    }
    for await (const data of events(response.body)) {
      if (data.error) throw new Error(data.error.message);
      const choice = data.choices?.[0];
      const text = chat ? choice?.delta?.content : choice?.text;
      if (text) yield text;
    }
  }

  function streams(model) {
    const servers = replicas.filter((replica) => replica.model_id === model);
    return !servers.length || servers.some((replica) => replica.kind === "continuous_batching");
  }

  function busy(is) {
    $("send").disabled = is;
    $("stop").disabled = !is;
    $("answer").setAttribute("aria-busy", is);
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

async function* events(body) {
  // server-sent events, as parsed JSON, until [DONE]
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The answer broke off.");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

function timing(started, first, pieces) {
  const total = (performance.now() - started) / 1000;
  if (first === null) return `no text, ${total.toFixed(2)} s`;
  const parts = [`first text after ${Math.round(first - started)} ms`, `${total.toFixed(2)} s in all`];
  const rest = (performance.now() - first) / 1000;
  if (pieces > 1) parts.push(`${Math.round((pieces - 1) / rest)} pieces/s`);
  return parts.join(" · ");
}
