// Cases of one client in JavaScript, as cases.py has them for Python.
export const DEMO = process.env.DEMO_URL ?? "http://localhost:8000";
export const SCRIPTED = process.env.SCRIPTED_URL ?? "http://localhost:8001";
export const KEY = "none";
export const QUESTION = "What is 347 + 586?";
export const WEATHER = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
};

const cases = [];

export function test(name, run) {
  cases.push([name, run]);
}

export function check(condition, shown) {
  if (!condition) throw new Error(`unexpected: ${JSON.stringify(shown)}`);
}

export function checkWeather(found) {
  check(typeof found.city === "string" && Number.isInteger(found.days) && found.days >= 1 && found.days <= 9, found);
}

export async function finish() {
  const counts = { ok: 0, failed: 0, skipped: 0 };
  for (const [name, run] of cases) {
    try {
      await run();
      counts.ok += 1;
      console.log(`  ok       ${name}`);
    } catch (error) {
      counts.failed += 1;
      console.log(`  FAILED   ${name}: ${String(error?.stack ?? error).slice(0, 500)}`);
    }
  }
  console.log(JSON.stringify(counts));
  process.exit(counts.failed ? 1 : 0);
}
