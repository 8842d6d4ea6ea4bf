// Bundles of keras_resnet, run by LiteRT.js.

import {
  getGlobalLiteRt,
  getWebGpuDevice,
  loadAndCompile,
  loadLiteRt,
  supportsFeature,
  Tensor,
} from "@litertjs/core";

const RUNTIME = new URL("node_modules/@litertjs/core/wasm/", document.baseURI).href;
// More help little on phones, whose other cores are slow ones.
const MOST_THREADS = 4;
// What probabilities of two accelerators may differ by.
const TOLERANCE = 2 / 256;
const PROBES = 8;

/** Loads LiteRT.js: once, before anything else here. */
export async function start() {
  // Threads take memory that is shared, which browsers give to pages with the right headers only.
  const threads = globalThis.crossOriginIsolated && (await supportsFeature("relaxedSimd"));
  await loadLiteRt(RUNTIME, { threads });
}

/** "none", "software" for a GPU that the processor imitates, or "hardware". */
export function kindOfGpu() {
  const device = getWebGpuDevice();
  if (!device) {
    return "none";
  }
  return device.adapterInfo?.isFallbackAdapter ? "software" : "hardware";
}

/**
 * Fetches a bundle and checks that its files are those that were exported.
 *
 * @param {string} url of its directory, with a slash at the end.
 */
export async function openBundle(url) {
  const manifest = JSON.parse(new TextDecoder().decode(await fetchFile(`${url}manifest.json`)));
  const files = {};
  for (const name of ["model.tflite", "labels.txt"]) {
    files[name] = await fetchFile(url + name);
    if ((await digestOf(files[name])) !== manifest.sha256?.[name]) {
      throw new Error(`${name} is not the file that was exported. Export the bundle again.`);
    }
  }
  return {
    manifest,
    // A bundle that an older version wrote has one output, under another name.
    output: manifest.outputs?.[0] ?? manifest.output,
    labels: new TextDecoder().decode(files["labels.txt"]).split("\n").slice(0, -1),
    model: files["model.tflite"],
  };
}

async function fetchFile(url) {
  const response = await fetch(url).catch(() => null);
  if (!response?.ok) {
    const reason = response ? `status ${response.status}` : "the server does not answer";
    throw new Error(`${url} cannot be fetched: ${reason}.`);
  }
  return new Uint8Array(await response.arrayBuffer());
}

async function digestOf(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Makes a bundle ready to run.
 *
 * @param bundle what `openBundle` gives.
 * @param {"auto" | "webgpu" | "wasm"} wanted "auto" takes WebGPU where there is hardware for it.
 * @returns {Promise<Network>} whose `remark` says why it is not what was wanted, if it is not.
 */
export async function compile(bundle, wanted) {
  const wasm = await Network.load(bundle, "wasm");
  const probes = Array.from({ length: PROBES }, (_, seed) => mosaic(seed + 1, wasm.shape));
  const expected = await runAll(wasm, probes); // a first run is slow: it is over before any image
  const gpu = kindOfGpu();
  if (wanted === "wasm" || gpu === "none" || (wanted === "auto" && gpu === "software")) {
    return wasm;
  }
  // Some networks come out with other numbers on WebGPU: it is believed where it agrees with WASM.
  let webgpu;
  try {
    webgpu = await Network.load(bundle, "webgpu");
    const difference = largestDifference(expected, await runAll(webgpu, probes));
    if (difference <= TOLERANCE) {
      wasm.delete();
      return webgpu;
    }
    wasm.remark = `WebGPU's probabilities are off by ${difference.toFixed(2)}: it runs on WASM.`;
  } catch (error) {
    wasm.remark = `WebGPU cannot run it (${error.message}): it runs on WASM.`;
  }
  webgpu?.delete();
  return wasm;
}

/** A compiled bundle. Its memory is LiteRT's: whoever has one deletes it. */
export class Network {
  remark = "";

  static async load(bundle, accelerator) {
    const model = await loadAndCompile(bundle.model, {
      accelerator,
      cpuOptions: { numThreads: threadCount() },
      gpuOptions: { precision: "fp32" },
    });
    // WASM with threads cannot run in between what a GPU runs.
    if (accelerator === "webgpu" && !model.isFullyAccelerated) {
      model.delete();
      throw new Error("it lacks an operator");
    }
    return new Network(bundle, model, accelerator);
  }

  constructor({ manifest, output, labels }, model, accelerator) {
    this.model = model;
    this.labels = labels;
    this.manifest = manifest;
    this.output = output;
    this.input = manifest.input;
    this.shape = manifest.input.shape.slice(1);
    this.where = accelerator === "webgpu" ? "WebGPU" : `WASM, ${threadsInWords(threadCount())}`;
  }

  /**
   * @param {ArrayLike<number>} pixels raw bytes, height x width x channels.
   * @returns {Promise<{probabilities: Float32Array, milliseconds: number}>}
   */
  async run(pixels) {
    const started = performance.now();
    const values = (this.input.dtype === "uint8" ? Uint8Array : Float32Array).from(pixels);
    const tensor = new Tensor(values, this.input.shape);
    let outputs = [];
    try {
      outputs = await this.model.run([tensor]);
      const scores = this.#numbers(await outputs[0].data());
      const milliseconds = performance.now() - started;
      const probabilities = this.output.name === "logits" ? softmax(scores) : scores;
      return { probabilities, milliseconds };
    } finally {
      [tensor, ...outputs].forEach((each) => each.delete());
    }
  }

  delete() {
    this.model.delete();
  }

  /** What quantized values stand for. */
  #numbers(values) {
    const { scale, zero_point: zeroPoint } = this.output;
    return scale ? Float32Array.from(values, (value) => (value - zeroPoint) * scale) : values;
  }
}

function threadCount() {
  // 1 in a file without threads. Beyond the pool that was started, a run would wait for ever.
  return Math.min(getGlobalLiteRt().liteRtWasm.getThreadCount(), MOST_THREADS);
}

function threadsInWords(count) {
  return count === 1 ? "1 thread" : `${count} threads`;
}

async function runAll(network, images) {
  const all = [];
  for (const image of images) {
    all.push((await network.run(image)).probabilities);
  }
  return all;
}

function largestDifference(first, second) {
  const differences = first.flatMap((values, i) =>
    Array.from(values, (value, j) => Math.abs(value - second[i][j])),
  );
  // Not a number is no agreement either.
  return differences.some(Number.isNaN) ? Infinity : Math.max(...differences);
}

/** Tiles of random colors, finer with every other seed: of noise a network thinks always the same. */
function mosaic(seed, [height, width, channels]) {
  const across = 2 ** Math.ceil(seed / 2);
  let state = seed;
  const colors = Uint8Array.from({ length: across * across * channels }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 24;
  });
  return Uint8Array.from({ length: height * width * channels }, (_, i) => {
    const [row, column] = [Math.floor(i / channels / width), Math.floor(i / channels) % width];
    const tile = Math.floor((row * across) / height) * across + Math.floor((column * across) / width);
    return colors[tile * channels + (i % channels)];
  });
}

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}
