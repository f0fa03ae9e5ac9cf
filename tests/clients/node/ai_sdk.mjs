// The AI SDK, with its provider for servers that speak OpenAI's API, and with that of OpenAI itself.

import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { ARGUMENTS, BASE_URL, KEY, MODEL, QUESTION, SUM, run, schema } from "./common.mjs";

const server = { baseURL: `${BASE_URL}/v1`, apiKey: KEY };
const compatible = createOpenAICompatible({ name: "server", ...server, supportsStructuredOutputs: true });
const openai = createOpenAI(server);
const common = { prompt: QUESTION, maxRetries: 0 };

/** Calls of `add` are carried out, and what it returns is sent back. */
const adding = {
  tools: {
    add: tool({
      description: "Adds two numbers.",
      inputSchema: z.object({ a: z.number(), b: z.number() }),
      execute: async ({ a, b }) => a + b,
    }),
  },
  stopWhen: stepCountIs(3),
};

async function calls(model) {
  const { text, steps } = await generateText({ ...common, ...adding, model });
  assert.equal(text, SUM);
  assert.deepEqual(steps[0].toolCalls[0].input, ARGUMENTS);
  assert.equal(steps[0].toolResults[0].output, 42);
}

await run({
  async text() {
    const { text, usage } = await generateText({ ...common, model: compatible(MODEL) });
    assert.equal(text, SUM);
    assert.ok(usage.outputTokens > 0);
  },

  tools: () => calls(compatible(MODEL)),

  async stream() {
    const result = streamText({ ...common, ...adding, model: compatible(MODEL) });
    const kinds = new Set();
    for await (const part of result.fullStream) kinds.add(part.type);
    assert.equal(await result.text, SUM);
    for (const kind of ["reasoning-delta", "text-delta", "tool-input-delta", "tool-result", "finish"]) {
      assert.ok(kinds.has(kind), `no part ${kind} among ${[...kinds]}`);
    }
  },

  async responses() {
    const { text } = await generateText({ ...common, model: openai(MODEL) });
    assert.equal(text, SUM);
  },

  async object() {
    for (const model of [compatible(MODEL), openai.chat(MODEL), openai(MODEL)]) {
      const { object } = await generateObject({ ...common, model, schema });
      assert.deepEqual(object, ARGUMENTS);
    }
  },
});
