// The openai package for JavaScript: chat, parsed output, tools, responses.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { DEMO, KEY, QUESTION, SCRIPTED, WEATHER, check, checkWeather, finish, test } from "./cases.mjs";

const client = new OpenAI({ baseURL: `${DEMO}/v1`, apiKey: KEY, maxRetries: 0 });
const scripted = new OpenAI({ baseURL: `${SCRIPTED}/v1`, apiKey: KEY, maxRetries: 0 });
const messages = [{ role: "user", content: QUESTION }];
const tools = [{ type: "function", function: { name: "get_weather", parameters: WEATHER, strict: true } }];
const Weather = z.object({ city: z.string().max(20), days: z.number().int().min(1).max(9) });

test("chat and its stream", async () => {
  const whole = await client.chat.completions.create({ model: "demo", messages, temperature: 0 });
  check(whole.choices[0].message.content.includes("933"), whole);
  const stream = client.chat.completions.stream({ model: "demo", messages, temperature: 0 });
  check((await stream.finalContent()) === whole.choices[0].message.content, whole);
});
test("parse", async () => {
  const answer = await client.chat.completions.parse({
    model: "demo", messages, max_tokens: 400, response_format: zodResponseFormat(Weather, "weather"),
  });
  checkWeather(answer.choices[0].message.parsed);
});
test("a required tool", async () => {
  const answer = await client.chat.completions.create({
    model: "demo", messages, tools, tool_choice: "required", max_tokens: 400,
  });
  checkWeather(JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments));
});
test("a tool loop by itself", async () => {
  const run = scripted.chat.completions.runTools({
    model: "any", messages,
    tools: [{ type: "function", function: { name: "get_weather", parameters: WEATHER, parse: JSON.parse,
      function: async (found) => { checkWeather(found); return "rain"; } } }],
  });
  check((await run.finalContent()) === "done", "no end");
});
test("responses and their stream", async () => {
  const whole = await client.responses.create({ model: "demo", input: QUESTION, temperature: 0 });
  check(whole.output_text.includes("933"), whole);
  const stream = client.responses.stream({ model: "demo", input: QUESTION, temperature: 0 });
  check((await stream.finalResponse()).output_text === whole.output_text, whole);
});
await finish();
