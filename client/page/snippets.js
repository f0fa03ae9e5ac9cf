// The request on the page as a command line and as a program.

export function curl(route, body, keyed) {
  const key = keyed ? " \\\n  -H 'Authorization: Bearer YOUR_KEY'" : "";
  const data = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${location.origin}/${route} -H 'Content-Type: application/json'${key} -d '${data}'`;
}

export function python(route, body, keyed) {
  const method = route.endsWith("chat/completions") ? "chat.completions" : "completions";
  const fields = Object.entries(body).filter(([name]) => name !== "stream" && name !== "stream_options");
  const lines = fields.map(([name, value]) => `    ${name}=${literal(value)},`);
  const said = method === "chat.completions" ? "message.content" : "text";
  return [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${location.origin}/v1", api_key="${keyed ? "YOUR_KEY" : "none"}")`,
    `answer = client.${method}.create(`,
    ...lines,
    ")",
    `print(answer.choices[0].${said})`,
  ].join("\n");
}

function literal(value) {
  // JSON's strings are Python's; of the rest only these are spelt otherwise, and none is within a string here
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each)}`).join(", ")}}`;
}
