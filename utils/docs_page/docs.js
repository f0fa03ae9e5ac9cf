// Shows openapi.json: every route with its parameters, its body and its answers. Schemas open on demand, for
// some contain themselves.

const METHODS = ["get", "post", "put", "patch", "delete"];
const LIMITS = {
  minimum: "≥", exclusiveMinimum: ">", maximum: "≤", exclusiveMaximum: "<",
  minLength: "length ≥", maxLength: "length ≤", minItems: "items ≥", maxItems: "items ≤", pattern: "matches",
};
let schemas = {};

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function resolve(schema) {
  const name = schema.$ref?.split("/").pop();
  return name ? { title: name, ...schemas[name] } : schema;
}

function alternatives(schema) {
  return schema.anyOf ?? schema.oneOf ?? schema.allOf ?? [];
}

// What a value may be, in a few words.
function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  const several = alternatives(schema);
  if (several.length) return several.map(kind).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return `[${kind(schema.items ?? {})}]`;
  return schema.type ?? "anything";
}

function limits(schema) {
  return Object.entries(LIMITS).filter(([key]) => key in schema).map(([key, sign]) => `${sign} ${schema[key]}`);
}

// The objects that a value may be or hold.
function objects(schema) {
  const found = resolve(schema);
  if (found.properties) return [found];
  const inner = [...alternatives(found)];
  if (found.items) inner.push(found.items);
  return inner.flatMap(objects);
}

function field(name, schema, required) {
  const item = element("li");
  item.append(element("code", name), " ", element("span", kind(schema), "quiet"));
  const notes = required ? ["required"] : [];
  if (schema.default !== undefined && schema.default !== null) notes.push(`default ${JSON.stringify(schema.default)}`);
  notes.push(...limits(schema), ...alternatives(schema).flatMap(limits));
  if (notes.length) item.append(" — ", notes.join(", "));
  if (schema.description) item.append(element("p", schema.description));
  item.append(...objects(schema).map(opened));
  return item;
}

function opened(schema) {
  const box = element("details");
  box.append(element("summary", schema.title ?? "object"));
  box.addEventListener("toggle", () => {
    if (box.childElementCount > 1) return;
    if (schema.description) box.append(element("p", schema.description, "quiet"));
    const list = element("ul");
    const required = schema.required ?? [];
    for (const [name, one] of Object.entries(schema.properties)) list.append(field(name, one, required.includes(name)));
    box.append(list);
  });
  return box;
}

function content(title, description, media) {
  const parts = [element("h2", title)];
  if (description) parts.push(element("p", description));
  for (const [type, { schema = {} }] of Object.entries(media ?? {})) {
    parts.push(element("p", `${type}: ${kind(schema)}`, "quiet"), ...objects(schema).map(opened));
  }
  return parts;
}

function operation(path, method, said) {
  const box = element("details");
  const summary = element("summary");
  summary.append(element("span", method.toUpperCase(), "method"), element("code", path));
  summary.append(" ", element("span", said.description?.split("\n")[0] ?? "", "quiet"));
  box.append(summary);
  if (said.parameters?.length) {
    const list = element("ul");
    for (const one of said.parameters) list.append(field(`${one.name} (${one.in})`, one.schema ?? {}, one.required));
    box.append(element("h2", "Parameters"), list);
  }
  if (said.requestBody) box.append(...content("Body", "", said.requestBody.content));
  for (const [status, answer] of Object.entries(said.responses ?? {})) {
    box.append(...content(status, answer.description, answer.content));
  }
  return box;
}

try {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`openapi.json: ${answer.status}`);
  const api = await answer.json();
  schemas = api.components?.schemas ?? {};
  document.title = document.getElementById("title").textContent = `${api.info.title} ${api.info.version}`;
  const main = document.querySelector("main");
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of METHODS) if (item[method]) main.append(operation(path, method, item[method]));
  }
} catch (error) {
  const problem = document.getElementById("problem");
  problem.textContent = String(error);
  problem.hidden = false;
}
