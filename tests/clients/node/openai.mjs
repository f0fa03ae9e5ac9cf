// The SDK of OpenAI for node.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { ARGUMENTS, BASE_URL, KEY, MODEL, QUESTION, SUM, run, schema } from "./common.mjs";

const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: KEY, maxRetries: 0 });
const messages = [{ role: "user", content: QUESTION }];
const parameters = { type: "object", properties: { a: { type: "integer" }, b: { type: "integer" } } };
const described = { name: "add", description: "Adds two numbers.", parameters };
const tools = [{ type: "function", function: described }];

await run({
  async chat() {
    const answer = await client.chat.completions.create({ model: MODEL, messages });
    assert.equal(answer.choices[0].message.content, SUM);
  },

  async tools() {
    const runner = client.chat.completions.runTools({
      model: MODEL,
      messages,
      tools: [
        {
          type: "function",
          function: { ...described, parse: JSON.parse, function: ({ a, b }) => String(a + b) },
        },
      ],
    });
    assert.equal(await runner.finalContent(), SUM);
    assert.equal(await runner.finalFunctionToolCallResult(), "42");
  },

  async stream() {
    const stream = client.chat.completions.stream({ model: MODEL, messages, tools });
    let deltas = "";
    stream.on("tool_calls.function.arguments.delta", ({ arguments_delta: delta }) => (deltas += delta));
    const answer = await stream.finalChatCompletion();
    const [call] = answer.choices[0].message.tool_calls;
    assert.deepEqual(JSON.parse(call.function.arguments), ARGUMENTS);
    assert.deepEqual(JSON.parse(deltas), ARGUMENTS);
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
  },

  async responses() {
    const stream = client.responses.stream({
      model: MODEL,
      input: messages,
      tools: [{ type: "function", ...described, strict: false }],
    });
    const answer = await stream.finalResponse();
    const call = answer.output.find((item) => item.type === "function_call");
    assert.deepEqual(JSON.parse(call.arguments), ARGUMENTS);
  },

  async completions() {
    const answer = await client.completions.create({
      model: MODEL,
      prompt: "The sum is",
      echo: true,
      logprobs: 1,
      max_tokens: 0,
    });
    const [{ text, logprobs }] = answer.choices;
    assert.equal(text, "The sum is");
    assert.equal(logprobs.token_logprobs[0], null);
    assert.equal(logprobs.tokens.length, answer.usage.prompt_tokens);
  },

  async parse() {
    const answer = await client.chat.completions.parse({
      model: MODEL,
      messages,
      response_format: zodResponseFormat(schema, "sum"),
    });
    assert.deepEqual(answer.choices[0].message.parsed, ARGUMENTS);
    const response = await client.responses.parse({
      model: MODEL,
      input: messages,
      text: { format: zodTextFormat(schema, "sum") },
    });
    assert.deepEqual(response.output_parsed, ARGUMENTS);
  },
});
