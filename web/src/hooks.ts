import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { allPages, type Paging } from "./api.ts";
import { refusal, type Refusal } from "./refusal.ts";
import type { Value } from "./value.ts";

export function useValue<T>(value: Value<T>): T {
  const [now, set] = useState(() => value.get());
  useEffect(() => {
    set(() => value.get()); // it may have changed between the first rendering and this
    return value.subscribe((next) => set(() => next));
  }, [value]);
  return now;
}

export interface Loaded<T> {
  data?: T;
  error?: Refusal;
  loading: boolean;
  /** When the data were read, in milliseconds since 1970. */
  at?: number;
  reload: () => Promise<void>;
}

/**
 * Reads something when `keys` change, and again on `reload`. What was read before stays on the screen meanwhile, also
 * when reading it again fails; with other keys it is dropped at once.
 */
export function useLoaded<T>(read: (signal: AbortSignal) => Promise<T>, keys: readonly unknown[]): Loaded<T> {
  const [state, setState] = useState<Omit<Loaded<T>, "reload">>({ loading: true });
  const running = useRef<AbortController | null>(null);
  const reload = useCallback(async () => {
    running.current?.abort();
    const mine = new AbortController();
    running.current = mine;
    setState((before) => ({ ...before, loading: true }));
    try {
      const data = await read(mine.signal);
      if (!mine.signal.aborted) setState({ data, loading: false, at: Date.now() });
    } catch (error) {
      if (!mine.signal.aborted) setState((before) => ({ ...before, loading: false, error: refusal(error) }));
    }
  }, keys);
  useEffect(() => {
    setState({ loading: true });
    void reload();
    return () => running.current?.abort();
  }, [reload]);
  return { ...state, reload };
}

/** Reads all pages of a listing, as `useLoaded` does. */
export function useAll<P extends { nextPageToken: string }, T>(
  read: (which: Paging, signal: AbortSignal) => Promise<P>,
  items: (page: P) => T[],
  keys: readonly unknown[],
): Loaded<T[]> {
  return useLoaded((signal) => allPages((which) => read(which, signal), items), keys);
}

/** Calls `work` every so many milliseconds, with up to a fifth more by chance, while the page can be seen. */
export function useEvery(milliseconds: number, work: () => void): void {
  const latest = useRef(work);
  latest.current = work;
  useEffect(() => {
    let timer = 0;
    const next = () => {
      timer = window.setTimeout(
        () => {
          if (document.visibilityState === "visible") latest.current();
          next();
        },
        milliseconds * (1 + Math.random() / 5),
      );
    };
    // Who comes back to the page sees what is true now, not what was true when they left.
    const onReturn = () => {
      if (document.visibilityState === "visible") latest.current();
    };
    document.addEventListener("visibilitychange", onReturn);
    next();
    return () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", onReturn);
    };
  }, [milliseconds]);
}

/** The time, every second. */
export function useNow(): number {
  const [now, setNow] = useState(() => Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}
