/** A value that tells when it changes. All state that outlives one component is in such values. */
export class Value<T> {
  #now: T;
  readonly #listeners = new Set<(now: T) => void>();

  constructor(first: T) {
    this.#now = first;
  }

  get(): T {
    return this.#now;
  }

  set(next: T): void {
    if (Object.is(next, this.#now)) return;
    this.#now = next;
    for (const listener of [...this.#listeners]) listener(next);
  }

  /** Calls the listener at every change, until the function that is returned is called. */
  subscribe(listener: (now: T) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
