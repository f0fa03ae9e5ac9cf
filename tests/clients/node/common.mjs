// What the scripts share: where the server is, what is asked, and how a case is chosen.

import assert from "node:assert/strict";
import { z } from "zod";

export const { BASE_URL, KEY, MODEL } = process.env;
export const QUESTION = "What is 17 plus 25?";
export const SUM = "The sum is 42.";
export const ARGUMENTS = { a: 17, b: 25 };

/** So narrow that any model that is held to it writes the same. */
export const schema = z.object({ a: z.literal(17), b: z.literal(25) });

/** Run the case that the first argument of the script names. */
export async function run(cases) {
  const name = process.argv[2];
  assert.ok(name in cases, `no case ${name}: ${Object.keys(cases).join(", ")}`);
  await cases[name]();
}
