// The anthropic package for JavaScript: messages, streams, parsed objects, and its loop over tools, which would have the
// server hold the conversation and must send the whole of it.
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import { DEMO, KEY, QUESTION, SCRIPTED, check, checkWeather, finish, test } from "./cases.mjs";

const client = new Anthropic({ baseURL: DEMO, apiKey: KEY, maxRetries: 0 });
const scripted = new Anthropic({ baseURL: SCRIPTED, apiKey: KEY, maxRetries: 0 });
const Weather = z.object({ city: z.string().max(20), days: z.number().int().min(1).max(9) });
const ask = { model: "demo", max_tokens: 200, messages: [{ role: "user", content: QUESTION }] };

test("messages and streams", async () => {
  const whole = await client.messages.create(ask);
  check(whole.content[0].text.length > 0, whole);
  const streamed = await client.messages.stream(ask).finalMessage();
  check(streamed.content[0].text.length > 0 && streamed.stop_reason === "end_turn", streamed);
});
test("a parsed object", async () => {
  const parsed = await client.messages.parse({ ...ask, output_config: { format: zodOutputFormat(Weather) } });
  checkWeather(parsed.parsed_output);
});
test("models and tokens", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  check(names.join() === "demo", names);
  check((await client.messages.countTokens({ model: "demo", messages: ask.messages })).input_tokens > 0);
});
for (const stream of [false, true]) {
  test(`a tool runner${stream ? ", streamed" : ""}`, async () => {
    const seen = [];
    const run = (found) => { checkWeather(found); seen.push(found); return "rain"; };
    const tools = [betaZodTool({ name: "get_weather", description: "The weather", inputSchema: Weather, run })];
    const message = await scripted.beta.messages.toolRunner({ ...ask, model: "any", tools, stream });
    check(message.content[0].text === "done" && seen.length === 1, message);
    check(message.usage.input_tokens > 100, message.usage); // of the whole conversation
  });
}
await finish();
