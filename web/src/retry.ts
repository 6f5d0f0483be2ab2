const FIRST = 500;
const LONGEST = 30_000;
const LONGEST_TOLD = 24 * 3600_000; // browsers take what is much longer for no time at all

/**
 * How long to wait before trying to connect again, in milliseconds: twice as long each time, up to half a minute. The
 * greater part is left to chance, so that a crowd that lost its connection at one moment does not return at one.
 */
export function backoff(attempt: number, random: () => number): number {
  const limit = Math.min(LONGEST, FIRST * 2 ** Math.min(attempt, 16));
  return limit * (0.2 + 0.8 * random());
}

/** How long to wait when the server said how long: never shorter, up to half as much again by chance. A day at most. */
export function asTold(milliseconds: number, random: () => number): number {
  return Math.min(Math.max(milliseconds, FIRST), LONGEST_TOLD) * (1 + 0.5 * random());
}

/** Whole seconds until then; 0 when it is over. */
export function secondsLeft(until: number, now: number): number {
  return Math.max(0, Math.ceil((until - now) / 1000));
}
