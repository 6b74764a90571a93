// The process that runs a classifier in Node.js, with onnxruntime's JavaScript API: `node --expose-gc node_worker.mjs`.
//
// It speaks as `edgekit.benchmarking.worker` does, one JSON object a line, and answers one more question:
//
//     {"command": "run", "inputs": {"input_ids": [[...]], ...}} -> {"outputs": {"logits": [[...]]}}
//
// `open` also takes "package" (onnxruntime-node, onnxruntime-web or @huggingface/transformers), "modules" (the
// node_modules that holds it) and "file"; transformers.js opens the whole "directory". The process is pinned and limited
// from outside.

import { readFileSync, existsSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname } from "node:path";
import { createInterface } from "node:readline";

console.log = console.error; // libraries print where they like; only answers may go to the pipe

const SPIN_MS = 2; // timers are that coarse

// The least that onnxruntime opens, one Identity of a float: it brings WebAssembly up before a load is timed.
const IDENTITY = Buffer.from(
  "CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEA0=",
  "base64",
);

let ort, session;
let batches = [];
let next = 0;

function memory() {
  const status = existsSync("/proc/self/status") ? readFileSync("/proc/self/status", "ascii") : "";
  const size = (name) => 1024 * Number((status.match(new RegExp(`^${name}:\\s*(\\d+) kB`, "m")) ?? [0, 0])[1]);
  return {
    peak_bytes: size("VmHWM") || process.resourceUsage().maxRSS * 1024,
    resident_bytes: size("VmRSS") || process.memoryUsage().rss,
    anonymous_bytes: size("RssAnon"),
    file_bytes: size("RssFile"),
    shared_bytes: size("RssShmem"),
  };
}

function tensor(rows) {
  const values = BigInt64Array.from(rows.flat(), BigInt);
  return new ort.Tensor("int64", values, [rows.length, rows[0].length]);
}

function feedsOf(inputIds) {
  const given = {
    input_ids: inputIds,
    attention_mask: inputIds.map((row) => row.map(() => 1)),
    token_type_ids: inputIds.map((row) => row.map(() => 0)),
  };
  return Object.fromEntries(session.inputNames.map((name) => [name, tensor(given[name])]));
}

function optionsFor(request, provider) {
  return {
    executionProviders: [provider],
    graphOptimizationLevel: request.graph_optimization === false ? "disabled" : "all",
    intraOpNumThreads: request.threads,
    interOpNumThreads: 1,
    logSeverityLevel: 3,
    extra: { session: { intra_op: { allow_spinning: "0" }, inter_op: { allow_spinning: "0" } } },
  };
}

// What opens the model, of an imported onnxruntime; it returns a session.
async function onnxruntimeOpener(request) {
  const isWeb = request.package === "onnxruntime-web";
  const options = optionsFor(request, isWeb ? "wasm" : "cpu");
  let model = request.file;
  if (isWeb) {
    ort.env.wasm.numThreads = request.threads;
    await (await ort.InferenceSession.create(new Uint8Array(IDENTITY), { executionProviders: ["wasm"] })).release();
    model = new Uint8Array(readFileSync(request.file));
    const beside = `${request.file}_data`;
    if (existsSync(beside)) options.externalData = [{ path: basename(beside), data: new Uint8Array(readFileSync(beside)) }];
  }
  return () => ort.InferenceSession.create(model, options);
}

// The same of transformers.js: its model looks like a session, whose calls are the model's own.
function transformersOpener(request) {
  const { AutoModelForSequenceClassification, env } = ort;
  env.allowRemoteModels = false;
  env.localModelPath = `${dirname(request.directory)}/`;
  const options = { device: "cpu", dtype: "fp32", local_files_only: true, session_options: optionsFor(request, "cpu") };
  return async () => {
    const model = await AutoModelForSequenceClassification.from_pretrained(basename(request.directory), options);
    const { inputNames, outputNames } = model.sessions.model;
    return { inputNames, outputNames, run: (feeds) => model(feeds) };
  };
}

async function open(request) {
  const baseline = memory().resident_bytes;
  ort = createRequire(`${request.modules}/`)(request.package);
  const isTransformers = request.package === "@huggingface/transformers";
  const create = isTransformers ? transformersOpener(request) : await onnxruntimeOpener(request);
  const library = memory().resident_bytes;
  const started = process.hrtime.bigint();
  try {
    session = await create();
  } catch (error) {
    throw Object.assign(new Error(`${request.file}: ${request.package} cannot open it: ${error.message}`), {
      type: "ModelError",
    });
  }
  return {
    load_ms: Number(process.hrtime.bigint() - started) / 1e6,
    cores: request.cores ?? [],
    baseline_bytes: baseline,
    library_bytes: library,
    input_names: session.inputNames,
    output_names: session.outputNames,
  };
}

async function run(request) {
  const feeds = Object.fromEntries(session.inputNames.map((name) => [name, tensor(request.inputs[name])]));
  const outputs = {};
  for (const [name, value] of Object.entries(await session.run(feeds))) {
    const [rows, columns] = value.dims;
    const numbers = Array.from(value.data, Number);
    outputs[name] = Array.from({ length: rows }, (_, row) => numbers.slice(row * columns, (row + 1) * columns));
  }
  return { outputs };
}

async function sample(request) {
  const deadline = process.hrtime.bigint() + BigInt(Math.round(request.seconds * 1e9));
  const samples = [];
  globalThis.gc?.();
  while (samples.length < request.runs) {
    const feeds = batches[next];
    next = (next + 1) % batches.length;
    const started = process.hrtime.bigint();
    await session.run(feeds);
    const ended = process.hrtime.bigint();
    samples.push(Number(ended - started));
    if (ended >= deadline) break;
  }
  return { samples_ns: samples };
}

async function serve(request) {
  const latencies = [];
  globalThis.gc?.();
  const origin = process.hrtime.bigint();
  for (const arrival of request.arrivals_ns) {
    const due = origin + BigInt(arrival);
    const early = Number(due - process.hrtime.bigint()) / 1e6;
    if (early > SPIN_MS) await new Promise((resolve) => setTimeout(resolve, early - SPIN_MS));
    while (process.hrtime.bigint() < due);
    const feeds = batches[next];
    next = (next + 1) % batches.length;
    await session.run(feeds);
    latencies.push(Number(process.hrtime.bigint() - due));
    if (latencies.at(-1) > request.give_up_ns) break;
  }
  return { latencies_ns: latencies };
}

function inputs(request) {
  batches = request.input_ids.map(feedsOf);
  next = 0;
  return {};
}

const answers = { open, inputs, run, sample, serve, memory };

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const request = JSON.parse(line);
    answer = await answers[request.command](request);
  } catch (error) {
    answer = { error: error.message || String(error), type: error.type ?? error.name ?? "Error" };
  }
  writeSync(1, `${JSON.stringify(answer)}\n`);
}
