// Vercel's AI SDK: objects and tools, with its default provider (responses) and the one for compatible servers (chat).
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { DEMO, KEY, QUESTION, SCRIPTED, check, checkWeather, finish, test } from "./cases.mjs";

const Weather = z.object({ city: z.string().max(20), days: z.number().int().min(1).max(9) });
const providers = (url, name) => ({
  responses: createOpenAI({ baseURL: `${url}/v1`, apiKey: KEY })(name),
  chat: createOpenAICompatible({ name: "local", baseURL: `${url}/v1`, apiKey: KEY, supportsStructuredOutputs: true })(name),
});
const tools = {
  get_weather: tool({ description: "The weather", inputSchema: Weather,
    execute: async (found) => { checkWeather(found); return "rain"; } }),
};

for (const [name, model] of Object.entries(providers(DEMO, "demo"))) {
  test(`${name}: text`, async () => {
    const { text } = await generateText({ model, prompt: QUESTION, temperature: 0, maxRetries: 0 });
    check(text.includes("933"), text);
  });
  test(`${name}: an object`, async () => {
    const { output } = await generateText({
      model, prompt: QUESTION, output: Output.object({ schema: Weather }), maxOutputTokens: 400, maxRetries: 0,
    });
    checkWeather(output);
  });
}
for (const [name, model] of Object.entries(providers(SCRIPTED, "any"))) {
  test(`${name}: a streamed tool loop`, async () => {
    const run = streamText({ model, prompt: QUESTION, tools, stopWhen: stepCountIs(3), maxRetries: 0 });
    let text = "";
    for await (const part of run.textStream) text += part;
    check(text.endsWith("done"), text);
  });
}
await finish();
