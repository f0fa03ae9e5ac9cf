// Requests to the gateway, with the API key where it asks for one. The key is kept in this page alone: a reload
// forgets it, and no storage holds it.

const form = document.getElementById("key-form");
let key = "";

export function keyed() {
  return Boolean(key);
}

export async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The gateway does not answer.");
  }
  form.hidden = response.status !== 401;
  if (!response.ok) throw new Error(await reason(response));
  return response;
}

async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

export function keyForm(then) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const field = document.getElementById("key");
    key = field.value;
    field.value = "";
    then().catch(() => {}); // the next turn shows what is wrong
  });
}
