// One engine in this page, and the jobs that it is given. A job comes as an event; its tensors and the engine are
// fetched; the answer is posted. Tensors travel as page.py describes.
"use strict";

const TYPES = {
  float32: Float32Array, float64: Float64Array, bool: Uint8Array,
  int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
};
const ALIGN = 8;

let session = null;
let rows = [];
let next = 0;
let worker = null;

const jobs = {
  async open({ threads }) {
    ort.env.wasm.numThreads = threads;
    const engine = new Uint8Array(await load("engine"));
    const start = performance.now();
    session = await ort.InferenceSession.create(engine, {
      executionProviders: ["wasm"], graphOptimizationLevel: "all",
    });
    const load_ms = performance.now() - start;
    // onnxruntime-web falls back to one thread where it is not allowed more, and says so here only.
    return { load_ms, threads: ort.env.wasm.numThreads, inputs: session.inputMetadata, outputs: session.outputMetadata };
  },

  async run() {
    const results = await session.run(feeds(unpack(await load("tensors"))));
    return { tensors: Object.entries(results).map(([name, x]) => ({ name, dtype: x.type, dims: x.dims, data: x.data })) };
  },

  // Keep the rows that inferences are timed on, and time one of the first.
  async first() {
    const tensors = unpack(await load("tensors"));
    const row = (x, i) => {
      const size = x.data.length / x.dims[0];
      return { ...x, dims: [1, ...x.dims.slice(1)], data: x.data.subarray(i * size, (i + 1) * size) };
    };
    rows = Array.from({ length: tensors[0].dims[0] }, (_, i) => feeds(tensors.map((x) => row(x, i))));
    return { first_run_ms: await time(rows[0]) };
  },

  async measure({ iterations, warmup }) {
    for (let i = 0; i < warmup; i++) await session.run(rows[next++ % rows.length]);
    const ms = new Float64Array(iterations);
    for (let i = 0; i < iterations; i++) ms[i] = await time(rows[next++ % rows.length]);
    return { tensors: [{ name: "ms", dtype: "float64", dims: [iterations], data: ms }] };
  },

  // Start a worker, by whose thread this page's process can be told from Chromium's others.
  async start_worker() {
    worker = new Worker(URL.createObjectURL(new Blob(["postMessage(0)"])));
    await new Promise((resolve) => { worker.onmessage = resolve; });
    return {};
  },

  // The smallest step that the clock makes: a time is known no better.
  async clock() {
    let step_ms = Infinity;
    for (let i = 0; i < 1000; i++) {
      const start = performance.now();
      let now = start;
      while (now === start) now = performance.now();
      step_ms = Math.min(step_ms, now - start);
    }
    return { step_ms };
  },
};

async function time(feed) {
  const start = performance.now();
  await session.run(feed);
  return performance.now() - start;
}

const feeds = (tensors) => Object.fromEntries(tensors.map((x) => [x.name, new ort.Tensor(x.dtype, x.data, x.dims)]));

const load = async (path) => (await fetch(path)).arrayBuffer();

const padded = (bytes) => Math.ceil(bytes / ALIGN) * ALIGN;

function unpack(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const { tensors } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, ALIGN, length)));
  let offset = ALIGN + length;
  return tensors.map(({ name, dtype, dims }) => {
    const data = new TYPES[dtype](buffer, offset, dims.reduce((a, b) => a * b, 1));
    offset += padded(data.byteLength);
    return { name, dtype, dims, data };
  });
}

function pack({ tensors = [], ...rest }) {
  const text = JSON.stringify({ ...rest, tensors: tensors.map(({ name, dtype, dims }) => ({ name, dtype, dims })) });
  const bytes = new TextEncoder().encode(text);
  const head = new Uint8Array(padded(bytes.length)).fill(0x20);
  head.set(bytes);
  const length = new DataView(new ArrayBuffer(ALIGN));
  length.setBigUint64(0, BigInt(head.length), true);
  const body = tensors.flatMap(({ data }) => [data, new Uint8Array(padded(data.byteLength) - data.byteLength)]);
  return new Blob([length, head, ...body]);
}

async function answer({ job, ...rest }) {
  let result;
  try {
    result = await jobs[job](rest);
  } catch (error) {
    result = { error: String(error?.message ?? error) };
  }
  await fetch("answer", { method: "POST", body: pack(result) });
}

const source = new EventSource("jobs");
source.onmessage = (event) => answer(JSON.parse(event.data));
source.onerror = () => source.close(); // the device is gone: nobody is there to connect to again
