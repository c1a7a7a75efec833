// Starts `tally demo` for the tests, and ends it.

import { spawn } from "node:child_process";
import { once } from "node:events";

const BINARY = process.env.TALLY_BINARY;
const START_MS = 120_000;

export class Demo {
  /** `args` as on the command line; `env` besides. Serves when this is done. */
  static async start(args, env = {}) {
    if (!BINARY) throw new Error("TALLY_BINARY must name the binary");
    const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("TALLY_")));
    const demo = new Demo();
    const files = process.env.WEB_DIR ? ["--web-dir", process.env.WEB_DIR] : [];
    demo.process = spawn(BINARY, ["demo", ...files, ...args], { env: { ...clean, ...env }, stdio: ["ignore", "pipe", "pipe"] });
    demo.said = "";
    for (const stream of [demo.process.stdout, demo.process.stderr]) stream.on("data", (text) => { demo.said += text; });
    await demo.#until(() => /token\s+\S+/.test(demo.said), START_MS, "printing its addresses");
    demo.url = /dashboard\s+(http:\S+)/.exec(demo.said)[1];
    demo.token = /token\s+(\S+)/.exec(demo.said)[1];
    await demo.#until(async () => (await fetch(`${demo.url}api/views`).then((r) => r.json())).views.length > 0, START_MS, "serving views");
    return demo;
  }

  get port() {
    return new URL(this.url).port;
  }

  async json(path) {
    const response = await fetch(new URL(path, this.url));
    if (!response.ok) throw new Error(`${path}: ${response.status}`);
    return response.json();
  }

  async stop(signal = "SIGTERM") {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const ended = once(this.process, "exit");
    this.process.kill(signal);
    await ended;
  }

  async #until(holds, ms, what) {
    const end = Date.now() + ms;
    while (Date.now() < end) {
      if (this.process.exitCode !== null) throw new Error(`the demo ended: ${this.said}`);
      try {
        if (await holds()) return;
      } catch {
        // Not serving yet.
      }
      await new Promise((done) => setTimeout(done, 100));
    }
    throw new Error(`${what} took too long: ${this.said}`);
  }
}
