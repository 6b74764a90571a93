// Writes on from texts with transformers.js as its documentation does, alone and in a batch, and prints token ids:
// node tests/peers/generate.mjs EXPORT < texts.json
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, resolve } from "node:path";

const require = createRequire(new URL("../../.peers/", import.meta.url));
const { AutoModelForCausalLM, AutoTokenizer, env } = require("@huggingface/transformers");

const directory = resolve(process.argv[2]);
env.allowRemoteModels = false;
env.localModelPath = dirname(directory);
const name = basename(directory);
const { texts, tokens } = JSON.parse(readFileSync(0, "utf8"));

const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { device: "cpu" });
async function write(inputs) {
  const settings = { max_new_tokens: tokens, min_new_tokens: tokens, do_sample: false };
  const output = await model.generate({ ...inputs, ...settings });
  return output.tolist().map((row) => row.slice(-tokens).map(Number));
}

const alone = [];
for (const text of texts) alone.push((await write(tokenizer(text)))[0]);
const together = await write(tokenizer(texts, { padding: true }));
const messages = [{ role: "user", content: texts[0] }];
const chat = tokenizer.apply_chat_template(messages, { tokenize: false, add_generation_prompt: true });
console.log(JSON.stringify({ alone, together, chat }));
