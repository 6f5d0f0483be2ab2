/** Counters by name, as one process has them. */
export type Counts = Readonly<Record<string, number>>;

interface Heard {
  time: number;
  counts: Counts;
  /** Per second, since it was heard before. */
  rates: Counts | null;
}

const FORGOTTEN = 60; // seconds

/**
 * Turns what replicas have counted since their start into rates. Whoever asks hears one replica at a time, so each has
 * the rate of the time since it was last heard, and the replicas' rates are added up. One that is not heard for a minute
 * no longer counts, and begins anew when it is heard again.
 */
export class Rates {
  readonly #heard = new Map<string, Heard>();

  /** A replica's counters at a time in seconds. A name that is missing counts nothing yet. */
  hear(replica: string, time: number, counts: Counts): void {
    const before = this.#heard.get(replica);
    if (before && time <= before.time) return;
    const known = before && time - before.time <= FORGOTTEN;
    this.#heard.set(replica, { time, counts, rates: known ? since(before, time, counts) : null });
  }

  /** Per second, over all replicas; null while nothing is known. */
  at(time: number): Counts | null {
    let sum: Record<string, number> | null = null;
    for (const [replica, { time: last, rates }] of this.#heard) {
      if (time - last > FORGOTTEN) this.#heard.delete(replica);
      else if (rates) {
        sum ??= {};
        for (const [name, rate] of Object.entries(rates)) sum[name] = (sum[name] ?? 0) + rate;
      }
    }
    return sum;
  }
}

function since(before: Heard, time: number, counts: Counts): Counts {
  const rates: Record<string, number> = {};
  for (const [name, count] of Object.entries(counts)) {
    const was = before.counts[name] ?? 0;
    const more = count < was ? count : count - was; // less than before: it began anew
    rates[name] = more / (time - before.time);
  }
  return rates;
}

/**
 * The value that this part of the measurements does not exceed, by how many there were up to each bound of a histogram;
 * null when there were none. Between two bounds it is taken to grow evenly, as Prometheus does.
 */
export function quantile(part: number, upTo: readonly (readonly [bound: number, count: number])[]): number | null {
  const bounds = upTo.toSorted(([one], [other]) => one - other);
  const rank = part * (bounds.at(-1)?.[1] ?? 0);
  let [below, counted] = [0, 0];
  for (const [bound, count] of bounds) {
    if (rank > 0 && count >= rank) {
      return bound === Infinity ? below : below + ((bound - below) * (rank - counted)) / (count - counted);
    }
    [below, counted] = [bound, count];
  }
  return null;
}
