// Asks the gateway for its state every two seconds and shows it.

import { duration, showAccounts, showServers } from "./board.js";
import { charts } from "./charts.js";
import { conversation } from "./chat.js";
import { call, keyForm } from "./gateway.js";

const EVERY = 2000;
const $ = (id) => document.getElementById(id);
const chat = conversation();
const drawCharts = charts($("charts"));

async function refresh() {
  const [status, history, models] = await Promise.all(
    ["status", "status/history", "v1/models"].map((path) => call(path).then((response) => response.json())),
  );
  showSummary(status);
  showServers(status.replicas);
  showAccounts(status.openai_jumpers);
  showTotals(status.requests, history);
  drawCharts(history);
  chat.offer(models.data.map((model) => model.id), status.replicas);
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

function showTotals(requests, history) {
  const slot = history.length > 1 ? history[0].age - history[1].age : 2; // seconds
  const count = (field) => Math.round(history.reduce((sum, point) => sum + slot * point[field], 0));
  const totals = [
    ["requests", count("requests_per_second")],
    ["server faults", count("failed_per_second")],
    ["client errors", count("client_errors_per_second")],
    ["streams continued elsewhere, since the start", requests.resumed_streams],
    ["retries, since the start", requests.retries],
  ];
  $("totals").replaceChildren(
    ...totals.map(([name, value]) => {
      const group = document.createElement("div");
      const [term, figure] = ["dt", "dd"].map((kind) => document.createElement(kind));
      term.textContent = name;
      figure.textContent = value.toLocaleString();
      group.append(term, figure);
      return group;
    }),
  );
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
