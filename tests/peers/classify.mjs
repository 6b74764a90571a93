// Classifies texts with transformers.js as its documentation does, and prints token ids, logits and scores as JSON:
// node tests/peers/classify.mjs BUNDLE < texts.json
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join, resolve } from "node:path";

const require = createRequire(new URL("../../.peers/", import.meta.url));
const { AutoModelForSequenceClassification, AutoTokenizer, env, pipeline } = require("@huggingface/transformers");

const bundle = resolve(process.argv[2]);
env.allowRemoteModels = false;
env.localModelPath = dirname(bundle);
const name = basename(bundle);
const texts = JSON.parse(readFileSync(0, "utf8"));
const { max_length } = JSON.parse(readFileSync(join(bundle, "task.json"), "utf8"));

const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForSequenceClassification.from_pretrained(name);
async function run(batch) {
  const inputs = await tokenizer(batch, { padding: true, truncation: true, max_length });
  const { logits } = await model(inputs);
  return { ids: inputs.input_ids.tolist(), mask: inputs.attention_mask.tolist(), logits: logits.tolist() };
}

const alone = [];
for (const text of texts) alone.push(await run([text]));
const classifier = await pipeline("text-classification", name);
const scores = [];
for (const text of texts) {
  const found = await classifier(text, { top_k: null });
  scores.push(Object.fromEntries(found.map(({ label, score }) => [label, score])));
}
console.log(JSON.stringify({ alone, together: await run(texts), scores }, (_, v) => (typeof v === "bigint" ? Number(v) : v)));
