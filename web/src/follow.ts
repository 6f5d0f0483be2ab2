import { Code } from "@connectrpc/connect";
import { refusal, type Refusal } from "./refusal.ts";
import { asTold, backoff } from "./retry.ts";

export type Connection = "connecting" | "live" | "lost";

interface Surroundings {
  random: () => number;
  /** Waits so many milliseconds, or until the signal is aborted. */
  sleep: (milliseconds: number, signal: AbortSignal) => Promise<void>;
}

/** Keeps a stream of messages open, and opens it again when it ends. */
export class Following<T> {
  #stopped = false;
  #attempt = 0;
  #opened = new AbortController();
  #slept = new AbortController();
  readonly #with: Surroundings;

  constructor(
    open: (signal: AbortSignal) => AsyncIterable<T>,
    onMessage: (message: T) => void,
    onState: (state: Connection, why?: Refusal) => void,
    surroundings: Surroundings,
  ) {
    this.#with = surroundings;
    void this.#run(open, onMessage, onState);
  }

  /** Opens the stream anew at once: the network has changed, or the device has slept, and nobody noticed. */
  reopen(): void {
    this.#attempt = 0;
    this.#opened.abort();
    this.#slept.abort();
  }

  stop(): void {
    this.#stopped = true;
    this.reopen();
  }

  async #run(
    open: (signal: AbortSignal) => AsyncIterable<T>,
    onMessage: (message: T) => void,
    onState: (state: Connection, why?: Refusal) => void,
  ): Promise<void> {
    onState("connecting");
    while (!this.#stopped) {
      const opened = new AbortController();
      this.#opened = opened;
      let why: Refusal | undefined;
      try {
        for await (const message of open(opened.signal)) {
          if (opened.signal.aborted) break;
          this.#attempt = 0;
          onState("live");
          onMessage(message);
        }
      } catch (thrown) {
        why = refusal(thrown);
      }
      if (this.#stopped) return;
      if (opened.signal.aborted) continue;
      // A token that has expired is no fault of the connection: opening again waits for a new one.
      if (why?.code === Code.Unauthenticated && this.#attempt === 0) {
        this.#attempt = 1;
        continue;
      }
      onState("lost", why);
      const { random } = this.#with;
      const delay = why?.retryAfter === undefined ? backoff(this.#attempt, random) : asTold(why.retryAfter, random);
      this.#attempt += 1;
      this.#slept = new AbortController();
      await this.#with.sleep(delay, this.#slept.signal);
    }
  }
}

/** Waits so many milliseconds, or until the signal is aborted. */
export function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
