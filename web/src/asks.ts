import type { JsonValue } from "@bufbuild/protobuf";
import { refusal, type Refusal } from "./refusal.ts";
import { asTold, backoff } from "./retry.ts";
import { Value } from "./value.ts";

/** A request that changes something, and that is repeated as it is until there is an answer. */
export interface Ask {
  id: string;
  /** Which request it is; the owner knows how to send it. */
  kind: string;
  /** The request's message, with its request id. */
  request: JsonValue;
  /** What to call it on the screen, for example the hospital's name and the day. */
  about: Record<string, string>;
  /** When it was asked for, in milliseconds since 1970. */
  asked?: number;
  /** Set while it waits to be repeated. */
  waiting?: { why: "busy" | "lost"; since: number; until: number; attempt: number };
}

export type Answer<T> = { ask: Ask; answer: T } | { ask: Ask; refused: Refusal } | { ask: Ask; stopped: true };

interface Surroundings<T> {
  storage: Pick<Storage, "getItem" | "setItem" | "removeItem">;
  send: (ask: Ask) => Promise<T>;
  now: () => number;
  /** Calls back after so many milliseconds; what is returned calls it off. */
  after: (milliseconds: number, work: () => void) => () => void;
  random: () => number;
}

// A browser may open a tab again after days. Who comes back so late does not expect to be booked by that.
const TOO_LATE = 60 * 60_000;

/**
 * The requests under way. They are kept in the tab's storage until they are answered, so that a page that is loaded
 * again goes on with the same request ids: nobody ever books twice, and nobody has to press a button again.
 */
export class Asks<T> {
  readonly pending = new Value<readonly Ask[]>([]);
  /** Called with every answer, also of requests from before the page was loaded. */
  onAnswer: (answer: Answer<T>) => void = () => {};
  #owner = "";
  readonly #sending = new Set<string>();
  readonly #timers = new Map<string, () => void>();
  readonly #callers = new Map<string, (answer: Answer<T>) => void>();
  readonly #with: Surroundings<T>;

  constructor(surroundings: Surroundings<T>) {
    this.#with = surroundings;
  }

  /**
   * Goes on with what this person had asked for, unless that was last tried more than an hour ago. Requests of somebody
   * else stay where they are.
   */
  resume(owner: string): void {
    if (owner === this.#owner) return;
    this.#owner = owner;
    for (const cancel of this.#timers.values()) cancel();
    this.#timers.clear();
    const kept = this.#with.storage.getItem(this.#key());
    this.pending.set(kept === null ? [] : (JSON.parse(kept) as Ask[]));
    for (const ask of this.pending.get()) {
      const tried = ask.waiting?.since ?? ask.asked ?? 0;
      if (this.#with.now() - tried > TOO_LATE) this.#end(ask, { ask, stopped: true });
      else if (ask.waiting) this.#wait(ask);
      else void this.#send(ask);
    }
  }

  /** Asks for something. A request like one that is under way already is that one. */
  ask(ask: Ask): Promise<Answer<T>> {
    const content = (one: Ask) => JSON.stringify([one.kind, { ...(one.request as object), requestId: "" }]);
    const same = this.pending.get().find((one) => content(one) === content(ask));
    return new Promise((resolve) => {
      const id = (same ?? ask).id;
      const before = this.#callers.get(id);
      this.#callers.set(id, (answer) => {
        before?.(answer);
        resolve(answer);
      });
      if (same) return;
      const kept = { ...ask, asked: this.#with.now() };
      this.#keep([...this.pending.get(), kept]);
      void this.#send(kept);
    });
  }

  /** Repeats what waits only because the connection was lost, now that it is back. */
  hurry(): void {
    for (const ask of this.pending.get()) {
      if (ask.waiting?.why !== "lost") continue;
      this.#timers.get(ask.id)?.();
      void this.#send(ask);
    }
  }

  /** Does not repeat it any more. */
  stop(id: string): void {
    const ask = this.pending.get().find((one) => one.id === id);
    if (ask) this.#end(ask, { ask, stopped: true });
  }

  #key(): string {
    return `asks ${this.#owner}`;
  }

  #keep(asks: readonly Ask[]): void {
    if (asks.length) this.#with.storage.setItem(this.#key(), JSON.stringify(asks));
    else this.#with.storage.removeItem(this.#key());
    this.pending.set(asks);
  }

  #change(ask: Ask): void {
    this.#keep(this.pending.get().map((one) => (one.id === ask.id ? ask : one)));
  }

  async #send(ask: Ask): Promise<void> {
    if (this.#sending.has(ask.id)) return;
    this.#sending.add(ask.id);
    const owner = this.#owner;
    let answer: Answer<T>;
    try {
      answer = { ask, answer: await this.#with.send(ask) };
    } catch (thrown) {
      answer = { ask, refused: refusal(thrown) };
    }
    this.#sending.delete(ask.id);
    if (owner !== this.#owner) return; // somebody else has signed in
    const current = this.pending.get().find((one) => one.id === ask.id);
    if (!current) {
      // It was stopped, and yet it was done.
      if ("answer" in answer) this.onAnswer(answer);
      return;
    }
    const again = "refused" in answer ? this.#again(current, answer.refused) : null;
    if (again) {
      this.#change(again);
      this.#wait(again);
    } else this.#end(current, answer);
  }

  #again(ask: Ask, refused: Refusal): Ask | null {
    if (refused.retryAfter === undefined && !refused.lost) return null;
    const now = this.#with.now();
    const attempt = (ask.waiting?.attempt ?? -1) + 1;
    const why = refused.retryAfter === undefined ? "lost" : "busy";
    const delay =
      why === "busy" ? asTold(refused.retryAfter ?? 0, this.#with.random) : backoff(attempt, this.#with.random);
    return { ...ask, waiting: { why, attempt, since: now, until: now + delay } };
  }

  #wait(ask: Ask): void {
    const { since = 0, until = 0 } = ask.waiting ?? {};
    // The device's clock may have been put back since.
    const delay = Math.min(until - since, Math.max(0, until - this.#with.now()));
    this.#timers.set(
      ask.id,
      this.#with.after(delay, () => void this.#send(ask)),
    );
  }

  #end(ask: Ask, answer: Answer<T>): void {
    this.#timers.get(ask.id)?.();
    this.#timers.delete(ask.id);
    this.#keep(this.pending.get().filter((one) => one.id !== ask.id));
    const caller = this.#callers.get(ask.id);
    this.#callers.delete(ask.id);
    this.onAnswer(answer);
    caller?.(answer);
  }
}
