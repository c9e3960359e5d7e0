// Something to begin with: one example of each kind of answer. `values`, where there are any, are put into
// the settings' controls; `needs` is what the model must be capable of, as `/v1/models` names it.

const text = (value) => JSON.stringify(value, null, 2);

const PERSON = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};
const WEATHER = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city.",
    parameters: {
      type: "object",
      properties: { city: { enum: ["Paris", "Rome", "Oslo"] } },
      required: ["city"],
    },
  },
};

export const EXAMPLES = [
  { shown: "What is 347 + 586?", asks: "What is 347 + 586?" },
  { shown: "Tell me a short story.", asks: "Tell me a short story." },
  {
    shown: "JSON: a name and an age",
    asks: "Ada is 36 years old.",
    values: { response_format: "json_schema", schema: text(PERSON) },
  },
  {
    shown: "A tool: the weather in Paris",
    asks: "How is the weather in Paris?",
    values: { tools: text([WEATHER]), tool_choice: "required" },
    needs: "tools",
  },
  {
    shown: "Reasoning: words from last to first",
    asks: "Reverse the order of these words.\nriver, apple, moon, castle, garden",
    values: { reasoning_effort: "medium" },
    needs: "reasoning",
  },
];
