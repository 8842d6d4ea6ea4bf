// A browser that does what it is told: one command in JSON to a line of standard input, one answer
// to a line of standard output. test_page.py says what the commands are for.

import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

import { chromium } from "playwright-core";

const FLAGS = [
  "--no-sandbox",
  "--no-first-run",
  "--disable-quic",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const PATIENCE = 120_000; // ms; a first run compiles 9 MB of WASM, maybe on a busy machine

let context, page, profile;
const log = { console: [], errors: [], requests: [] };

const commands = {
  /** Starts Chromium with nothing in its profile, and opens an address. */
  async open({ url, executable, flags = [], permissions = [] }) {
    profile = await mkdtemp(join(tmpdir(), "chromium-"));
    context = await chromium.launchPersistentContext(profile, {
      executablePath: executable,
      args: [...FLAGS, ...flags],
      permissions,
      viewport: { width: 1100, height: 800 },
    });
    context.setDefaultTimeout(PATIENCE);
    page = context.pages()[0];
    page.on("console", (message) =>
      log.console.push({ type: message.type(), text: message.text() }),
    );
    page.on("pageerror", (error) => log.errors.push(error.message));
    context.on("request", (request) => log.requests.push(request.url()));
    return commands.visit({ url });
  },

  async visit({ url }) {
    await page.goto(url);
    return state();
  },

  /** Chooses a file, as a click on the button and the dialog would. */
  async choose({ path }) {
    await page.setInputFiles("#file", path);
    return state();
  },

  /** Drops or pastes a file anywhere on the page; without a path, a text. */
  async hand({ path, how }) {
    const bytes = path && (await readFile(path)).toString("base64");
    const name = path?.split("/").at(-1);
    await page.evaluate(
      ([bytes, name, how]) => {
        const given = new DataTransfer();
        if (bytes) {
          const content = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
          given.items.add(new File([content], name));
        } else {
          given.items.add("some text", "text/plain");
        }
        const options = { bubbles: true, cancelable: true };
        document.body.dispatchEvent(
          how === "drop"
            ? new DragEvent("drop", { ...options, dataTransfer: given })
            : new ClipboardEvent("paste", { ...options, clipboardData: given }),
        );
      },
      [bytes, name, how],
    );
    return state();
  },

  async select({ id, label }) {
    await page.selectOption(`#${id}`, { label });
    return state();
  },

  async click({ role, name }) {
    await page.getByRole(role, { name }).click();
  },

  async press({ keys }) {
    for (const key of keys) {
      await page.keyboard.press(key);
    }
    return page.evaluate(() => ({
      id: document.activeElement.id,
      outline: getComputedStyle(document.activeElement).outlineStyle,
    }));
  },

  /** Opens the dialog for files with a key, and chooses one there. */
  async choose_by_key({ key, path }) {
    const [dialog] = await Promise.all([
      page.waitForEvent("filechooser"),
      page.keyboard.press(key),
    ]);
    await dialog.setFiles(path);
    return state();
  },

  async wait_for({ selector }) {
    await page.waitForSelector(selector);
  },

  state,

  async evaluate({ code }) {
    return page.evaluate(code);
  },

  async look({ width, height, scheme, path }) {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme: scheme });
    if (path) {
      await page.screenshot({ path, fullPage: true });
    }
    return page.evaluate(() => document.documentElement.scrollWidth);
  },

  log: () => log,

  /** What pixels.js makes of pixels: no browser is needed for that. */
  async fit({ module, image, preprocessing, shape }) {
    const { fit } = await import(module);
    const data = new Uint8ClampedArray(Buffer.from(image.data, "base64"));
    const fitted = fit({ ...image, data }, preprocessing, shape);
    return Buffer.from(fitted.buffer).toString("base64");
  },

  async close() {
    await context?.close();
    await rm(profile, { recursive: true, force: true });
  },
};

/** What the page shows, once it has done what it was asked for. */
async function state() {
  await page.waitForSelector("#result[aria-busy=false]", { state: "attached" });
  return page.evaluate(() => {
    const text = (id) => document.getElementById(id).innerText;
    return {
      message: text("message"),
      facts: text("facts"),
      status: text("status"),
      name: text("name"),
      classes: Array.from(document.querySelectorAll("#found:not([hidden]) li"), (line) => ({
        label: line.querySelector("span").innerText,
        probability: Number(line.querySelector("data").value),
        shown: line.querySelector("data").innerText,
      })),
    };
  });
}

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...options } = JSON.parse(line);
  let answer;
  try {
    answer = { value: await commands[command](options) };
  } catch (error) {
    answer = { error: String(error.stack) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await context?.close();
