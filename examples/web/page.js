// The page: takes images, shows classes, says what went wrong.

import { compile, kindOfGpu, openBundle, start } from "./classifier.js";
import { decode, fit, pixelsOf } from "./pixels.js";

const SHOWN = 5;

const element = (id) => document.getElementById(id);
const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1 });

let bundles = [];
let network = null; // what is compiled
let image = null; // the last one: its bitmap and its name
let camera = null; // the stream, while it is on

// One thing at a time, in the order in which it was asked for.
let work = Promise.resolve();

function enqueue(task) {
  element("result").setAttribute("aria-busy", "true");
  const mine = (work = work
    .then(task)
    .catch((error) => report(error.message))
    .finally(() => {
      if (work === mine) {
        element("result").setAttribute("aria-busy", "false");
      }
    }));
  return mine;
}

function report(message) {
  element("message").textContent = message;
  element("message").hidden = false;
  if (!network) {
    clearResult();
  }
}

function clearMessage() {
  element("message").hidden = true;
  element("message").textContent = "";
}

function clearResult() {
  element("found").hidden = true;
  element("status").textContent = network
    ? "Waiting for an image."
    : "No network is loaded.";
}

// Networks

async function begin() {
  if (!globalThis.isSecureContext) {
    throw new Error("Browsers run this page from this machine or over HTTPS only.");
  }
  const response = await fetch("bundles.json").catch(() => null);
  if (!response?.ok) {
    throw new Error("There are no bundles here. Start this page with: keras-resnet serve BUNDLE");
  }
  bundles = await response.json();
  element("bundle").replaceChildren(...bundles.map(({ name }) => new Option(name)));
  element("status").textContent = "Loading LiteRT.js …";
  await start();
  element("bundle").disabled = element("accelerator").disabled = false;
  element("accelerator").querySelector("[value=webgpu]").disabled = kindOfGpu() === "none";
  await load();
}

async function load() {
  const { name, url } = bundles[element("bundle").selectedIndex];
  clearMessage();
  network?.delete();
  network = null;
  clearResult();
  element("facts").textContent = "";
  element("status").textContent = `Loading ${name} …`;
  try {
    const bundle = await openBundle(url);
    network = await compile(bundle, element("accelerator").value);
    element("facts").textContent = factsOf(bundle);
  } catch (error) {
    throw new Error(`The bundle ${name} cannot be used. ${error.message}`);
  }
  clearResult();
  await classify();
}

function factsOf({ manifest, labels, model }) {
  const [, height, width, channels] = manifest.input.shape;
  const accuracy = manifest.verification?.accuracy?.exported_accuracy;
  return [
    manifest.model,
    manifest.scheme,
    model.length < 1e6 ? `${(model.length / 1e3).toFixed()} kB` : `${(model.length / 1e6).toFixed(1)} MB`,
    `${height} × ${width} ${channels === 1 ? "grey" : "RGB"}`,
    `${labels.length} classes`,
    ...(accuracy === undefined ? [] : [`${percent.format(accuracy)} right when it was exported`]),
    ...(network.remark ? [network.remark] : []),
  ].join(" · ");
}

// Images

async function take(blob, name) {
  clearMessage();
  stopCamera();
  forget();
  try {
    image = { bitmap: await decode(blob), name };
  } catch {
    throw new Error(`${name} is no image that this browser can read.`);
  }
  show(element("picture"));
  URL.revokeObjectURL(element("picture").src);
  element("picture").src = URL.createObjectURL(blob);
  element("picture").alt = name;
  await classify();
}

function forget() {
  image?.bitmap.close();
  image = null;
  clearResult();
  show(element("hint"));
}

function takeFile(files) {
  const [file] = files;
  if (file) {
    enqueue(() => take(file, file.name || "What was pasted"));
  } else {
    enqueue(() => {
      throw new Error("That was no file: save the image first, and choose or drop the file.");
    });
  }
}

function show(shown) {
  for (const id of ["hint", "picture", "video"]) {
    element(id).hidden = element(id) !== shown;
  }
}

async function classify() {
  if (!network || !image) {
    return;
  }
  const started = performance.now();
  const pixels = fit(pixelsOf(image.bitmap), network.manifest.preprocessing, network.shape);
  const fitting = performance.now() - started;
  const { probabilities, milliseconds } = await network.run(pixels);
  showSeen(pixels);
  showClasses(probabilities);
  element("name").textContent = image.name;
  element("size").textContent = `${image.bitmap.width} × ${image.bitmap.height} pixels`;
  element("status").textContent =
    `${milliseconds.toFixed(1)} ms on ${network.where}; ` +
    `${fitting.toFixed(1)} ms before that to fit the image to ${network.shape[0]} × ${network.shape[1]}.`;
  element("found").hidden = false;
}

function showSeen(pixels) {
  const [height, width, channels] = network.shape;
  const canvas = element("seen");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const shown = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let channel = 0; channel < 3; channel++) {
      shown.data[4 * i + channel] = pixels[channels * i + (channels === 1 ? 0 : channel)];
    }
    shown.data[4 * i + 3] = 255;
  }
  context.putImageData(shown, 0, 0);
}

function showClasses(probabilities) {
  const best = Array.from(probabilities.keys())
    .sort((a, b) => probabilities[b] - probabilities[a])
    .slice(0, SHOWN);
  element("classes").replaceChildren(
    ...best.map((i) => classLine(network.labels[i], probabilities[i])),
  );
}

function classLine(label, probability) {
  const line = document.createElement("li");
  const name = document.createElement("span");
  name.textContent = label;
  const value = document.createElement("data");
  value.value = probability;
  value.textContent = percent.format(probability);
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.style.setProperty("--share", probability);
  line.append(name, value, bar);
  return line;
}

// The camera

const CAMERA_ERRORS = {
  NotAllowedError: "This page may not use the camera. Allow it in the browser's settings.",
  NotFoundError: "There is no camera here. Choose an image instead.",
  NotReadableError: "The camera is in use by another program.",
};

async function startCamera() {
  clearMessage();
  try {
    const video = { facingMode: "environment" };
    camera = await navigator.mediaDevices.getUserMedia({ video });
  } catch (error) {
    throw new Error(CAMERA_ERRORS[error.name] ?? `The camera cannot be used: ${error.message}`);
  }
  const video = element("video");
  video.srcObject = camera;
  await video.play();
  show(video);
  showCameraButton();
  watch(camera);
}

/** Classifies what the camera sees, as often as the screen is drawn, until it is turned off. */
async function watch(stream) {
  while (camera === stream) {
    await new Promise(requestAnimationFrame);
    await enqueue(async () => {
      if (camera === stream) {
        image?.bitmap.close();
        image = { bitmap: await createImageBitmap(element("video")), name: "Camera" };
        await classify();
      }
    });
  }
}

function stopCamera() {
  if (camera) {
    camera.getTracks().forEach((track) => track.stop());
    camera = null;
    element("video").srcObject = null;
    forget();
    showCameraButton();
  }
}

function showCameraButton() {
  const button = element("camera");
  button.setAttribute("aria-pressed", String(camera !== null));
  button.textContent = camera ? "Stop camera" : "Use camera";
  // Nobody wants to hear every frame.
  element("result").setAttribute("aria-live", camera ? "off" : "polite");
}

// What people do

element("bundle").addEventListener("change", () => enqueue(load));
element("accelerator").addEventListener("change", () => enqueue(load));
element("file").addEventListener("change", ({ target }) => {
  takeFile([...target.files]);
  target.value = ""; // the same file may be chosen again
});
element("camera").addEventListener("click", () =>
  enqueue(async () => (camera ? stopCamera() : await startCamera())),
);
document.addEventListener("paste", ({ clipboardData }) => takeFile(clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault(); // or the browser would leave the page and open the file
  element("zone").classList.add("over");
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) {
    element("zone").classList.remove("over");
  }
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  element("zone").classList.remove("over");
  takeFile(event.dataTransfer.files);
});

enqueue(begin);
