// The page that runs a classifier with onnxruntime-web, on the page's own thread. It asks `browser_worker.py` for one
// command after another (`POST turn`, whose body is the answer to the last one) and times its own calls.
//
//     about, library, open, inputs, run, sample, serve, memory: as `edgekit.benchmarking.worker` says, but that `library`
//     imports the package and `open` names the files of the model.

const SPIN_MS = 5; // timers are that coarse
const SHORTEST_IN_STEPS = 100; // a sample takes at least as many steps of the clock, so that a step is at most 1 %

// The least that onnxruntime opens, one Identity of a float: it brings the library up before a load is timed.
const IDENTITY = Uint8Array.from(atob(
  "CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEA0="
), (letter) => letter.charCodeAt(0));

let ort, session, shortestMs;
let batches = [];
let next = 0;
let together = 1; // calls in a sample

function fail(type, message) {
  throw Object.assign(new Error(message), { type });
}

function resolutionMs() {
  let smallest = Infinity;
  let last = performance.now();
  for (let steps = 0; steps < 30; ) {
    const now = performance.now();
    if (now === last) continue;
    smallest = Math.min(smallest, now - last);
    last = now;
    steps += 1;
  }
  return smallest;
}

async function webgpu() {
  if (!navigator.gpu) return "no navigator.gpu";
  const adapter = await navigator.gpu.requestAdapter();
  return adapter ? `adapter: ${adapter.info.vendor} ${adapter.info.architecture}`.trim() : "navigator.gpu, no adapter";
}

async function about() {
  return {
    user_agent: navigator.userAgent,
    cross_origin_isolated: crossOriginIsolated,
    clock_resolution_us: Math.round(resolutionMs() * 1e3),
    webgpu: await webgpu(),
  };
}

async function library(request) {
  if (request.isolated && !crossOriginIsolated) {
    fail("EnvironmentLacksError", "found a page that is not cross-origin isolated, although it was served with " +
      "Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp. Use another browser.");
  }
  if (request.threads > 1 && !crossOriginIsolated) {
    fail("EnvironmentLacksError", `found a page that is not cross-origin isolated, expected one for ${request.threads} ` +
      "threads: they share memory. Serve it with Cross-Origin-Opener-Policy: same-origin and " +
      "Cross-Origin-Embedder-Policy: require-corp, or ask for 1 thread.");
  }
  shortestMs = SHORTEST_IN_STEPS * resolutionMs();
  ort = await import(new URL(`dist/${request.script}`, location.href));
  ort.env.wasm.wasmPaths = new URL("dist/", location.href).href;
  ort.env.wasm.numThreads = request.threads;
  await (await ort.InferenceSession.create(IDENTITY, { executionProviders: ["wasm"] })).release();
  if (ort.env.wasm.numThreads !== request.threads) {
    fail("EnvironmentLacksError", `found ${ort.env.wasm.numThreads} threads in onnxruntime-web, expected ` +
      `${request.threads}.`);
  }
  return {};
}

async function fetched(name) {
  const answer = await fetch(`model/${encodeURIComponent(name)}`);
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function open(request) {
  const options = {
    executionProviders: ["wasm"],
    graphOptimizationLevel: request.graph_optimization === false ? "disabled" : "all",
    logSeverityLevel: 3,
  };
  const [file, ...beside] = request.names;
  const model = await fetched(file);
  if (beside.length) {
    options.externalData = await Promise.all(beside.map(async (path) => ({ path, data: await fetched(path) })));
  }
  const started = performance.now();
  try {
    session = await ort.InferenceSession.create(model, options);
  } catch (error) {
    fail("ModelError", `${request.file}: onnxruntime-web cannot open it: ${error.message}`);
  }
  return { load_ms: performance.now() - started, input_names: session.inputNames, output_names: session.outputNames };
}

function tensor(rows) {
  return new ort.Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);
}

function feedsOf(inputIds) {
  const given = {
    input_ids: inputIds,
    attention_mask: inputIds.map((row) => row.map(() => 1)),
    token_type_ids: inputIds.map((row) => row.map(() => 0)),
  };
  return Object.fromEntries(session.inputNames.map((name) => [name, tensor(given[name])]));
}

function inputs(request) {
  batches = request.input_ids.map(feedsOf);
  next = 0;
  together = 1;
  return {};
}

function nextFeeds() {
  const feeds = batches[next];
  next = (next + 1) % batches.length;
  return feeds;
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
  const deadline = performance.now() + request.seconds * 1e3;
  const samples = [];
  globalThis.gc?.();
  while (samples.length < request.runs) {
    const started = performance.now();
    for (let call = 0; call < together; call += 1) await session.run(nextFeeds());
    const ended = performance.now();
    const span = ended - started;
    if (span < shortestMs) {
      together = Math.ceil(together * Math.min(Math.max(1.25, (1.1 * shortestMs) / span), 10));
      samples.length = 0; // of fewer calls than those that follow
      continue;
    }
    samples.push(Math.round((span * 1e6) / together));
    if (ended >= deadline) break;
  }
  return { samples_ns: samples, calls_per_sample: together };
}

async function serve(request) {
  const latencies = [];
  globalThis.gc?.();
  const origin = performance.now();
  for (const arrival of request.arrivals_ns) {
    const due = origin + arrival / 1e6;
    const early = due - performance.now();
    if (early > SPIN_MS) await new Promise((resolve) => setTimeout(resolve, early - SPIN_MS));
    while (performance.now() < due);
    await session.run(nextFeeds());
    latencies.push(Math.round((performance.now() - due) * 1e6));
    if (latencies.at(-1) > request.give_up_ns) break;
  }
  return { latencies_ns: latencies };
}

async function memory() {
  // Threads that wait for work answer no question of the browser, which would give up on them after a minute.
  if (!crossOriginIsolated || ort.env.wasm.numThreads > 1) return { page_bytes: null };
  return { page_bytes: (await performance.measureUserAgentSpecificMemory()).bytes };
}

const answers = { about, library, open, inputs, run, sample, serve, memory, wait: () => null };

let answer = null;
for (;;) {
  const turn = await fetch("turn", { method: "POST", body: JSON.stringify(answer) });
  const request = await turn.json();
  try {
    answer = await answers[request.command](request);
  } catch (error) {
    answer = { error: error.message || String(error), type: error.type ?? error.name ?? "Error" };
  }
}
